"""Can the answer be read off hidden states though the model does not say it? (Alain and Bengio, 2016, arXiv 1610.01644)

A linear classifier (logistic, all answers weighing alike) learns to tell the answer's first token, or an image's class,
from the state after one block at the last token of the prompt, or at the image's class token. It is trained on examples
that were to be kept and tested on the forgotten ones: trained on those, it would show its own capacity. Forgotten
examples whose answer no kept one has are left out. Where questions are of several kinds, knowing the kind alone beats
chance: ask for one kind, by probes named in `train` and `test`.

Three controls stand beside it, each as a set of its own: a probe trained on shuffled labels; a probe of a network whose
weights were shuffled within each tensor, which has learnt nothing; and the most frequent answer. How much the questions
themselves give away, only the retrained model's value tells.
"""

import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from expunge.audits._kinds import WhiteBoxAudit
from expunge.core.audit import Finding
from expunge.core.model import Batch, Network
from expunge.core.question import HiddenStates
from expunge.core.request import Request
from expunge.primitives.out_of_memory import in_fitting_batches
from expunge.primitives.settings import check_finite, check_seed
from expunge.primitives.statistics import mean_interval

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class LinearProbe(WhiteBoxAudit):
    """Share of forgotten answers that a linear probe of the hidden states tells."""

    layer: int | float = 0.75
    """Block after which the states are read: its number from 0, or a share of the depth below 1.0."""
    train: str = "retain"
    """The set that the probe learns from."""
    test: str = "forget"
    """The set that it is asked about."""
    seed: int = 0
    """Fixes what the two shuffled controls draw."""

    definition = (
        "Share of examples whose first answer token (or class) a logistic probe of the hidden states tells, trained on "
        "the kept examples; chance is 1 / answers."
    )

    def __post_init__(self) -> None:
        check_finite(self, "layer")
        check_seed(self)

    def look(self, network: Network, request: Request) -> tuple[Finding, ...]:
        sets = request.sets()
        if self.train not in sets or self.test not in sets:
            return ()
        # Sorted, so that the order of a file changes nothing that is drawn.
        known = sorted(sets[self.train], key=lambda example: example.record_digest())
        states, labels = self.read(network, known)
        asked, right = self.read(network, sets[self.test])
        classes, counts = np.unique(labels, return_counts=True)
        told = np.isin(right, classes)
        if len(classes) < 2 or not told.any():
            return ()
        draw = np.random.default_rng(self.seed)
        shuffled = draw.permutation(labels)
        blank = self.blank(network)
        hits = {
            self.test: _probe_accuracy(states, labels, asked, right),
            f"{self.test}, labels shuffled": _probe_accuracy(states, shuffled, asked, right),
            f"{self.test}, weights shuffled": _probe_accuracy(
                self.read(blank, known)[0], labels, self.read(blank, sets[self.test])[0], right
            ),
            f"{self.test}, most frequent answer": right == classes[counts.argmax()],
        }
        return tuple(self.findings({name: hit[told] for name, hit in hits.items()}, 1 / len(classes)))

    def findings(self, hits: "dict[str, Bool[np.ndarray, ' examples']]", chance: float) -> Iterator[Finding]:
        """The probe's finding and those of its controls."""
        for name, hit in hits.items():
            scores = hit.astype(float).tolist()
            value = float(np.mean(scores))
            yield self.finding(name, value, mean_interval(scores), scores, chance)

    def read(
        self, network: Network, examples: Batch
    ) -> "tuple[Float[np.ndarray, 'examples width'], Int[np.ndarray, ' examples']]":
        """State and label of each example's first row."""
        states: list[np.ndarray] = [np.empty(0)] * len(examples)
        labels = np.zeros(len(examples), dtype=np.int64)
        with torch.inference_mode():
            groups, question = network.batches(examples), HiddenStates(self.layer)
            read = in_fitting_batches(network.module, examples, groups, lambda part: network.ask(question, part))
            for group, felt in read:
                first = felt.counts().cumsum(0) - felt.counts()
                for k, state, label in zip(group, felt.states[first].double().cpu(), felt.labels[first], strict=True):
                    states[k], labels[k] = state.numpy(), int(label)
        return np.stack(states), labels

    def blank(self, network: Network) -> Network:
        """The network with the entries of each of its tensors in another order: as large, and without knowledge."""
        draw = torch.Generator().manual_seed(self.seed)
        module = copy.deepcopy(network.module)
        with torch.no_grad():
            for parameter in module.parameters():
                order = torch.randperm(parameter.numel(), generator=draw).to(parameter.device)
                parameter.copy_(parameter.flatten()[order].view(parameter.shape))
        return network.fork(module)


def _probe_accuracy(
    states: "Float[np.ndarray, 'known width']",
    labels: "Int[np.ndarray, ' known']",
    asked: "Float[np.ndarray, 'asked width']",
    right: "Int[np.ndarray, ' asked']",
) -> "Bool[np.ndarray, ' asked']":
    """Whether a probe that learnt `labels` from `states` tells the right one of each state asked about."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a probe that goes on improving tells nonetheless
        told: np.ndarray = probe.fit(states, labels).predict(asked)
    hits: np.ndarray = told == right
    return hits
