"""What a verdict asks of a measure's numbers: each measure declares it in its own file."""

from __future__ import annotations

from dataclasses import dataclass

from expunge.primitives.estimates import Estimator, mean_estimate
from expunge.primitives.meanings import is_unseen


@dataclass(frozen=True)
class Tolerance:
    """The smallest difference that matters: `least`, or `share` of the value compared with, whichever is larger."""

    least: float = 0.0
    share: float = 0.0

    def of(self, value: float) -> float:
        """The tolerance beside a value."""
        return max(self.least, self.share * abs(value))


@dataclass(frozen=True)
class Standard:
    """How far a measure's number may lie from what it should be."""

    gone: float | None = None
    """From the value of a model that never saw what should be gone; None: it does not judge forgetting."""
    trace: float | None = None
    """From the value at which forgotten and never seen records look alike; None: it does not judge traces."""
    stay: Tolerance | None = None
    """Worse than before, on what should stay; None: it does not judge harm."""
    retain: Tolerance | None = None
    """The same on the retain set, which training reads; None: as on other sets."""
    text: Tolerance | None = None
    """The same on running texts, of which each token counts; None: as on other sets."""
    luck: bool = False
    """Whether on what no model was taught, such as the holdout set, the value is luck, which nothing can harm."""
    less_is_fine: bool = False
    """Whether a model may know less of what should be gone than one that never saw it; a reference still counts."""
    estimate: Estimator = mean_estimate
    """From the records' scores to the value, its interval and each record's part in it."""

    def harm(self, where: str, running: bool) -> Tolerance | None:
        """How much worse a set that should stay may be; `running`: whether it is of running texts."""
        if is_unseen(where) and self.luck:
            return None
        if running and self.text is not None:
            return self.text
        return self.retain if where == "retain" and self.retain is not None else self.stay
