"""Weighted gradient ascent (Wang et al., 2025, arXiv 2502.19301): ascent that weighs unlikely tokens less.

    loss = -mean over labelled rows of  p(y) ** beta * CE(y),   the weight p(y) ** beta held constant

With beta = 0 it is plain ascent. The weight cancels the factor 1 / p(y) by which the gradient of a cross-entropy is
largest at the least likely token.

Needs the forget set. Meant as removal. Published: beta 1, beside `RetainNLL()`; on a small model that forgot everything
and kept 0.99 of the rest, over three seeds.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from expunge.core.objective import Objective, Scalar
from expunge.core.view import View
from expunge.errors import UsageRefused
from expunge.notation.recipes import TOFU, Recipe

PUBLISHED = Recipe(
    "WGA",
    "language",
    f"Finetune(objective=WGA(beta=1.0) + RetainNLL(), steps=Epochs(count=5.0), {TOFU})",
    "Wang et al., 2025, by open-unlearning's configuration: beta 1, both weights 1, 5 epochs at 1e-5.",
)


@dataclass(frozen=True)
class WGA(Objective):
    """Raise the cross-entropy of the forget set, of likely rows first."""

    needs: ClassVar = ("forget",)
    intention: ClassVar = "removal"

    beta: float = 1.0
    """How fast the weight of a row falls as it becomes unlikely."""

    def __post_init__(self) -> None:
        if not 0 <= self.beta < math.inf:
            raise UsageRefused(f"The `beta` of WGA must be at least 0. Got {self.beta!r}.")

    def __call__(self, now: View, before: View) -> Scalar:
        log_prob = now.forget.log_prob()
        return now.forget.over_rows((self.beta * log_prob).exp().detach() * log_prob)
