"""Ascent up to a measured level (after the bounded loss of GS-LoRA, Zhao et al., 2024, arXiv 2403.11530).

    loss = E_examples[ max(0, level - CE(y_f | x_f)) ],   CE = mean over the example's rows, in nats

An example that has reached the level has no gradient, so the retain term can repair what the ascent damaged, and
nothing is forgotten beyond the level of a model that never saw it. GS-LoRA sets the level by hand (BND).
"""

from dataclasses import dataclass
from typing import ClassVar

from expunge.core.objective import Objective, Scalar
from expunge.core.view import View
from expunge.primitives.settings import check_finite


@dataclass(frozen=True)
class HingedAscent(Objective):
    """Raise each forget example's cross-entropy to a level and no further."""

    needs: ClassVar = ("forget",)
    intention: ClassVar = "removal"

    level: float | None = None
    """Nats for each row at which an example counts as forgotten; None takes the run's (see `Stop`), and where the run
    has none either, this is plain ascent."""

    def __post_init__(self) -> None:
        check_finite(self, "level")

    def __call__(self, now: View, before: View) -> Scalar:
        level = self.level if self.level is not None else now.run.level
        losses = now.forget.mean(-now.forget.log_prob())
        short = -losses if level is None else (level - losses).clamp(min=0)
        return now.forget.over_examples(short)
