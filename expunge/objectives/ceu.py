"""Cross-entropy unlearning (CE-U, Yang, 2025, arXiv 2503.01224): the target is the model's distribution without y.

    loss = mean over labelled rows of  CE( softmax(z with z[y] = -inf), p_now ),   the target held constant

Its gradient is that of ascent times p / (1 - p), p = p(y): p on the right score, -p_v p / (1 - p) on the others. So it
fades where the answer is unlikely, and never exceeds p.

Needs the forget set. Meant as removal. Published: the first row of an answer is skipped (`skip`), no retain term.
Skipped rows still count in the mean, and an answer without other rows is not skipped. Without a retain term it wrecked
a small model; `CEU() + RetainNLL()` forgot everything and kept the rest, but overshot (membership AUC 0.03).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from expunge.core.objective import Objective, Scalar
from expunge.core.predictions import Rows
from expunge.core.view import View
from expunge.errors import UsageRefused
from expunge.notation.recipes import TOFU, Recipe

PUBLISHED = Recipe(
    "CEU",
    "language",
    f"Finetune(objective=CEU(skip=1), steps=Epochs(count=10.0), {TOFU})",
    "Yang, 2025: the first token skipped, no retain term. Its rate was not found: open-unlearning's "
    "configuration for TOFU: AdamW at 1e-5, batches of 32, 10 epochs.",
)


@dataclass(frozen=True)
class CEU(Objective):
    """Move the right answer's probability to the other classes, in their current proportions."""

    needs: ClassVar = ("forget",)
    intention: ClassVar = "removal"

    skip: int = 1
    """Rows at the start of each answer that are skipped."""

    def __post_init__(self) -> None:
        if self.skip < 0:
            raise UsageRefused(f"The `skip` of CEU must be at least 0. Got {self.skip!r}.")

    def __call__(self, now: View, before: View) -> Scalar:
        forget = now.forget
        return forget.over_rows(forget.each_row(_to_the_others) * self._rows_to_push(forget))

    def _rows_to_push(self, forget: Rows) -> Tensor:
        """Which rows are not skipped."""
        counts = forget.counts()
        place = torch.arange(len(forget.example), device=counts.device) - (counts.cumsum(0) - counts)[forget.example]
        return (place >= self.skip) | (counts[forget.example] <= self.skip)


def _to_the_others(labels: Tensor, logits: Tensor) -> Tensor:
    target = logits.detach().scatter(-1, labels[:, None], -torch.inf).softmax(-1)
    return -(target * logits.log_softmax(-1)).sum(-1)
