"""Refusal tuning (IdkNLL, also called PO; Maini et al., 2024, TOFU, arXiv 2401.06121): learn to give other answers.

    loss = CE(y_s | x_f),   mean over the labelled rows of the stand-in answers, in nats

Needs the stand-in set: the forget prompts with refusals ("I don't know"), drawn beforehand. Meant as suppression, and
it does no more: on a small model it refused every forgotten question, while the forgotten answers stayed as likely as
before after their first token, and membership, relearning and probes found everything. Published with `RetainNLL()`,
both with weight 1.
"""

from dataclasses import dataclass
from typing import ClassVar

from expunge.core.objective import Objective, Scalar
from expunge.core.view import View
from expunge.notation.recipes import TOFU, Recipe

PUBLISHED = Recipe(
    "IdkNLL",
    "language",
    f"Finetune(objective=IdkNLL() + RetainNLL(), steps=Epochs(count=10.0), {TOFU})",
    "open-unlearning's configuration for TOFU: AdamW at 1e-5, batches of 32, 10 epochs, both weights "
    "1. Give refusals with --stand-in.",
)


@dataclass(frozen=True)
class IdkNLL(Objective):
    """Make the stand-in answers likely."""

    needs: ClassVar = ("stand_in",)
    intention: ClassVar = "suppression"

    def __call__(self, now: View, before: View) -> Scalar:
        return now.stand_in.nll()
