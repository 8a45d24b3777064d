"""Events: what a method reports during a run. Each is a frozen dataclass; its `kind` names it in a file.

Losses are means over the examples of a set, in nats per row; lengths are Euclidean norms over parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True)
class Note:
    """One line about the progress of a run."""

    kind: ClassVar[str] = "phase"
    what: str
    step: int | None = None
    """The step that it belongs to, if any."""
    parts: int | None = None
    """Number of micro-batches of a step from here on, where it has changed."""


@dataclass(frozen=True)
class Started:
    """Training starts: what is trained, and its target."""

    kind: ClassVar[str] = "start"
    layers: int
    """Number of adapted layers."""
    trainable: int
    """Trainable parameters."""
    parameters: int
    """Parameters of the original model."""
    steps: int
    """Most steps."""
    level: float | None
    """Target loss of every forget example; None where there is none."""
    slack: float
    """Mean shortfall from the level that still passes, in nats."""
    level_source: str
    """Where the level comes from: the holdout set, or the user."""
    max_retain_increase: float | None
    """By how many nats the retain loss may rise (`Stop.max_retain_increase`); None without a retain set or a limit."""


@dataclass(frozen=True)
class Step:
    """A step was taken."""

    kind: ClassVar[str] = "step"
    step: int
    """Counted from 1."""
    loss: float
    """The objective's value."""
    forget: float | None
    """Loss of the step's forget examples; None where the objective reads none."""
    retain: float | None
    """Loss of the step's retain examples; None where the objective reads none."""
    gradient: dict[str, float]
    """Norm of the gradient, by part of the network (mlp, attention, other), before clipping."""
    delta: dict[str, float]
    """Norms of the change to the weights so far (frobenius, spectral); empty with `norms=False`."""
    learning_rate: float
    size: int
    """Tokens (or images) in the step."""
    seconds: float


@dataclass(frozen=True)
class Checked:
    """The losses between two steps, or before the first."""

    kind: ClassVar[str] = "check"
    step: int
    """Steps taken so far."""
    forget: float
    retain: float | None
    level: float | None
    short: float
    """Mean shortfall of the forget examples from the level, in nats; an example beyond it counts as 0."""


@dataclass(frozen=True)
class BlockGroups:
    """The change of each block, by an adapter that drops the update of blocks that hardly change."""

    norms: tuple[float, ...]
    """Norm of each adapted block's factors."""
    left: tuple[int, ...]
    """Numbers, from 0, of the blocks with an update."""


@dataclass(frozen=True)
class Ended:
    """Training has ended, and the best step's weights are restored."""

    kind: ClassVar[str] = "end"
    stopped: str
    """Why the run stopped."""
    kept_step: int
    """The best step, whose weights are the result's; 0 is the original model."""
    steps: int
    """Steps taken."""
    reached: bool
    """Whether the best step meets both limits of `Stop`."""
    kept_forget: float
    kept_short: float
    kept_rise: float | None
    """Nats by which the best step's retain loss exceeds the original model's."""
    groups: BlockGroups | None = None


@dataclass(frozen=True)
class Change:
    """How many parameters differ from the original model's, and their distance."""

    changed: int
    parameters: int
    distance: float


@dataclass(frozen=True)
class Edited:
    """A method without steps changed the model."""

    kind: ClassVar[str] = "edit"
    changed: int
    parameters: int
    distance: float
    blocks: dict[str, Change]
    """The same of each block, by its name."""
    selected: int | None = None
    """Parameters that a dampening edit shrank."""
    alpha: float | None = None
    """Threshold of the edit: their importance to the forget set is more than so many times that to all data."""
    losses: dict[str, float] = field(default_factory=dict)
    """Last values of the method's own losses, by name."""


Event = Started | Step | Checked | Edited | Ended | Note
EVENTS: tuple[type[Event], ...] = (Started, Step, Checked, Edited, Ended, Note)

OnEvent = Callable[[Event], None]
"""What a method calls with each event."""


def ignore_event(event: Event) -> None:
    """The default `on_event`: does nothing."""
