"""Bring each forget example to a level and hold it there: ascent below the level, descent above it.

    loss = E_examples[ |level - CE(y_f | x_f)| ],   CE = mean over the example's rows, in nats

Where hinged ascent lets go, momentum carries an example on, and a loss far above that of never-seen examples betrays
the forgotten as surely as one far below. This one pulls it back. (Of our own making; the hinge is GS-LoRA's.)
"""

from dataclasses import dataclass
from typing import ClassVar

from expunge.core.objective import Objective, Scalar
from expunge.core.view import View


@dataclass(frozen=True)
class Settle(Objective):
    """Move each forget example's cross-entropy to a level, from either side."""

    needs: ClassVar = ("forget",)
    intention: ClassVar = "removal"

    level: float | None = None
    """Nats for each row that every forget example should have; None takes the run's (see `Stop`), and where the run has
    none either, this is ascent without an end."""

    def __call__(self, now: View, before: View) -> Scalar:
        level = self.level if self.level is not None else now.run.level
        losses = now.forget.mean(-now.forget.log_prob())
        away = -losses if level is None else (level - losses).abs()
        return now.forget.over_examples(away)
