"""What all pruners are: before each pass through a set, which of its records are read, and how often each counts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from expunge.errors import UsageRefused

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

UNREAD = 3.0
"""The loss of a record that no pass has read yet, in nats, as SeTa and InfoBatch have it."""


@dataclass(frozen=True)
class Kept:
    """The records of a pass, in an order drawn at random, and how often each counts."""

    places: Int[Tensor, " kept"]
    weights: Float[Tensor, " kept"]

    @staticmethod
    def alike(places: Int[Tensor, " kept"]) -> Kept:
        """Each counts once."""
        return Kept(places, torch.ones(len(places), dtype=torch.float64))


class Pruner(ABC):
    """From the last loss of each record to the records of the next pass. It keeps nothing in mind itself."""

    @abstractmethod
    def keep(self, losses: Float[Tensor, " records"], epoch: int, epochs: int, draw: torch.Generator) -> Kept:
        """At least one record for the pass `epoch`, counted from 0, of `epochs`. Losses are in nats, as last read."""


def draw_share(count: int, share: float, draw: torch.Generator) -> Int[Tensor, " kept"]:
    """So large a share of `count` places, at least one, at random and in a random order."""
    return torch.randperm(count, generator=draw)[: max(1, round(share * count))]


def check_share(plugin: object, name: str, low: float, high: float) -> None:
    """Refuse a share beyond its bounds."""
    value = vars(plugin)[name]
    if not low <= value <= high:
        raise UsageRefused(f"The `{name}` of {type(plugin).__name__} must be from {low:g} to {high:g}. Got {value!r}.")
