"""A number of steps, by how often a set is gone through: as papers count them.

steps = count * examples / batch, to the nearest whole number, at least 1
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from expunge.errors import DataRefused, UsageRefused

if TYPE_CHECKING:
    from expunge.core.request import Request


@dataclass(frozen=True)
class Epochs:
    """Passes through a set; a method turns them into steps for the request that it is given."""

    count: float = 1.0
    """How often each example of the set is read; need not be whole."""
    of: Literal["forget", "retain"] = "forget"
    """The set that is gone through."""

    def __post_init__(self) -> None:
        if not 0 < self.count < math.inf:
            raise UsageRefused(f"The `count` of Epochs must be positive and finite. Got {self.count!r}.")
        if self.of not in ("forget", "retain"):
            raise UsageRefused(f"The `of` of Epochs must be forget or retain. Got {self.of!r}.")

    def steps(self, request: Request, batch: int) -> int:
        """Steps of so many examples each; where the set has fewer than `batch`, a step reads all of it."""
        size = len(request.forget if self.of == "forget" else request.retain)
        if not size:
            raise DataRefused("Epochs go through the retain set, and the request has none. Give --retain.")
        return max(1, round(self.count * size / min(batch, size)))
