"""Forgetting up to the unseen (our own): the targets are the model's answers about examples that it never saw.

    rows where forget example and twin have the same label:      KL( p_before(. | twin) || p_now(. | x_f) )
    rows where they do not (the name itself):                    | log p_now(y_f | x_f) - log p_before(y_t | twin) |
    loss = mean over the labelled rows

A twin is the forget example with an invented name, which no model was trained on, in place of the forgotten one. The
model's distributions on the twin, token by token, are those of an unseen example: a bounded target, reached from either
side, at which the loss is that of the holdout and no refusal is learnt. Rows are paired in order; those beyond the
shorter of the two are left out.

Needs the stand-in set (the twins, with the ids of the forget set) and the reference. Meant as removal.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from expunge.core.objective import Objective, Scalar
from expunge.core.predictions import Predictions
from expunge.core.view import View
from expunge.errors import DataRefused
from expunge.notation.recipes import ALL_STEPS, Recipe
from expunge.primitives.class_scores import divergence

PUBLISHED = Recipe(
    "Unseen",
    "language",
    "Finetune(objective=Unseen() + RetainNLL() + RetainKL(), adapter=Bounded(rank=16, alpha=32.0, targets='all'), "
    f"learning_rate=0.0005, steps=120, batch=30, retain_batch=30, clip=1.0, {ALL_STEPS})",
    "Our own, as calibrated on a small model (docs/results.md). Give twins of the forget records with --stand-in.",
)


@dataclass(frozen=True)
class Unseen(Objective):
    """Move each forget row to the original model's distribution for its unseen twin."""

    needs: ClassVar = ("forget", "stand_in", "reference")
    intention: ClassVar = "removal"

    def __call__(self, now: View, before: View) -> Scalar:
        forget = now.forget
        twin, paired = _beside(forget, before.stand_in)
        toward = forget.each_row(divergence, twin)
        level = (forget.log_prob() - twin.log_prob().detach()).abs()
        asked = torch.where(forget.labels == twin.labels, toward, level)
        return forget.over_rows(torch.where(paired, asked, torch.zeros_like(asked)))


def _beside(forget: Predictions, twin: Predictions) -> tuple[Predictions, torch.Tensor]:
    """The twin's row for each row of the forget set, and whether there is one."""
    if forget.examples != twin.examples:
        raise DataRefused(
            f"Unseen needs a twin for each forget example, in the stand-in set under the same id. "
            f"Got {twin.examples} for {forget.examples}."
        )
    counts, others = forget.counts(), twin.counts()
    place = torch.arange(len(forget.labels), device=forget.labels.device) - (counts.cumsum(0) - counts)[forget.example]
    paired = place < others[forget.example]
    row = (others.cumsum(0) - others)[forget.example] + place.clamp(max=others[forget.example] - 1)
    return replace(twin, labels=twin.labels[row], example=forget.example, states=twin.states[row]), paired
