"""Self-distillation on lowered scores (UNDIAL, Dong et al., 2025, arXiv 2402.10052).

    loss = mean over labelled rows of  CE( softmax(z_before - strength * onehot(y)), p_now )

The target is fixed, so the loss is bounded below and training converges. At the reference its gradient is that of
ascent times p (1 - e^-strength) / (1 - p + p e^-strength), p = p(y): none for strength 0, CEU's for a large one.

Needs the forget set and the reference. Meant as removal. Published: strength 10 (3, 10, 30 tried), no retain term, LoRA
of rank 8 at learning rate 1e-4; a widely used implementation averages over prompt and padding too, so learning
rates do not carry over. Without a retain term it kept half of the retain set of a small model, and membership stayed
detectable (AUC 0.99).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from expunge.core.objective import Objective, Scalar
from expunge.core.view import View
from expunge.errors import UsageRefused
from expunge.notation.recipes import ALL_STEPS, Recipe

PUBLISHED = Recipe(
    "UNDIAL",
    "language",
    "Finetune(objective=UNDIAL(strength=10.0), adapter=LoRA(rank=8, alpha=16.0, targets='all'), "
    f"learning_rate=0.0001, steps=Epochs(count=10.0), batch=16, {ALL_STEPS})",
    "Dong et al., 2025, by open-unlearning's configuration: strength 10, LoRA of rank 8, 10 epochs "
    "in batches of 16 at 1e-4, no retain term.",
)


@dataclass(frozen=True)
class UNDIAL(Objective):
    """Distil the original model, with the right answer's score lowered."""

    needs: ClassVar = ("forget", "reference")
    intention: ClassVar = "removal"

    strength: float = 10.0
    """By how much the right answer's score is lowered in the target (the paper's beta)."""

    def __post_init__(self) -> None:
        if not 0 <= self.strength < math.inf:
            raise UsageRefused(f"The `strength` of UNDIAL must be at least 0. Got {self.strength!r}.")

    def __call__(self, now: View, before: View) -> Scalar:
        return now.forget.over_rows(now.forget.each_row(self._distance, before.forget))

    def _distance(self, labels: Tensor, logits: Tensor, was: Tensor) -> Tensor:
        lowered = was.scatter_add(-1, labels[:, None], was.new_full((len(labels), 1), -self.strength))
        return -(lowered.softmax(-1) * logits.log_softmax(-1)).sum(-1)
