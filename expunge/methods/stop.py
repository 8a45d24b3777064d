"""When a run stops, and by how much the retain loss may rise."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

from expunge.core.model import Model
from expunge.core.request import Request
from expunge.errors import RunFailed, UsageRefused
from expunge.train.best_step import BestStep, loss, sample


@dataclass(frozen=True)
class Stop:
    """The run ends when the forget examples are at `level` and the retain loss has risen by `max_retain_increase` at
    most.

    Shortfalls are measured example by example: a mean can reach the level by overshooting on some examples while others
    are known as before.
    """

    level: float | str | None = "holdout"
    """Loss for each row, in nats, that the forget examples must reach: a number, 'holdout' for the mean of the holdout
    set before the run (no level where there is none), or None to take every step."""
    slack: float = 0.25
    """Mean shortfall of the forget examples that still passes, in nats; an example beyond the level has none."""
    max_retain_increase: float | None = 0.1
    """By how many nats the retain loss may rise; None: without a limit."""
    max_forget_loss: float | None = 50.0
    """Mean loss of the forget examples, in nats a row, beyond which the run has run away and ends with the best step
    before: guessing among all words costs about 12. None: without a limit."""
    max_growth: float | None = 3.0
    """The same for the length of the weights' change, in lengths of all weights. None: without a limit."""
    every: int = 5
    """Steps between two checks. Each reads at most 64 examples of either set, without gradients."""

    def __post_init__(self) -> None:
        if self.level != "holdout" and (isinstance(self.level, str) or not math.isfinite(self.level or 0)):
            raise UsageRefused(f"Stop: level must be a number, 'holdout' or None. Got {self.level!r}.")
        if not 0 <= self.slack < math.inf:
            raise UsageRefused(f"Stop: slack must be at least 0. Got {self.slack!r}.")
        if self.every < 1:
            raise UsageRefused(f"Stop: every must be at least 1. Got {self.every!r}.")
        for name in ("max_forget_loss", "max_growth"):
            limit = getattr(self, name)
            if limit is not None and not 0 < limit < math.inf:
                raise UsageRefused(f"Stop: {name} must be None or above 0. Got {limit!r}.")
        if self.max_retain_increase is not None and not 0 <= self.max_retain_increase < math.inf:
            raise UsageRefused(
                f"Stop: max_retain_increase must be None or at least 0. Got {self.max_retain_increase!r}."
            )

    def watch(self, before: Model, request: Request) -> BestStep:
        """The state of one run; computes the level with the original model."""
        level, source = self.level, "given"
        if level == "holdout":
            level, source = (loss(before, request.holdout), "holdout") if request.holdout else (None, "none")
        assert not isinstance(level, str)
        if level is not None and not math.isfinite(level):
            raise RunFailed(
                "The model's loss on the holdout set is NaN or infinite, so it is no level. Check the model's weights."
            )
        return BestStep(
            level,
            self.slack,
            source,
            self.max_retain_increase,
            sample(request.forget),
            sample(request.retain),
            max_forget_loss=self.max_forget_loss,
            max_growth=self.max_growth,
        )


UNSTOPPED = Stop(level=None, max_retain_increase=None, max_forget_loss=None, max_growth=None, every=sys.maxsize)
"""No reason to stop before the last step."""
