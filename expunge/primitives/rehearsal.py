"""What the planner and a method tell each other while the method is rehearsed on a narrow network."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Rehearsal:
    """How a rehearsal stands for the run. The method sets it as it goes; the planner reads it at each pass."""

    most: int = 8
    """Of many equal steps, how many a rehearsal takes."""
    times: float = 1.0
    """How many passes of the run each pass from now on stands for."""
    before: float = 1.0
    """The same for passes through the original model."""
    opened: Callable[[Any, Any], AbstractContextManager[Any]] | None = None
    """`(network, request)` to the network as gradients are taken of it, for one whose weights have sizes and no
    contents; None: the
    network itself, with the parameters that move in the rehearsal."""
    shared: bool = False
    """Whether several processes hold a part each of the weights that move and read a part each of a step."""
    steps: int = 0
    """Steps of the run at most; 0 for a method without."""
    size: float = 0.0
    """Tokens, or images, that the steps of the run read, as its report counts them."""


@dataclass
class Clock(Rehearsal):
    """A rehearsal that adds up seconds, each as often as it stands for one of the run."""

    since: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "times" and "seconds" in vars(self):
            self.stop()
        super().__setattr__(name, value)

    def stop(self) -> None:
        """Count what has passed until now."""
        now = time.perf_counter()
        vars(self).update(seconds=self.seconds + self.times * (now - self.since), since=now)
