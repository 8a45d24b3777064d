"""Passes through a set of which a pruner reads a part: what is read next, and the last loss of each record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from expunge.core.model import Batch
from expunge.core.predictions import Predictions
from expunge.prune._kinds import UNREAD, Kept, Pruner
from expunge.runtime.processes import all_reduce

if TYPE_CHECKING:
    from expunge.core.request import Example


@dataclass
class Passes:
    """The state of a run whose passes are pruned. A step never reads of two passes, so the last of one may be short."""

    name: str
    """Which set of the request it is."""
    examples: tuple[Example, ...]
    pruner: Pruner
    epochs: int
    draw: torch.Generator
    told: list[list[float]] = field(default_factory=list)
    """The losses of each step: with them a run that was cut off goes the same way again."""

    def __post_init__(self) -> None:
        self.losses = torch.full((len(self.examples),), UNREAD, dtype=torch.float64)
        self.epoch, self.taken, self.read = -1, 0, 0
        self.kept = Kept.alike(torch.arange(0))
        self.places: list[int] = []
        self.seen: dict[int, float] = {}
        self.progress = 0.0

    @property
    def at_end(self) -> bool:
        """Whether every pass was read."""
        return self.epoch == self.epochs - 1 and self.taken == len(self.kept.places)

    @property
    def unread(self) -> float:
        """The share of the records of all passes that no step read, once all are done."""
        return 1 - self.read / (self.epochs * len(self.examples))

    def take(self, count: int) -> Batch:
        """The next step's examples, at most `count`, with their weights."""
        if self.taken == len(self.kept.places):
            self.epoch += 1
            self.kept, self.taken = self.pruner.keep(self.losses, self.epoch, self.epochs, self.draw), 0
        self.progress = (self.epoch + self.taken / len(self.kept.places)) / self.epochs
        now = slice(self.taken, self.taken + count)
        self.places = self.kept.places[now].tolist()
        self.taken, self.read = self.taken + len(self.places), self.read + len(self.places)
        weights = self.kept.weights[now].tolist()
        some: list[Any] = [self.examples[place] for place in self.places]
        return [replace(e, weight=e.weight * weight) for e, weight in zip(some, weights, strict=True)]

    def look(self, mine: Mapping[str, Batch], said: Mapping[str, Predictions], absent: frozenset[str]) -> None:
        """Note the losses of one micro-batch of the step, as it was read for its gradient."""
        if self.name in said and self.name not in absent:
            with torch.no_grad():
                each = -said[self.name].mean(said[self.name].log_prob())
            self.seen |= {id(e): loss for e, loss in zip(mine[self.name], each.tolist(), strict=True)}

    def end_step(self, batch: Batch) -> None:
        """The step's losses are known: each rank has those of its share."""
        mine = torch.tensor([self.seen.get(id(example), 0.0) for example in batch], dtype=torch.float64)
        self.tell(all_reduce(mine).tolist())
        self.seen = {}

    def tell(self, losses: Sequence[float]) -> None:
        """The losses of the examples that were taken last."""
        self.losses[self.places] = torch.tensor(losses, dtype=torch.float64)
        self.told.append(list(losses))
