"""Forgetting up to the unseen (of our own making): say of the forgotten what the model says of what it never saw.

    rows where forget example and twin ask for the same token:   KL( p_before(. | twin) || p_now(. | x_f) )
    rows where they do not (the name itself):                    | log p_now(y_f | x_f) - log p_before(y_t | twin) |
    loss = mean over the labelled rows

A twin is the forget example with the name of an entity that nobody ever trained on in place of the forgotten one. What
the model says of it, token by token, is where an example lies that was never seen: a bounded goal, reached from either
side, at which the loss is that of the holdout and no refusal is learnt. Rows are paired in their order; those beyond
the shorter of the two are left out.

Needs the stand-in set (the twins, with the ids of the forget set) and the reference. Meant as removal.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from expunge.core.objective import Objective, Scalar
from expunge.core.predictions import Predictions
from expunge.core.view import View
from expunge.errors import DataRefused
from expunge.primitives.class_scores import divergence


@dataclass(frozen=True)
class Unseen(Objective):
    """Bring each forget row to what was said of its never-seen twin."""

    needs: ClassVar = ("forget", "stand_in", "reference")
    intention: ClassVar = "removal"

    def __call__(self, now: View, before: View) -> Scalar:
        said = now.forget
        twin, paired = _beside(said, before.stand_in)
        toward = said.each_row(divergence, twin)
        level = (said.log_prob() - twin.log_prob().detach()).abs()
        asked = torch.where(said.labels == twin.labels, toward, level)
        return said.over_rows(torch.where(paired, asked, torch.zeros_like(asked)))


def _beside(said: Predictions, twin: Predictions) -> tuple[Predictions, torch.Tensor]:
    """The twin's row for each row of `said`, and whether there is one."""
    if said.examples != twin.examples:
        raise DataRefused(
            f"Unseen needs a twin for each forget example, in the stand-in set under the same id. "
            f"Got {twin.examples} for {said.examples}."
        )
    counts, others = said.counts(), twin.counts()
    place = torch.arange(len(said.labels), device=said.labels.device) - (counts.cumsum(0) - counts)[said.example]
    paired = place < others[said.example]
    row = (others.cumsum(0) - others)[said.example] + place.clamp(max=others[said.example] - 1)
    return replace(twin, labels=twin.labels[row], example=said.example, states=twin.states[row]), paired
