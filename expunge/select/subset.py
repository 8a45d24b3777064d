"""What a costly selector chooses, learnt on small pools for a large one (INSET, Xie et al., 2024, arXiv 2402.03139).

    1. the teacher chooses in small pools: `pools` drawn from three fifths of the pool, and some of the other two fifths
    2. a set function learns what it chose, from each record's hidden state and loss, standardised over the pool
    3. the whole pool is dealt into small pools, four times; of the highest mean q, `count` records

What a record is worth depends on what else is there: F reads the chosen and the rest of the small pool. With
`background='none'` it reads the chosen alone (EquiVSet, Ou et al., 2022, arXiv 2203.01693). What holds among twenty
records need not hold among thousands, so it is only ever asked about small pools.

One fifth decides the epoch that is kept; on the last one the agreement with the teacher is measured, and said beside
chance: read it. It makes sense where the teacher trains a model for each choice and the pool is far larger than what
the teacher sees, `size` * `pools` * 1.4 records; where the teacher is `Nearest`, ask that. Weights of a teacher are not
learnt. Choices of your own need no teacher: call `learn`, with any numbers for a record.
Published: width 256, hidden 500, learning rate 1e-4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from expunge.core.model import Batch, Network
from expunge.errors import DataRefused, UsageRefused
from expunge.primitives.settings import check_finite, check_least, check_seed
from expunge.select._kinds import Pool, Selection, Selector, check_layer
from expunge.select._set_function import Background, Choice, Learning, SetFunction, chance, draw_from
from expunge.select._small_pools import SmallPools, read_numbers
from expunge.select.hardest import Hardest


@dataclass(frozen=True)
class Subset(Selector):
    """What another selector would choose, by a set function that learnt its choices in small pools."""

    order: ClassVar[str] = "the likeliest choice of the teacher first"

    count: int = 200
    """How many records are chosen."""
    teacher: Selector = Hardest(count=4)
    """Chooses in each small pool: so many of its `size` records."""
    pools: int = 100
    """Small pools to learn from; a fifth as many decide the epoch, and as many show what was learnt."""
    size: int = 20
    """Records of a small pool."""
    background: Background = "complement"
    """What F reads beside the chosen: complement, the rest of the pool; whole, all of it; none."""
    layer: int | float = 0.75
    """The block whose states are read: its number, or below 1.0 a share of the depth."""
    width: int = 64
    """Numbers that a record becomes before sets are summed."""
    hidden: int = 64
    """Width of the layers that read the sums."""
    epochs: int = 100
    """Passes through the choices; fewer where six in a row bring nothing."""
    learning_rate: float = 1e-3
    batch: int = 4
    """Small pools in a step."""
    seed: int = 0
    """Draws the pools, the start and the samples."""

    def __post_init__(self) -> None:
        check_least(self, count=1, pools=1, size=2, width=1, hidden=1, epochs=1, batch=1)
        check_finite(self, "learning_rate")
        check_layer(self)
        check_seed(self)
        if self.background not in ("complement", "whole", "none"):
            raise UsageRefused(
                f"The `background` of Subset must be complement, whole or none. Got {self.background!r}."
            )
        if self.learning_rate <= 0:
            raise UsageRefused(f"The `learning_rate` of Subset must be positive. Got {self.learning_rate!r}.")
        if not self.teacher.quota < self.size:
            raise UsageRefused(
                f"Subset: the teacher must choose fewer records than the {self.size} of a small pool (`size`). "
                f"It chooses {self.teacher.quota}."
            )

    @property
    def reads_forget(self) -> bool:
        return self.teacher.reads_forget

    @property
    def quota(self) -> int:
        return self.count

    def learn(self, choices: Sequence[Choice], check: Sequence[Choice]) -> SetFunction:
        """The set function of some choices, at the epoch that agrees best with those of `check`."""
        return Learning(
            self.background, self.width, self.hidden, self.epochs, self.learning_rate, self.batch, self.seed
        )(choices, check)

    def choose(self, network: Network, forget: Batch, pool: Pool) -> Selection:
        if len(pool) < 5 * self.size:
            raise DataRefused(
                f"Subset learns from, checks on and tries itself on pools of {self.size} records that have none in "
                f"common, and there are {len(pool)} records. Give {5 * self.size} at least, a smaller `size`, or name "
                f"the teacher itself: {self.teacher!r}."
            )
        small = SmallPools(
            read_numbers(network, pool, self.layer),
            self.size,
            lambda places: self.teacher(network, forget, [pool[k] for k in places]).indices,
        )
        choices = small.ask(self.pools, torch.Generator().manual_seed(self.seed))
        function = self.learn(choices.learnt, choices.check)
        with draw_from(self.seed):
            agreements, likely = function.agreements(choices.apart), small.judge(function)
        return Selection(tuple(likely.argsort(descending=True)[: self.count].tolist()), note=self._say(agreements))

    def _say(self, agreements: list[float]) -> str:
        found, by_chance = sum(agreements) / len(agreements), chance(self.size, self.teacher.quota)
        nothing = "" if found > by_chance else ". It learnt nothing: name the teacher itself"
        return (
            f"In {len(agreements)} small pools that it did not learn from, Subset chose as {self.teacher!r} did by "
            f"{found:.2f} (mean Jaccard index, told how many; by chance {by_chance:.2f}){nothing}"
        )
