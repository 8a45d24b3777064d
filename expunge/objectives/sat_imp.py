"""Ascent weighted by saturation and importance (SatImp, Yang et al., 2025, arXiv 2505.11953).

    loss = -mean over labelled rows of  p(y) ** beta1 * (1 - p(y)) ** beta2 * CE(y),   the weight held constant

beta1 lowers the weight of rows already unlikely, beta2 that of rows still certain. With both 0 it is plain ascent, with
beta2 = 0 it is WGA.

Needs the forget set. Meant as removal. Published: beta1 5, beta2 1, `0.1 * SatImp() + RetainNLL()`. The published beta2
is inert on a model that has memorised the forget set: where p is about 1 the weight is about 0, and nothing was
forgotten on a small one. `SatImp(beta1=1.0, beta2=0.05)` worked there.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from expunge.core.objective import Objective, Scalar
from expunge.core.view import View
from expunge.errors import UsageRefused
from expunge.notation.recipes import TOFU, Recipe

PUBLISHED = Recipe(
    "SatImp",
    "language",
    f"Finetune(objective=0.1 * SatImp(beta1=5.0, beta2=1.0) + RetainNLL(), steps=Epochs(count=5.0), {TOFU})",
    "Yang et al., 2025, by open-unlearning's configuration: beta1 5, beta2 1, weights 0.1 and 1, 5 epochs at 1e-5.",
)


@dataclass(frozen=True)
class SatImp(Objective):
    """Raise the cross-entropy of rows that are neither certain nor unlikely."""

    needs: ClassVar = ("forget",)
    intention: ClassVar = "removal"

    beta1: float = 5.0
    """How fast the weight of a row falls as it becomes unlikely."""
    beta2: float = 1.0
    """How much the weight of a row is lowered while it is certain."""

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageRefused(f"The `{name}` of SatImp must be at least 0. Got {getattr(self, name)!r}.")

    def __call__(self, now: View, before: View) -> Scalar:
        log_prob = now.forget.log_prob()
        constant = log_prob.detach()
        # expm1 keeps what 1 - p would round away where p is about 1; a log-probability may round to just above 0.
        certain = (-constant.clamp(max=0).expm1()) ** self.beta2
        return now.forget.over_rows((self.beta1 * constant).exp() * certain * log_prob)
