"""Retain by the original model: stay close to its distributions on the retain set (Maini et al., 2024, arXiv
2401.06121).

    loss = mean over labelled rows of  KL(p_before || p_now) = sum_v p_before(v) (log p_before(v) - log p_now(v))

Only labelled rows count, not prompts or padding. At the start it is 0, and so is its gradient.
"""

from dataclasses import dataclass
from typing import ClassVar

from expunge.core.objective import Objective, Scalar
from expunge.core.view import View
from expunge.notation.recipes import TOFU, Recipe
from expunge.primitives.class_scores import divergence

PUBLISHED = Recipe(
    "GA+KL",
    "language",
    f"Finetune(objective=Ascent() + RetainKL(), steps=Epochs(count=10.0), {TOFU})",
    "open-unlearning's configuration for TOFU: AdamW at 1e-5, batches of 32, 10 epochs, both weights 1.",
    "KL minimisation (Maini et al., 2024, TOFU): ascent, and the original distributions on the retain set.",
)


@dataclass(frozen=True)
class RetainKL(Objective):
    """Keep the whole distribution of the retain set's rows."""

    needs: ClassVar = ("retain", "reference")
    intention: ClassVar = "retention"

    def __call__(self, now: View, before: View) -> Scalar:
        return now.retain.over_rows(now.retain.each_row(divergence, before.retain))
