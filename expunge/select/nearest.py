"""Neighbours of the forget set by the model's own hidden states (our own): a retain set of what forgetting harms first.

    state(record) = mean over its labelled rows of the hidden state after a block, standardised over the pool
    alike(f, r)   = cosine of state(f) and state(r)

First comes the record most like each forget record, then the second of each, and so on, so that each gets neighbours.
The states are those of the model that is to forget: what it reads alike is what an update moves together.

A paraphrase of a forgotten record is its nearest neighbour, and a retain set that has one holds the fact: keep those
out of the pool.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from expunge.core.model import Batch, Network
from expunge.primitives.settings import check_least
from expunge.select._kinds import (
    LikenessSelector,
    Pool,
    check_layer,
    cosines,
    flatten,
    mean_by_record,
    read_states,
)

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class Nearest(LikenessSelector):
    """The records that the network's hidden states hold nearest to the forget set."""

    order: ClassVar[str] = "the record most like each forget record, then the second of each, and so on"

    count: int = 200
    """How many records are chosen."""
    layer: int | float = 0.75
    """The block whose states are read: its number, or below 1.0 a share of the depth."""

    def __post_init__(self) -> None:
        check_least(self, count=1)
        check_layer(self)

    def likeness(self, network: Network, forget: Batch, pool: Pool) -> Iterator[Float[Tensor, "forget records"]]:
        records = mean_by_record(read_states(network, flatten(pool), self.layer), pool)
        middle, spread = records.mean(0), records.std(0, correction=0).clamp(min=1e-6)
        asked = (read_states(network, forget, self.layer) - middle) / spread
        return cosines(asked, (records - middle) / spread)
