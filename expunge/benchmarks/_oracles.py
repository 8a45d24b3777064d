"""Many models that forgot beside many that were retrained: KLoM and U-LiRA, record by record.

The folders of the retrained models' results are the oracles that are kept: each holds what its model said of every
record, so models are retrained and read once, and everything that forgets later is held against the same ones.

Half of the oracles are what all are held against. As many of the other half as there are models that forgot (all of
it, where there are more) are the floor, since KLoM falls with the number of models: of two groups of retrained models
it is not 0 either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from expunge.benchmarks._job import RESULT, VALUES, Result
from expunge.benchmarks._numbers import Number
from expunge.benchmarks._values import IDENTITY, Values
from expunge.errors import DataRefused
from expunge.primitives.klom import klom, margins
from expunge.primitives.ulira import ulira

FEWEST = 3
"""Fewest models of a kind: U-LiRA judges one by the others."""
HIGH = 0.95
MANY = 16
"""Of fewer models the variances of a single record say little, and all records share one."""


@dataclass(frozen=True)
class Oracles:
    """What models say that were retrained without what is forgotten."""

    name: str
    benchmark: str
    """In the notation: what the models were asked."""
    one: Sequence[Values]
    """The half of which the floor is made."""
    other: Sequence[Values]
    """The half that all are held against."""

    @staticmethod
    def read(folder: Path) -> Oracles:
        """The results in the subfolders of a folder. Raises `DataRefused`."""
        found = sorted(path.parent for path in folder.glob(f"*/{RESULT}"))
        if len(found) < 2 * FEWEST:
            raise DataRefused(
                f"{folder}: holds the results of {len(found)} models, and at least {2 * FEWEST} are needed, half of "
                f"them for the floor. Retrain more without what is forgotten, and measure each: "
                f"expunge bench ... --out {folder}/NAME."
            )
        asked = {Result.read(path).benchmark: path for path in found}
        if len(asked) > 1:
            shown = "; ".join(f"{path}: {line}" for line, path in asked.items())
            raise DataRefused(f"{folder}: the models were not asked the same. {shown}. Give them apart.")
        values = [Values.read(path / VALUES) for path in found]
        half = len(values) // 2
        return Oracles(folder.name, next(iter(asked)), values[:half], values[half:])

    def hold(self, models: Sequence[Values]) -> Iterator[Number]:
        """The numbers of some models against these, and those of as many retrained ones; none of fewer than three."""
        if len(models) < FEWEST:
            return
        as_many = self.one[: len(models)]
        for where in self.other[0].sets():
            if all(values.has(where, "loss") for values in (*models, *as_many, *self.other)):
                ours, floor, theirs = (self._margins(some, where) for some in (models, as_many, self.other))
                for name, told, reduce in DISTANCES:
                    for ending, some in (("", ours), (", floor", floor)):
                        whose = f"{len(some)} other retrained models" if ending else "these runs"
                        what = f"{told} Of the records of '{where}'; {whose} against {len(theirs)} retrained ones."
                        yield Number(
                            f"{name}{ending}", where, reduce(some, theirs), ours.shape[1], what, against=self.name
                        )

    def _margins(self, models: Sequence[Values], where: str) -> Tensor:
        """The log-odds of the right answer [models, records]."""
        losses = [values.records(where, "loss") for values in models]
        if any(_identify(values, where) != _identify(self.other[0], where) for values in models):
            raise DataRefused(
                f"{self.name}: the set '{where}' has other records there than in the runs. Measure all on the same "
                f"data and, where a selector reads the model, as references of one run."
            )
        return margins(-torch.tensor([list(each.values()) for each in losses], dtype=torch.float64))


def _identify(values: Values, where: str) -> Mapping[int, float]:
    """What a set's records are known by: themselves, or their places alone."""
    if values.has(where, IDENTITY):
        return values.records(where, IDENTITY)
    return dict.fromkeys(values.records(where, "loss"), 0.0)


def high_klom(ours: Tensor, theirs: Tensor) -> float:
    return float(klom(ours, theirs).quantile(HIGH))


def mean_klom(ours: Tensor, theirs: Tensor) -> float:
    return float(klom(ours, theirs).mean())


def mean_ulira(ours: Tensor, theirs: Tensor) -> float:
    return float(ulira(ours, theirs, pooled=min(len(ours), len(theirs)) < MANY).mean())


DISTANCES: tuple[tuple[str, str, Callable[[Tensor, Tensor], float]], ...] = (
    ("KLoM, 95 %", "95th percentile of KLoM, in nats.", high_klom),
    ("KLoM, mean", "Mean KLoM, in nats.", mean_klom),
    ("U-LiRA", "Share of models whose kind one record tells (U-LiRA), mean; 0.5 is chance.", mean_ulira),
)
