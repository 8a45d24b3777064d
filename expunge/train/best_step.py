"""Checks of a run: computes its losses between steps, keeps the best step's weights, and decides when to stop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from expunge.core.model import Batch, Model, Network
from expunge.core.predictions import mean_over
from expunge.core.question import LogProbabilities
from expunge.errors import RunFailed
from expunge.events import BlockGroups, Checked, Ended, OnEvent, Started

CHECKED = 64
"""Most examples of a set in a check, evenly spaced."""


NUMBERS = ("retain_at_start", "forget_at_start", "best", "best_step", "best_losses")
"""Fields of a run's state that a checkpoint holds beside the best weights."""


def sample(examples: Batch) -> Batch:
    """At most 64 examples, evenly spaced."""
    stride = max(1, math.ceil(len(examples) / CHECKED))
    return examples[::stride]


def losses(model: Model, examples: Batch) -> Tensor:
    """Each example's mean negative log-probability of a row, in nats."""
    row_scores = model.ask(LogProbabilities(), examples)
    return -row_scores.mean(row_scores.log_probs)


def loss(model: Model, examples: Batch) -> float:
    """Mean of the examples' losses, in nats."""
    return float(mean_over(losses(model, examples), examples))


def _number(value: Any) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise TypeError("a number")
    return value


@dataclass
class BestStep:
    """The best step so far and its weights.

    The best step has the least sum, in nats, of the shortfall beyond the slack and the rise of the retain loss beyond
    `max_retain_increase`; of equals, the one with the lower retain loss, or, without a retain set, the later one.
    """

    level: float | None
    slack: float
    source: str
    max_retain_increase: float | None
    forget: Batch
    retain: Batch
    retain_at_start: float = math.nan
    best: tuple[float, float] = (math.inf, math.inf)
    best_step: int = 0
    best_losses: tuple[float, float | None, float] = (math.nan, None, math.nan)
    state: dict[str, Tensor] = field(default_factory=dict)
    max_forget_loss: float | None = None
    max_growth: float | None = None
    forget_at_start: float = math.nan

    def start(self, layers: int, trainable: int, parameters: int, steps: int) -> Started:
        """The event of the start of a run."""
        limit = self.max_retain_increase if self.retain else None
        return Started(layers, trainable, parameters, steps, self.level, self.slack, self.source, limit)

    def check(
        self, step: int, adapted: Network, moving: Mapping[str, nn.Parameter], on_event: OnEvent, growth: float = 0.0
    ) -> str:
        """Compute the losses and keep the weights if they are the best. The reason to stop, or an empty string.

        `growth` is the length of the weights' change so far, in lengths of the weights. What has run away is not kept.
        """
        each = losses(adapted, self.forget)
        forget = float(mean_over(each, self.forget))
        retain = loss(adapted, self.retain) if self.retain else None
        if not math.isfinite(forget) or not math.isfinite(retain or 0.0):
            self.fail(step, "forget" if not math.isfinite(forget) else "retain", moving)
        if step == 0:
            self.retain_at_start, self.forget_at_start = math.nan if retain is None else retain, forget
        shortfall = float(mean_over((self.level - each).clamp(min=0), self.forget)) if self.level is not None else 0.0
        on_event(Checked(step, forget, retain, self.level, shortfall))
        away = self.run_away(forget, growth)
        if away:
            return away
        missing = max(0.0, shortfall - self.slack)
        over = self.excess(retain)
        rank = (missing + over, retain if retain is not None else -float(step))
        unbounded = self.level is None and step > 0 and over == 0
        if rank < self.best or unbounded:
            self.best, self.best_step, self.best_losses = rank, step, (forget, retain, shortfall)
            self.state = {name: p.detach().clone() for name, p in moving.items()}
        if self.level is not None and missing == 0 and over == 0:
            return f"the forget examples fall {shortfall:.2f} nats short of {self.level:.2f} ({self.source})"
        if self.level is None and over > 0:
            return f"the retain loss rose by more than {self.max_retain_increase} nats"
        return ""

    def run_away(self, forget: float, growth: float) -> str:
        """Why the run has run away: a loss beyond any that forgetting needs, or weights that grow without end."""
        if self.max_forget_loss is not None and forget > max(self.max_forget_loss, self.forget_at_start):
            return f"the forget loss ran away: {forget:.1f} nats, more than {self.max_forget_loss:g}"
        if self.max_growth is not None and growth > self.max_growth:
            return f"the weights ran away: their change is {growth:.1f} times as long as they are"
        return ""

    def excess(self, retain: float | None) -> float:
        """Nats by which the retain loss has risen beyond `max_retain_increase`."""
        if retain is None or self.max_retain_increase is None:
            return 0.0
        return max(0.0, retain - self.retain_at_start - self.max_retain_increase)

    def fail(self, step: int, name: str, moving: Mapping[str, nn.Parameter]) -> None:
        """Restore the best weights and refuse: no comparison with NaN is true, so it would pass for forgotten."""
        done = f"The weights of step {self.restore(moving)} were restored. Lower learning_rate." if step else ""
        raise RunFailed(f"step {step}: the loss of the {name} set is NaN or infinite. {done or 'Check the weights.'}")

    def restore(self, moving: Mapping[str, nn.Parameter]) -> int:
        """Restore the best weights. Returns their step."""
        for name, parameter in moving.items():
            parameter.data.copy_(self.state[name])
        return self.best_step

    def numbers(self) -> dict[str, object]:
        """The rest of its state, for a checkpoint."""
        return {name: getattr(self, name) for name in NUMBERS}

    def take(self, numbers: Mapping[str, Any]) -> None:
        """Restore what `numbers` returned."""
        for name in NUMBERS:
            value = numbers[name]
            setattr(self, name, tuple(map(_number, value)) if isinstance(value, list) else _number(value))

    def end(self, stopped: str, steps: int, groups: BlockGroups | None) -> Ended:
        """The event of the end of a run: the best step's losses, and whether they meet the run's criterion."""
        forget, retain, shortfall = self.best_losses
        rise = None if retain is None else retain - self.retain_at_start
        return Ended(stopped, self.best_step, steps, self.best[0] == 0.0, forget, shortfall, rise, groups)
