"""Simple NPO (Fan et al., 2024, arXiv 2410.07163): NPO without a reference, on the mean log-probability of an answer.

    loss = (2 / beta) * E_examples[ log(1 + exp(beta * A + margin)) ],   A = mean over the answer's rows of log p_now

    -(2 / beta) log sigmoid(-(beta / T) S - margin) of the paper is the same. Gradient: that of S, times
    (2 / T) r / (1 + r) with r = exp(beta * A + margin); as beta goes to 0 (margin 0) that is ascent on A.

Needs the forget set. Meant as removal. `0.125 * SimNPO() + RetainNLL()` is the published sum (beta 2.5 to 4.5, margin
0; papers and code differ in where beta and margin stand: the formula above is what counts). On a small model that had
memorised 60 people beta 2.5 with weight 1 forgot them all, while beta 4.5 with weight 0.125 stopped half-way.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch.nn.functional import softplus

from expunge.core.objective import Objective, Scalar
from expunge.core.view import View
from expunge.errors import UsageRefused
from expunge.notation.recipes import TOFU, Recipe
from expunge.primitives.settings import check_finite

PUBLISHED = Recipe(
    "SimNPO",
    "language",
    f"Finetune(objective=0.125 * SimNPO(beta=4.5, margin=0.0) + RetainNLL(), steps=Epochs(count=10.0), {TOFU})",
    "Fan et al., 2024 (beta 2.5 to 4.5), by open-unlearning's configuration for TOFU: AdamW at 1e-5, "
    "batches of 32, 10 epochs, beta 4.5, weights 0.125 and 1.",
)


@dataclass(frozen=True)
class SimNPO(Objective):
    """Push forget answers down by their mean log-probability, less and less as they become unlikely."""

    needs: ClassVar = ("forget",)
    intention: ClassVar = "removal"

    beta: float = 2.5
    """How fast the gradient of an answer fades as it becomes unlikely; larger is faster."""
    margin: float = 0.0
    """Shifts where the gradient fades: a larger one delays it."""

    def __post_init__(self) -> None:
        check_finite(self, "margin")
        if not 0 < self.beta < math.inf:
            raise UsageRefused(f"The `beta` of SimNPO must be positive. Got {self.beta!r}.")

    def __call__(self, now: View, before: View) -> Scalar:
        mean = now.forget.mean(now.forget.log_prob())
        return 2 / self.beta * now.forget.over_examples(softplus(self.beta * mean + self.margin))
