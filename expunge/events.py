"""Events: what a method says while it works. Each is a frozen dataclass; its `kind` names it in a file.

Losses are means over the examples of a set, in nats a row; lengths are Euclidean norms over parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True)
class Note:
    """One line about what is going on, for whoever waits."""

    kind: ClassVar[str] = "phase"
    what: str
    step: int | None = None
    """The step that it is about, if any."""
    parts: int | None = None
    """In how many parts steps are read from here on, where that has changed."""


@dataclass(frozen=True)
class Started:
    """Training begins: what may move, and what is aimed at."""

    kind: ClassVar[str] = "start"
    layers: int
    """Layers that were adapted."""
    trainable: int
    """Trainable parameters."""
    parameters: int
    """Parameters of the original model."""
    steps: int
    """Steps at most."""
    level: float | None
    """The loss that every forget example is to reach; None where there is no such level."""
    slack: float
    """Nats below the level that still pass, on average."""
    level_source: str
    """Where the level comes from: the holdout set, or the user."""
    max_retain_increase: float | None
    """Nats by which the retain loss may rise; None where nothing is retained or nothing bounds it."""


@dataclass(frozen=True)
class Step:
    """A step was taken."""

    kind: ClassVar[str] = "step"
    step: int
    """Counted from 1."""
    loss: float
    """The objective's value."""
    forget: float | None
    """Loss of the forget examples that the step read; None where the objective reads none."""
    retain: float | None
    """Loss of the retain examples that the step read; None where the objective reads none."""
    gradient: dict[str, float]
    """Norm of the gradient, by part of the network (mlp, attention, other), before clipping."""
    delta: dict[str, float]
    """Norms of the change to the weights so far (frobenius, spectral); empty where none was asked for."""
    learning_rate: float
    size: int
    """Tokens (or images) read."""
    seconds: float


@dataclass(frozen=True)
class Checked:
    """The losses were read between two steps, or before the first."""

    kind: ClassVar[str] = "check"
    step: int
    """How many steps had been taken."""
    forget: float
    retain: float | None
    level: float | None
    short: float
    """Nats that the forget examples fall short of the level, on average; none makes up for another."""


@dataclass(frozen=True)
class BlockGroups:
    """How far each block of the model was changed by an adapter that switches idle blocks off."""

    norms: tuple[float, ...]
    """Of each adapted block's factors."""
    left: tuple[int, ...]
    """Numbers, from 0, of the blocks that still change."""


@dataclass(frozen=True)
class Ended:
    """Training is over, and the best step was put back."""

    kind: ClassVar[str] = "end"
    stopped: str
    """Why no further step was taken."""
    kept_step: int
    """The best step, whose weights are the result's; 0 is the original model."""
    steps: int
    """Steps taken."""
    reached: bool
    """Whether the best step meets the level and the budget."""
    kept_forget: float
    kept_short: float
    kept_rise: float | None
    """Nats by which the best step's retain loss exceeds the original model's."""
    groups: BlockGroups | None = None


@dataclass(frozen=True)
class Change:
    """How many parameters differ from the original model's, and by how much."""

    changed: int
    parameters: int
    distance: float


@dataclass(frozen=True)
class Edited:
    """A method without steps has changed the model."""

    kind: ClassVar[str] = "edit"
    changed: int
    parameters: int
    distance: float
    blocks: dict[str, Change]
    """The same of each block, by its name."""
    selected: int | None = None
    """Parameters that a dampening edit chose."""
    alpha: float | None = None
    """A chosen parameter is more than so many times as important to the forget set as to all data."""
    losses: dict[str, float] = field(default_factory=dict)
    """Last values of the method's own losses, by name."""


Event = Started | Step | Checked | Edited | Ended | Note
EVENTS: tuple[type[Event], ...] = (Started, Step, Checked, Edited, Ended, Note)

OnEvent = Callable[[Event], None]
"""What a method calls with each event."""


def ignore_event(event: Event) -> None:
    """For callers who wait for the result alone."""
