"""Distil to delete, feature form (D2DGN, Sinha et al., 2023, arXiv 2309.16173): two teachers, by their hidden states.

    loss = alpha * E_retained || h_now - h_before ||^2  +  (1 - alpha) * E_deleted || h_now - h_random ||^2

h are the states after a layer, of both nodes where a row is two; the squares are summed over them and averaged over
rows. The preserver is the trained network, the destroyer one of the same shape with random weights, drawn once.

Needs the hidden states of the forget set and the retain set, with the reference. Meant as removal.
"""

from dataclasses import dataclass
from typing import ClassVar

from expunge.core.objective import Objective, Scalar
from expunge.core.view import View
from expunge.errors import UsageRefused
from expunge.notation.recipes import ALL_STEPS, Recipe
from expunge.objectives._untaught import ask_untaught
from expunge.objectives.retain_hidden import RetainHidden
from expunge.primitives.class_scores import widen
from expunge.primitives.settings import check_finite, check_seed

PUBLISHED = Recipe(
    "D2DGNFeatures",
    "graph",
    "Finetune(objective=D2DGNFeatures(alpha=0.5), adapter=Full(), learning_rate=0.001, steps=100, batch=1024, "
    f"retain_batch=1024, {ALL_STEPS})",
    "As D2DGN, by squared error of the last layer's states.",
)


@dataclass(frozen=True)
class D2DGNFeatures(Objective):
    """Keep the retain set's states where they were, and move the forget set's to those of a network without
    knowledge."""

    needs: ClassVar = ("forget", "retain", "reference", "hidden")
    intention: ClassVar = "removal"

    alpha: float = 0.5
    """Weight of what is retained, from 0 to 1; the rest is that of what is deleted."""
    layer: int | float = 0.99
    """Layer after which states are read: its number from 0, or a share of the depth below 1.0; 0.99 is the last."""
    seed: int = 0
    """Draws the destroyer's weights."""

    def __post_init__(self) -> None:
        check_finite(self, "alpha", "layer")
        check_seed(self)
        if not 0 <= self.alpha <= 1:
            raise UsageRefused(f"The `alpha` of D2DGNFeatures must be from 0 to 1. Got {self.alpha!r}.")

    def __call__(self, now: View, before: View) -> Scalar:
        hidden = now.hidden_states("forget", self.layer)
        random = ask_untaught(self, self.seed, now, before).hidden_states("forget", self.layer)
        away = hidden.over_rows((widen(hidden.states) - widen(random.states)).square().sum(-1))
        return self.alpha * RetainHidden(self.layer)(now, before) + (1 - self.alpha) * away
