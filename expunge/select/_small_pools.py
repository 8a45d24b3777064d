"""Small pools of a large one: what is chosen in them, and what a set function that learnt it says of every record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from expunge.core.model import Network
from expunge.select._kinds import Pool, flatten, losses_by_record, mean_by_record, read_states
from expunge.select._set_function import Choice, SetFunction, Sets

if TYPE_CHECKING:
    from jaxtyping import Float

DEALS = 4
"""How often the whole pool is dealt into small ones where all of it is asked about."""


@dataclass(frozen=True)
class Choices:
    """What was chosen in small pools that have no record in common."""

    learnt: list[Choice]
    """Of three fifths of the records."""
    check: list[Choice]
    """Of a fifth: for the epoch that is kept."""
    apart: list[Choice]
    """Of the last fifth: for what was learnt."""


@dataclass(frozen=True)
class SmallPools:
    """A pool whose records are numbers, and what to ask of some of them."""

    numbers: Float[Tensor, "records columns"]
    size: int
    """Records of a small pool, at most a fifth of all."""
    choose: Callable[[list[int]], Sequence[int]]
    """Of the records at these places: which of them, counted from 0, are chosen."""

    def ask(self, pools: int, draw: torch.Generator) -> Choices:
        """Choices in so many small pools to learn from, and in a fifth as many of each other part."""
        order = torch.randperm(len(self.numbers), generator=draw)
        fifth, few = len(order) // 5, max(1, pools // 5)
        parts = ((order[2 * fifth :], pools), (order[:fifth], few), (order[fifth : 2 * fifth], few))
        return Choices(*([self._ask(places) for places in self._draw(part, n, draw)] for part, n in parts))

    def judge(self, function: SetFunction) -> Float[Tensor, " records"]:
        """The mean q of each record, in pools of about `size`, as it learnt from."""
        likely = torch.zeros(len(self.numbers))
        for _ in range(DEALS):
            for places in torch.randperm(len(likely)).tensor_split(round(len(likely) / self.size)):
                likely[places] += function.chances(Sets.of([self._choice(places, ())]))[0] / DEALS
        return likely

    def _draw(self, part: Tensor, count: int, draw: torch.Generator) -> Iterator[Tensor]:
        """Small pools: the part is dealt, and dealt anew when all of it was seen."""
        each = len(part) // self.size
        for place in range(count):
            if place % each == 0:
                dealt = part[torch.randperm(len(part), generator=draw)].split(self.size)
            yield dealt[place % each]

    def _ask(self, places: Tensor) -> Choice:
        return self._choice(places, self.choose(places.tolist()))

    def _choice(self, places: Tensor, own: Sequence[int]) -> Choice:
        chosen = torch.zeros(len(places), dtype=torch.bool)
        chosen[list(own)] = True
        return Choice(self.numbers[places], chosen)


def read_numbers(network: Network, pool: Pool, layer: int | float) -> Float[Tensor, "records columns"]:
    """Each record's hidden state and loss, standardised over the pool."""
    states = mean_by_record(read_states(network, flatten(pool), layer), pool)
    made = torch.cat([states, losses_by_record(network, pool).float()[:, None]], 1)
    return (made - made.mean(0)) / made.std(0, correction=0).clamp(min=1e-6)
