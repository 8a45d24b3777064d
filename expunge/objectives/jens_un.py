"""JensUn (Singh et al., 2025, arXiv 2509.02820): a bounded distance to a refusal, token by token.

    loss = mean over labelled rows of the stand-in answers of  JSD( p_now, onehot(y) )
         = mean of  log 2 + (p log p - (1 + p) log(1 + p)) / 2,   p = p_now(y): from log 2 (p = 0) to 0 (p = 1)

The divergence from a one-hot distribution depends on the right class alone. Its gradient on the score of y vanishes
with p, so a refusal that the model finds impossible has hardly any gradient: start with a few steps of `IdkNLL()`.

Needs the stand-in set (refusals such as "No idea"). Meant as suppression: only the refusal is trained. The paper adds
its retain half: `JensUn() + RetainJSD()`.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from expunge.core.objective import Objective, Scalar
from expunge.core.view import View
from expunge.notation.recipes import TOFU, Recipe

LOG_2 = math.log(2)


PUBLISHED = Recipe(
    "JensUn",
    "language",
    f"Finetune(objective=JensUn() + RetainJSD(), steps=Epochs(count=10.0), {TOFU})",
    "Singh et al., 2025: both halves with weight 1. Rate and length were not found: "
    "open-unlearning's configuration for TOFU: AdamW at 1e-5, batches of 32, 10 epochs. Give "
    "refusals with --stand-in.",
)


@dataclass(frozen=True)
class JensUn(Objective):
    """Make the stand-in answers certain, by a loss that cannot exceed log 2."""

    needs: ClassVar = ("stand_in",)
    intention: ClassVar = "suppression"

    def __call__(self, now: View, before: View) -> Scalar:
        return now.stand_in.over_rows(_distance(now.stand_in.log_prob()))


def _distance(log_prob: Tensor) -> Tensor:
    """JSD between p and a one-hot distribution, in nats: written so that p = 1 gives 0 exactly."""
    p = log_prob.exp()
    return (p * log_prob - (1 + p) * ((p - 1) / 2).log1p() + (1 - p) * LOG_2) / 2
