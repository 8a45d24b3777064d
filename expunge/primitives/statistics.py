"""Statistics that audits read their scores with."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import ks_2samp, rankdata

if TYPE_CHECKING:
    from numpy.typing import NDArray

Values = Sequence[float]
RESAMPLES = 1000
LEVEL = 0.95


def auc(positive: Values, negative: Values) -> float:
    """Chance that a positive score exceeds a negative one; ties count one half (Mann-Whitney U / mn)."""
    ranks = rankdata(np.concatenate([positive, negative]))
    wins = ranks[: len(positive)].sum() - len(positive) * (len(positive) + 1) / 2
    return float(wins / (len(positive) * len(negative)))


def tpr_at_fpr(positive: Values, negative: Values, fpr: float = 0.01) -> float:
    """Share of positives above the score that at most a share `fpr` of the negatives exceeds."""
    ordered = np.sort(np.asarray(negative))[::-1]
    allowed = int(np.floor(fpr * len(ordered) + 1e-9))  # 0.29 * 100 is 28.999999999999996
    if allowed >= len(ordered):
        return 1.0
    return float((np.asarray(positive) > ordered[allowed]).mean())


def bootstrap(
    statistic: Callable[..., float], *samples: Values, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """95 % percentile interval of a statistic, each sample drawn anew with replacement (Efron, 1979)."""
    draw = np.random.default_rng(seed)
    arrays = [np.asarray(sample, dtype=np.float64) for sample in samples]
    values: NDArray[np.float64] = np.array(
        [statistic(*(a[draw.integers(0, len(a), len(a))] for a in arrays)) for _ in range(resamples)]
    )
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of `n` (Wilson, 1927): unlike the bootstrap it has width at 0 and 1."""
    z = 1.959963984540054
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At a share of 0 or 1 the bound equals it exactly; rounding must not put the value outside its own interval.
    return float(min(share, max(0.0, centre - half))), float(max(share, min(1.0, centre + half)))


def mean_interval(values: Values, seed: int = 0) -> tuple[float, float]:
    """95 % interval of a mean: Wilson's for yes-or-no values, otherwise the bootstrap's."""
    array = np.asarray(values, dtype=np.float64)
    if np.isin(array, (0.0, 1.0)).all():
        return wilson(float(array.mean()), len(array))
    return bootstrap(lambda sample: float(sample.mean()), values, seed=seed)


@dataclass(frozen=True)
class Shift:
    """How two samples differ by the two-sample Kolmogorov-Smirnov test (two-sided)."""

    distance: float
    """D: the largest gap between the two distribution functions."""
    p: float
    """Chance of a gap at least as large if both came from one distribution; exact up to 10,000 values a sample."""
    sign: int
    """1 where the first sample lies higher at that gap, -1 where it lies lower, 0 where both gaps are equal."""


def ks(one: Values, other: Values) -> Shift:
    """Whether `one` and `other` look drawn alike, and which of them lies higher, which the p-value does not tell."""
    a, b = np.sort(np.asarray(one, dtype=np.float64)), np.sort(np.asarray(other, dtype=np.float64))
    both = np.concatenate([a, b])
    # Counts, not shares: 3/6 - 1/2 is not always 0 in binary.
    gaps = np.searchsorted(b, both, side="right") * len(a) - np.searchsorted(a, both, side="right") * len(b)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # where p is 1, its exact sum may end a hair above 1
        found = ks_2samp(a, b)
    sign = int(np.sign(int(gaps.max()) + int(gaps.min())))
    return Shift(float(found.statistic), float(found.pvalue), sign)


def area(budgets: Values, values: Values) -> float:
    """Mean height of the line through `values` over the range of `budgets` (trapezoids)."""
    if len(budgets) < 2 or budgets[0] == budgets[-1]:
        return float(values[0])
    return float(np.trapezoid(values, budgets) / (budgets[-1] - budgets[0]))


def reached(budgets: Values, values: Values, level: float) -> float | None:
    """The first budget whose value is at least `level`; None where there is none."""
    return next((budget for budget, value in zip(budgets, values, strict=True) if value >= level), None)
