"""Retain by hidden states: the retain half of RMU (Li et al., 2024, WMDP, arXiv 2403.03218).

    loss = mean over labelled rows of  || h_now(x_r) - h_before(x_r) ||^2,   h the state after block `layer`

The norm is summed over the width, as RMU's is, so that the published weight (1200) means the same. At the start it is
0, and so is its gradient. Later blocks do not run.

Needs the retain set's hidden states, now and in the reference. Meant as retention.
"""

from dataclasses import dataclass
from typing import ClassVar

from expunge.core.objective import Objective, Scalar
from expunge.core.view import View
from expunge.primitives.class_scores import widen
from expunge.primitives.settings import check_finite


@dataclass(frozen=True)
class RetainHidden(Objective):
    """Keep the retain set's hidden states where they were."""

    needs: ClassVar = ("retain", "reference", "hidden")
    intention: ClassVar = "retention"

    layer: int | float = 7 / 32
    """Block after which states are read: its number from 0, or a share of the depth below 1.0 (published: 7 of 32)."""

    def __post_init__(self) -> None:
        check_finite(self, "layer")

    def __call__(self, now: View, before: View) -> Scalar:
        hidden, was = now.hidden_states("retain", self.layer), before.hidden_states("retain", self.layer)
        return hidden.over_rows((widen(hidden.states) - widen(was.states)).square().sum(-1))
