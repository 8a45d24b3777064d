"""Representation misdirection (RMU, Li et al., 2024, WMDP, arXiv 2403.03218): steer hidden states to a fixed direction.

    loss = mean over labelled rows of  || h_now(x_f) - strength * u ||^2,   h the state after block `layer`

u has length 1; its entries are drawn uniformly from [0, 1), so it is nearly the all-ones direction and easy to find.
The
norm is summed over the width, as in the paper; the authors' code takes the mean. Later blocks do not run, and
their weights get no gradient.

Needs the forget set's hidden states: a transformer (of images, one with a class token). Meant as suppression: the
knowledge is made hard to read, not taken away. `RMU() + 1200.0 * RetainHidden()` is the published sum (7 B parameters,
layer 7 of 32, strength 6.5, only the MLP's output matrices of layers 5 to 7, learning rate 5e-5, 150 steps). The
strength must be a multiple of the states' own length: on a 4-layer model with states of length 5 to 20, strength 20 was
inert in 40 steps at 3e-4, and 60 with a retain weight of 1 forgot everything in 100 steps at 1e-3 but kept 0.84 of the
rest. `AdaptiveRMU` measures that length.
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
    "RMU",
    "language",
    "Finetune(objective=RMU(strength=6.5, layer=0.21875) + 1200.0 * RetainHidden(layer=0.21875), "
    f"adapter=Full(), learning_rate=5e-05, steps=150, batch=4, retain_batch=4, {ALL_STEPS})",
    "Li et al., 2024, for a model of 7 B: layer 7 of 32, strength 6.5, retain weight 1200, 150 "
    "batches of 4 at 5e-5. There only the MLP's output matrices of three layers are trained; here "
    "all weights up to that layer.",
)


@dataclass(frozen=True)
class RMU(Objective):
    """Move the forget set's hidden states to one far point."""

    needs: ClassVar = ("forget", "hidden")
    intention: ClassVar = "suppression"

    strength: float = 6.5
    """Length of the vector that the states are moved to (the paper's c)."""
    layer: int | float = 7 / 32
    """Block after which states are read: its number from 0, or a share of the depth below 1.0 (published: 7 of 32)."""
    seed: int = 0
    """Draws the direction."""

    def __post_init__(self) -> None:
        check_finite(self, "strength", "layer")
        check_seed(self)

    def __call__(self, now: View, before: View) -> Scalar:
        hidden = now.hidden_states("forget", self.layer)
        states = widen(hidden.states)
        away = states - self.strength * positive_unit(states, self.seed)
        return hidden.over_rows(away.square().sum(-1))
