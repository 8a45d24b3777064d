"""Bring each forget example to a level and hold it there: ascent below the level, descent above it.

    loss = E_examples[ |level - CE(y_f | x_f)| ],   CE = mean over the example's rows, in nats

With hinged ascent momentum carries an example beyond the level, and a loss far above that of unseen examples reveals
the forgotten as surely as one far below. This objective pulls it back. (Our own; the hinge is GS-LoRA's.)
"""

from dataclasses import dataclass
from typing import ClassVar

from expunge.core.objective import Objective, Scalar
from expunge.core.view import View
from expunge.notation.recipes import Recipe
from expunge.primitives.settings import check_finite

PUBLISHED = (
    Recipe(
        "Settle",
        "language",
        "Finetune()",
        "Our own, the default of texts without a holdout set: docs/log.md. It has a stop of its own.",
    ),
    Recipe(
        "Settle",
        "vision",
        "Finetune()",
        "Our own, for a level that is given or taken from a holdout set: docs/log.md. It has a stop of its own.",
    ),
    Recipe(
        "Settle",
        "graph",
        "Finetune(adapter=Full(), learning_rate=0.003, steps=200, batch=1024, retain_batch=1024, stop=Stop(every=5))",
        "Our own, the default of graphs without a holdout set: docs/graphs.md. Each step passes messages over the "
        "whole graph, so it reads many records. It has a stop of its own.",
    ),
)


@dataclass(frozen=True)
class Settle(Objective):
    """Move each forget example's cross-entropy to a level, from either side."""

    needs: ClassVar = ("forget",)
    intention: ClassVar = "removal"

    level: float | None = None
    """Nats for each row that every forget example should have; None takes the run's (see `Stop`), and where the run has
    none either, this is plain ascent."""

    def __post_init__(self) -> None:
        check_finite(self, "level")

    def __call__(self, now: View, before: View) -> Scalar:
        level = self.level if self.level is not None else now.run.level
        losses = now.forget.mean(-now.forget.log_prob())
        away = -losses if level is None else (level - losses).abs()
        return now.forget.over_examples(away)
