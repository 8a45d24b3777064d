"""A number of steps, by how well the forget set is known: what is known by heart has a longer way to go.

steps = max(least, epochs * examples / batch, count * gap);   `least` for images of a class that is deleted
gap = mean log-odds of the forget set's rows - that of the holdout set's

Log-odds are those of a row's right class under the model that is to forget, log(p / (1 - p)), and a row of the holdout
set is one that it never saw. (Our own. A loss would not do: at 0.01 and at 0.0001 it is known by heart, and the second
is twice as far from where it should go.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from expunge.core.question import LogProbabilities
from expunge.errors import UsageRefused
from expunge.internals.examples import are_absent
from expunge.primitives.log_odds import log_odds

if TYPE_CHECKING:
    from expunge.core.model import Network
    from expunge.core.request import Request


@dataclass(frozen=True)
class Memorised:
    """Steps for each unit of log-odds by which the forget set is likelier than the holdout set."""

    count: float = 20.0
    """Steps for each unit."""
    epochs: float = 10.0
    """Fewest passes through the forget set."""
    least: int = 100
    """Fewest steps."""

    def __post_init__(self) -> None:
        for name in ("count", "epochs"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageRefused(
                    f"The `{name}` of Memorised must be at least 0 and finite. Got {getattr(self, name)!r}."
                )
        if self.least < 1:
            raise UsageRefused(f"The `least` of Memorised must be at least 1. Got {self.least!r}.")

    def steps(self, network: Network, request: Request, batch: int) -> int:
        """Steps of so many examples each. Without a holdout set, or where the model has no weights yet, the gap counts
        for nothing. A class that is deleted goes as one: `least`."""
        if are_absent(request.forget, request.retain):
            return self.least
        size = len(request.forget)
        passes = self.epochs * size / min(batch, size)
        return max(self.least, round(passes), round(self.count * self.gap(network, request)))

    def gap(self, network: Network, request: Request) -> float:
        """Mean log-odds of the forget set's rows, less the holdout set's."""
        if not request.holdout or network.device.type == "meta":
            return 0.0
        said = [network.ask(LogProbabilities(), each).log_probs for each in (request.forget, request.holdout)]
        return float(log_odds(said[0]).mean() - log_odds(said[1]).mean())
