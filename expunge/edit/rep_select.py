"""RepSelect (Sondej et al., 2026, arXiv 2606.17168): ascent in what only the forget set reads, so that it stays
forgotten.

    G    gradient of the forget set's loss in each matrix of the MLPs, taken with `learn` in place; then dropped
    G'   G = U S V^T with its largest components collapsed on both sides:  s_i -> s_i / (s_i / s_k)^2,   i <= k
    theta <- theta + n * learning_rate * G' / |G'|,   the largest n <= steps with mean KL(before || now) <= budget

The largest components are what other texts use too, and what an attacker's training brings back first. `learn` is a
short training on the forget set, so what that changes anyway is in the gradient no more. KL is the mean over the rows
of the retain set, which stands for the paper's neutral text. Ours, where its description leaves it open: G' is scaled
to length 1 over all matrices, k is at most a quarter of a matrix's components, and n is found by bisection. Measured on
a small model (docs/results.md): what it took away did not come back, but it took less than trained methods did.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch

from expunge.core.method import Method, WeightMethod
from expunge.core.model import Batch, Model, Network, network_of
from expunge.core.predictions import Share
from expunge.core.question import Scores
from expunge.core.request import Example, Request
from expunge.edit._collapsed_gradient import collapsed_gradient
from expunge.edit._fisher import copy_network
from expunge.errors import DataRefused, UsageRefused
from expunge.events import Note, OnEvent
from expunge.internals.changes import describe_change
from expunge.internals.gradients import Gradient
from expunge.notation.parse import parse
from expunge.primitives.class_scores import divergence
from expunge.primitives.out_of_memory import in_fitting_batches
from expunge.runtime.cached_model import CachedModel


@dataclass(frozen=True)
class RepSelect(WeightMethod):
    """One direction, gone along as far as the retain set allows."""

    budget: float = 0.01
    """Largest mean KL from the original on the retain set's rows, in nats. More forgets more, and harms more."""
    rank: int = 512
    """How many of a gradient's largest components are collapsed. 0: none, which is plain ascent."""
    learning_rate: float = 0.05
    """Length of a step, over all matrices."""
    steps: int = 1023
    """Most steps along the direction."""
    # In the notation: edits do not import the training code.
    learn: Method = parse(
        "Finetune(objective=-1.0 * Ascent(), adapter=LoRA(), optimizer='sgd', learning_rate=0.01, "
        "steps=Epochs(count=1.0), retain_batch=1, stop=None, norms=False)"
    )
    """What an attacker would do first: an epoch of training on the forget set, by SGD with momentum 0.9."""

    def __post_init__(self) -> None:
        if not (0 <= self.budget < math.inf and 0 < self.learning_rate < math.inf and self.rank >= 0 < self.steps):
            raise UsageRefused(
                f"RepSelect: `budget` and `rank` must be at least 0, `steps` at least 1, `learning_rate` above 0. "
                f"Got {self.budget!r}, {self.rank!r}, {self.steps!r}, {self.learning_rate!r}."
            )

    def change(self, network: Network, request: Request, on_event: OnEvent) -> Network:
        if not request.retain:
            raise DataRefused("RepSelect goes as far as the retain set allows. Give --retain.")
        on_event(Note("Learning the forget set, as an attacker would"))
        learnt = network_of(self.learn(network, request).plain(), self.name)
        direction = collapsed_gradient(learnt, request.forget, self.rank)
        before, result, taken = CachedModel(network), copy_network(network), 0
        for step in (1 << k for k in reversed(range(self.steps.bit_length()))):
            if taken + step <= self.steps:
                self._stand(network, result, direction, taken + step)
                taken += step if _drift(before, result, request.retain) <= self.budget else 0
        self._stand(network, result, direction, taken)
        on_event(Note(f"{taken} steps of {self.learning_rate} are within the budget"))
        on_event(describe_change(network, result))
        return result

    def _stand(self, network: Network, result: Network, direction: Gradient, steps: int) -> None:
        """The result so many steps from the network."""
        was = dict(network.module.named_parameters())
        with torch.no_grad():
            for name, parameter in result.module.named_parameters():
                if name in direction:
                    parameter.copy_(was[name] + steps * self.learning_rate * direction[name])


def _drift(before: Model, now: Network, examples: Batch) -> float:
    """Mean over the rows of the examples of KL(before || now), in nats; infinite where scores are no numbers."""
    read = partial(_drift_of_part, before, now, Share.of(examples))
    with torch.no_grad():
        total = sum(each for _, each in in_fitting_batches(now.module, examples, now.batches(examples), read))
    return total if math.isfinite(total) else math.inf


def _drift_of_part(before: Model, now: Network, share: Share, part: list[Example]) -> float:
    was, said = (model.ask(Scores(), part).part_of(share) for model in (before, now))
    return float(said.over_rows(said.each_row(divergence, was)))
