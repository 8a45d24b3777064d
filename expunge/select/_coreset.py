"""The search of AutoCoreset (Maalouf et al., 2023, ICML, arXiv 2305.11980): a weighted subset for any cost.

A cost is a function: fitted on some weighted records, what does each record of the pool cost? Its answers are the
columns of a matrix M. A coreset is a subset C with weights v: the sum over C of v_i M_i is near the sum over all M_i.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Summary = Literal["importance", "caratheodory", "uniform"]
Costs = Callable[["NDArray[np.int64]", "NDArray[np.float64]"], "NDArray[np.float64]"]
"""Fitted on the records of these places with these weights: the cost of every record of the pool."""


@dataclass(frozen=True)
class Coreset:
    """Places in the pool, ascending, and weights that add up to about its size."""

    places: NDArray[np.int64]
    weights: NDArray[np.float64]
    cost: float = math.inf
    """The pool's cost under the model that was fitted on it."""
    fits: int = 0
    """Models that were fitted on the way to it, all told."""


@dataclass(frozen=True)
class Search:
    """How a coreset is looked for."""

    size: int
    summary: Summary = "importance"
    models: int = 3
    """Fitted on uniform samples at first."""
    patience: int = 5
    """Rounds without a lower cost after which the search ends."""
    draws: int = 50
    """Samples of a round, of which the one with the nearest sum is taken."""

    def __call__(
        self, costs: Costs, count: int, draw: np.random.Generator, labels: NDArray[Any] | None = None
    ) -> Coreset:
        """The coreset of least cost for the whole pool of `count` records; each class of `labels` has its share."""
        groups = (
            [np.arange(count)] if labels is None else [np.flatnonzero(labels == kind) for kind in np.unique(labels)]
        )
        columns = [costs(*self._uniform(groups, draw)) for _ in range(self.models)]
        best, bar, idle = None, max(float(column.sum()) for column in columns), 0
        while idle < self.patience:
            made = self._summarise(np.stack(columns, axis=1), groups, draw)
            columns.append(costs(made.places, made.weights))
            cost = float(columns[-1].sum())
            idle = 0 if cost < bar else idle + 1
            bar = min(bar, cost)
            if best is None or cost < best.cost:
                best = Coreset(made.places, made.weights, cost)
        assert best is not None
        return Coreset(best.places, best.weights, best.cost, len(columns))

    def _uniform(
        self, groups: list[NDArray[np.int64]], draw: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        ones = np.ones((sum(map(len, groups)), 1))
        made = Search(self.size, "uniform", draws=1)._summarise(ones, groups, draw)
        return made.places, made.weights

    def _summarise(
        self, matrix: NDArray[np.float64], groups: list[NDArray[np.int64]], draw: np.random.Generator
    ) -> Coreset:
        parts = [
            summarise(matrix[group], size, self, draw)
            for group, size in zip(groups, shares(matrix, groups, self.size), strict=True)
        ]
        places = np.concatenate([group[own] for group, (own, _) in zip(groups, parts, strict=True)])
        order = np.argsort(places)
        return Coreset(places[order], np.concatenate([weights for _, weights in parts])[order])


def shares(matrix: NDArray[np.float64], groups: list[NDArray[np.int64]], size: int) -> list[int]:
    """How many records of each class are chosen: the mean of its shares by size, by cost, and with all classes equal.

    The paper's linear programme mixes the same three nearly by thirds. Each class has one record at least.
    """
    count, lengths = len(matrix), np.linalg.norm(matrix, axis=1)
    total = lengths.sum() or 1.0
    exact = [size * (len(g) / count + lengths[g].sum() / total + 1 / len(groups)) / 3 for g in groups]
    made = [min(len(g), max(1, math.floor(each))) for g, each in zip(groups, exact, strict=True)]
    for _ in range(size - sum(made)):
        free = [k for k, g in enumerate(groups) if made[k] < len(g)]
        made[max(free, key=lambda k: exact[k] - made[k])] += 1
    return made


def summarise(
    matrix: NDArray[np.float64], size: int, how: Search, draw: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rows of a matrix, and weights with which they add up to about what all rows add up to."""
    if how.summary == "caratheodory":
        return caratheodory(matrix, size, draw)
    likely = inclusion(np.linalg.norm(matrix, axis=1) if how.summary == "importance" else np.ones(len(matrix)), size)
    total = matrix.sum(0)
    samples = [_draw_systematic(likely, draw) for _ in range(how.draws)]
    chosen = min(samples, key=lambda some: float(np.linalg.norm(matrix[some].T @ (1 / likely[some]) - total)))
    return chosen, 1 / likely[chosen]


def inclusion(sizes: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """The chance of each row to be one of `count` that are drawn: proportional to its size, and 1 at most.

    A row drawn with the chance p stands for 1 / p rows, so that every sum is right on average (Horvitz and Thompson).
    The paper draws with replacement, and so gets fewer distinct rows.
    """
    sizes = np.maximum(sizes, 1e-12 * (sizes.max() or 1.0))
    likely = np.ones(len(sizes))
    free = np.ones(len(sizes), dtype=bool)
    while free.any():
        left = count - int((~free).sum())
        likely[free] = left * sizes[free] / sizes[free].sum()
        over = free & (likely >= 1)
        if not over.any():
            break
        likely[over], free = 1.0, free & ~over
    return likely


def _draw_systematic(likely: NDArray[np.float64], draw: np.random.Generator) -> NDArray[np.int64]:
    """Distinct rows, each with its chance and in their sum exactly: marks one apart on the chances laid end to end."""
    order = draw.permutation(len(likely))
    ends = np.cumsum(likely[order])
    marks = draw.random() + np.arange(round(ends[-1]))
    return np.sort(order[np.searchsorted(ends, np.minimum(marks, ends[-1] * (1 - 1e-12)), side="right")])


def caratheodory(
    matrix: NDArray[np.float64], size: int, draw: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """At most `size` rows whose weighted sum, and whose number, are exactly those of all (Caratheodory's theorem).

    t columns need t + 1 rows, so the rows are dealt to as many parts as `size` allows, and each part keeps its sum.
    Where `size` is below t + 1 the newest size - 1 columns are kept; the paper then takes every row.
    """
    count = len(matrix)
    if count <= size:
        return np.arange(count), np.ones(count)
    matrix = matrix[:, max(0, matrix.shape[1] - size + 1) :]
    parts = np.array_split(draw.permutation(count), size // (matrix.shape[1] + 1))
    kept = [(part[own], weights) for part in parts for own, weights in [_reduce(matrix[part])]]
    return np.concatenate([own for own, _ in kept]), np.concatenate([weights for _, weights in kept])


def _reduce(rows: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rows of positive weight, at most one more than there are columns: weight is moved along null vectors."""
    scale = np.abs(rows).max(0)
    points = np.column_stack([rows / np.where(scale > 0, scale, 1.0), np.ones(len(rows))])
    held: list[int] = []
    weights = np.ones(len(rows))
    for place in range(len(rows)):
        held.append(place)
        while len(held) > points.shape[1]:
            null = np.linalg.svd(points[held].T)[2][-1]
            null = null if null.max() > 0 else -null
            rising = null > 1e-12
            own = weights[held]
            own = own - (own[rising] / null[rising]).min() * null
            weights[held] = np.where(own > 1e-9, own, 0.0)
            held = [k for k in held if weights[k] > 0]
    return np.array(held), weights[held]
