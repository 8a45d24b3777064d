"""Negative preference optimisation (Zhang et al., 2024, arXiv 2404.05868): gradient ascent that fades as answers become
unlikely.

    loss = (2 / beta) * E[ log(1 + (p_now(y|x) / p_before(y|x)) ** beta) ],   p of the whole answer

As beta goes to 0 its gradient becomes that of ascent on the summed log-probability. It starts at (2 / beta) log 2.
The sum over an answer's rows is the paper's; beside a row-mean retain term it weighs about as many times more as an
answer has rows, so give it a small weight (about 1 / rows).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch.nn.functional import softplus

from expunge.core.objective import Objective, Scalar
from expunge.core.view import View
from expunge.errors import UsageRefused
from expunge.notation.recipes import TOFU, Recipe

PUBLISHED = Recipe(
    "NPO",
    "language",
    f"Finetune(objective=NPO(beta=0.1) + RetainNLL(), steps=Epochs(count=10.0), {TOFU})",
    "Zhang et al., 2024 (beta 0.1, with a retain term), by open-unlearning's configuration for TOFU: "
    "AdamW at 1e-5, batches of 32, 10 epochs, both weights 1.",
)


@dataclass(frozen=True)
class NPO(Objective):
    """Push forget answers down, less and less as they become unlikely."""

    needs: ClassVar = ("forget", "reference")
    intention: ClassVar = "removal"

    beta: float = 0.1
    """How fast the gradient of an example fades as it becomes unlikely; larger is faster."""

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf:
            raise UsageRefused(f"The `beta` of NPO must be positive. Got {self.beta!r}.")

    def __call__(self, now: View, before: View) -> Scalar:
        drift = now.forget.sum(now.forget.log_prob() - before.forget.log_prob())
        return 2 / self.beta * now.forget.over_examples(softplus(self.beta * drift))
