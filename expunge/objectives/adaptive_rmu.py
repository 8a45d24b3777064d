"""Adaptive RMU (Huu-Tien et al., 2025, arXiv 2408.06223): RMU whose strength follows the length of each state.

    loss = mean over labelled rows of  || h_now(x_f) - scale * ||h_before(x_f)|| * u ||^2

u is RMU's. The length is that of the row's own state in the model before, so the scale does not depend on the model.

Needs the forget set's hidden states, now and in the reference. Meant as suppression. Published: scale 5 (one port uses
3), `AdaptiveRMU() + 1200.0 * RetainHidden()`, 500 steps. On a 4-layer model scale 3 was inert in 40 steps at 3e-4, and
scale 5 with a retain weight of 1 left 0.17 of the forget set and 0.65 of the rest after 100 steps at 1e-3.
"""

from dataclasses import dataclass
from typing import ClassVar

from expunge.core.objective import Objective, Scalar
from expunge.core.view import View
from expunge.notation.recipes import ALL_STEPS, Recipe
from expunge.objectives._directions import positive_unit
from expunge.primitives.class_scores import widen
from expunge.primitives.settings import check_finite, check_seed

PUBLISHED = Recipe(
    "AdaptiveRMU",
    "language",
    "Finetune(objective=AdaptiveRMU(scale=5.0, layer=0.21875) + 1200.0 * "
    "RetainHidden(layer=0.21875), adapter=Full(), learning_rate=5e-05, steps=500, batch=4, "
    f"retain_batch=4, {ALL_STEPS})",
    "Huu-Tien et al., 2025: scale 5, retain weight 1200, 500 batches of 4; layer and rate are RMU's. "
    "All weights up to that layer are trained, not three layers' output matrices.",
)


@dataclass(frozen=True)
class AdaptiveRMU(Objective):
    """Move the forget set's hidden states to points a multiple of their own length away."""

    needs: ClassVar = ("forget", "reference", "hidden")
    intention: ClassVar = "suppression"

    scale: float = 5.0
    """Length of the vector that a state is moved to, in lengths of that state before."""
    layer: int | float = 7 / 32
    """Block after which states are read: its number from 0, or a share of the depth below 1.0 (published: 7 of 32)."""
    seed: int = 0
    """Draws the direction."""

    def __post_init__(self) -> None:
        check_finite(self, "scale", "layer")
        check_seed(self)

    def __call__(self, now: View, before: View) -> Scalar:
        hidden = now.hidden_states("forget", self.layer)
        states = widen(hidden.states)
        lengths = widen(before.hidden_states("forget", self.layer).states).norm(dim=-1, keepdim=True)
        away = states - self.scale * lengths * positive_unit(states, self.seed)
        return hidden.over_rows(away.square().sum(-1))
