"""Direct preference optimisation (Rafailov et al., 2023, arXiv 2305.18290) of another answer over the forgotten one.

    loss = -(2 / beta) * E[ log sigmoid( beta * (drift of the stand-in - drift of the forget answer) ) ]
    drift = sum over the answer's rows of  log p_now - log p_before

The stand-in set decides what this is: with refusals it is IdkDPO (Maini et al., 2024; suppression by nature), with
plausible wrong answers AltPO (Mekala et al., 2024, arXiv 2409.13474). It starts at (2 / beta) log 2. Each forget record
is paired with the stand-in of the same id. Sums over rows are the paper's: beside a row-mean retain term use a small
weight.

Needs the forget set, the stand-in set and the reference. Meant as removal (a preference-style loss). beta 0.1 is
TOFU's, AltPO tried 0.05 to 0.5; both add `RetainNLL()`. On a small model AltPO cost a fifth of what was retained.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import softplus

from expunge.core.objective import Objective, Scalar
from expunge.core.predictions import Predictions
from expunge.core.view import View
from expunge.errors import DataRefused, UsageRefused
from expunge.notation.recipes import TOFU, Recipe

PUBLISHED = (
    Recipe(
        "IdkDPO",
        "language",
        f"Finetune(objective=DPO(beta=0.1) + RetainNLL(), steps=Epochs(count=10.0), {TOFU})",
        "open-unlearning's configuration for TOFU: AdamW at 1e-5, batches of 32, 10 epochs, beta 0.1, "
        "both weights 1. Give refusals with --stand-in.",
        "DPO of refusals over the forgotten answers (Maini et al., 2024, TOFU, arXiv 2401.06121).",
    ),
    Recipe(
        "AltPO",
        "language",
        f"Finetune(objective=DPO(beta=0.1) + RetainNLL(), steps=Epochs(count=10.0), {TOFU})",
        "Mekala et al., 2024, who tried beta 0.05, 0.1 and 0.5, rates of 1e-5 to 5e-5 and retain weights "
        "of 1 to 5: the middle beta, else open-unlearning's configuration for TOFU: AdamW at 1e-5, "
        "batches of 32, 10 epochs. Give plausible wrong answers with --stand-in.",
        "DPO of plausible wrong answers over the forgotten ones (Mekala et al., 2024, arXiv 2409.13474).",
    ),
)


@dataclass(frozen=True)
class DPO(Objective):
    """Prefer the stand-in answer to the forgotten one, more than the model did before."""

    needs: ClassVar = ("forget", "stand_in", "reference")
    intention: ClassVar = "removal"

    beta: float = 0.1
    """How fast the gradient of a pair fades once the stand-in is preferred; larger is faster."""

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf:
            raise UsageRefused(f"The `beta` of DPO must be positive. Got {self.beta!r}.")

    def __call__(self, now: View, before: View) -> Scalar:
        _check_pairs(now)
        ahead = _drift(now.stand_in, before.stand_in) - _drift(now.forget, before.forget)
        return 2 / self.beta * now.forget.over_examples(softplus(-self.beta * ahead))


def _drift(now: Predictions, before: Predictions) -> Tensor:
    return now.sum(now.log_prob() - before.log_prob())


def _check_pairs(now: View) -> None:
    ours, others = ([example.id for example in now.batch(name)] for name in ("forget", "stand_in"))
    if ours != others:
        raise DataRefused(
            "DPO pairs each forget record with the stand-in of the same id, but the ids of the two sets differ "
            f"(forget: {', '.join(ours[:3])}; stand_in: {', '.join(others[:3])}). Give each stand-in its record's id."
        )
