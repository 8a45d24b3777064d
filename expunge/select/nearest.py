"""Neighbours of the forget set by the model's own hidden states (our own): a retain set of what forgetting harms first.

    state(record) = mean over its labelled rows of the hidden state after a block, standardised over the pool
    alike(f, r)   = cosine of state(f) and state(r)

Each forget record in turn names the record most like it that is left, so that each gets neighbours. The states are
those of the model that is to forget: what it reads alike is what an update moves together.

A paraphrase of a forgotten record is its nearest neighbour, and a retain set that has one holds the fact: keep those
out of the pool.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from expunge.core.model import Batch, Network
from expunge.core.question import HiddenStates
from expunge.errors import UsageRefused
from expunge.primitives.out_of_memory import in_fitting_batches
from expunge.primitives.settings import check_least
from expunge.select._kinds import Pool, Selection, Selector, cosines, flatten, mean_by_record, take_turns

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class Nearest(Selector):
    """The records that the network's hidden states hold nearest to the forget set."""

    order: ClassVar[str] = "each forget record in turn names the one most like it that is left"

    count: int = 200
    """How many records are chosen."""
    layer: int | float = 0.75
    """The block whose states are read: its number, or below 1.0 a share of the depth."""

    def __post_init__(self) -> None:
        check_least(self, count=1)
        if not (isinstance(self.layer, int) and self.layer >= 0) and not 0 <= self.layer < 1:
            raise UsageRefused(
                f"The `layer` of Nearest must be a block number, or a share of the depth below 1.0. Got {self.layer!r}."
            )

    @property
    def wanted(self) -> int:
        return self.count

    def choose(self, network: Network, forget: Batch, pool: Pool) -> Selection:
        records = mean_by_record(self._states(network, flatten(pool)), pool)
        middle, spread = records.mean(0), records.std(0, correction=0).clamp(min=1e-6)
        asked = (self._states(network, forget) - middle) / spread
        return Selection(take_turns(cosines(asked, (records - middle) / spread), self.count))

    def _states(self, network: Network, examples: Batch) -> Float[Tensor, "examples width"]:
        """The mean state over each example's rows, on the CPU."""
        found = dict(self._each(network, examples))
        return torch.stack([found[k] for k in range(len(examples))])

    def _each(self, network: Network, examples: Batch) -> Iterator[tuple[int, Tensor]]:
        with torch.no_grad():
            groups = network.batches(examples)
            read = in_fitting_batches(network.module, examples, groups, lambda some: self._read(network, some))
            for group, means in read:
                yield from zip(group, means, strict=True)

    def _read(self, network: Network, some: Batch) -> Float[Tensor, "some width"]:
        hidden = network.ask(HiddenStates(self.layer), some)
        return torch.stack([rows.mean(0) for rows in hidden.split(hidden.states.float())]).cpu()
