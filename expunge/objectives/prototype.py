"""The prototype half of GS-LoRA++ (Zhao et al., 2025, arXiv 2501.09705): move away from a class's mean distribution.

    loss = E_examples[ max(0, bound - KL(p_c || p_now)) ],   KL as a mean over the example's rows, in nats
    p_c = mean of p_before over the rows of the whole forget set whose right class is c, computed once

Written for classifiers. With a language model a class is a token, and the prototypes take (tokens that occur) times
(vocabulary) numbers. The paper hinges the mean of a batch; here each example is, so that micro-batches add up.

Needs the forget set and the reference. Meant as removal. Published: bound 18 (50 with four images a class), weight 0.01
to 0.05, beside GS-LoRA's terms.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
from torch import Tensor

from expunge.core.objective import Objective, Scalar
from expunge.core.question import Scores
from expunge.core.view import View
from expunge.errors import UsageRefused
from expunge.primitives.class_scores import divergence, widen


@dataclass(frozen=True)
class Prototype(Objective):
    """Move each forget example's distribution away from its class's mean distribution, up to a bound."""

    needs: ClassVar = ("forget", "reference")
    intention: ClassVar = "removal"

    bound: float = 18.0
    """Nats of divergence beyond which an example has no gradient."""

    def __post_init__(self) -> None:
        if not 0 < self.bound < math.inf:
            raise UsageRefused(f"The `bound` of Prototype must be positive. Got {self.bound!r}.")

    def __call__(self, now: View, before: View) -> Scalar:
        key = repr(self)
        if key not in now.run.memory:
            now.run.memory[key] = _prototypes(before)
        classes, table = cast(tuple[Tensor, Tensor], now.run.memory[key])
        said = now.forget
        typical = replace(said, states=table[torch.searchsorted(classes, said.labels)].log(), head=None)
        away = said.mean(said.each_row(divergence, typical))
        return said.over_examples((self.bound - away).clamp(min=0))


def _prototypes(before: View) -> tuple[Tensor, Tensor]:
    """The classes that occur, sorted, and the mean distribution of each."""
    totals: dict[int, Tensor] = {}
    counts: dict[int, float] = {}
    for said in before.every(Scores(), "forget"):
        weights = said.each_weight()[said.example].tolist()
        for label, weight, logits in zip(said.labels.tolist(), weights, widen(said.logits), strict=True):
            totals[label] = totals.get(label, 0) + weight * logits.softmax(-1)
            counts[label] = counts.get(label, 0) + weight
    order = sorted(totals)
    table = torch.stack([totals[label] / counts[label] for label in order])
    return torch.tensor(order, device=table.device), table
