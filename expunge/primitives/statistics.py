"""Statistics for audits: AUC, intervals, the Kolmogorov-Smirnov test."""

from __future__ import annotations

import bisect
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import ks_2samp, rankdata

if TYPE_CHECKING:
    from numpy.typing import NDArray

Values = Sequence[float]
Weights = Sequence[float] | None
"""How often each value counts; None: once."""
Interval = tuple[float, float]
RESAMPLES = 1000
LEVEL = 0.95


def auc(
    positive: Values, negative: Values, positive_weights: Weights = None, negative_weights: Weights = None
) -> float:
    """Chance that a positive score exceeds a negative one; ties count one half (Mann-Whitney U / mn).

    With weights, each pair counts as often as the product of its two weights.
    """
    if positive_weights is None and negative_weights is None:
        ranks = rankdata(np.concatenate([positive, negative]))
        wins = ranks[: len(positive)].sum() - len(positive) * (len(positive) + 1) / 2
        return float(wins / (len(positive) * len(negative)))
    order = np.argsort(negative, kind="stable")
    scores, ours, theirs = np.asarray(negative)[order], _fill(positive_weights, positive), negative_weights
    below = np.concatenate([[0.0], np.cumsum(_fill(theirs, negative)[order])])
    strictly, weakly = (below[np.searchsorted(scores, positive, side=side)] for side in ("left", "right"))
    return float((ours * (strictly + weakly)).sum() / (2 * ours.sum() * below[-1]))


def weighted_mean(values: Values, weights: Weights = None) -> float:
    """The mean, each value counted as often as its weight."""
    return float(np.mean(values) if weights is None else np.average(values, weights=weights))


def tpr_at_fpr(positive: Values, negative: Values, fpr: float = 0.01) -> float:
    """Share of positives above the score that at most a share `fpr` of the negatives exceeds."""
    ordered = np.sort(np.asarray(negative))[::-1]
    allowed = int(np.floor(fpr * len(ordered) + 1e-9))  # 0.29 * 100 is 28.999999999999996
    if allowed >= len(ordered):
        return 1.0
    return float((np.asarray(positive) > ordered[allowed]).mean())


def bootstrap(
    statistic: Callable[..., float],
    *samples: Values,
    weights: Sequence[Weights] = (),
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """95 % percentile interval of a statistic, each sample drawn anew with replacement (Efron, 1979).

    `weights`, one list for each sample, go with their values: `statistic(*samples, *weights)`.
    """
    draw = np.random.default_rng(seed)
    arrays = [np.asarray(sample, dtype=np.float64) for sample in samples]
    beside = [None if w is None else np.asarray(w, dtype=np.float64) for w in weights or [None] * len(samples)]
    weighted = any(w is not None for w in beside)

    def draw_one() -> float:
        places = [draw.integers(0, len(a), len(a)) for a in arrays]
        own = [a[at] for a, at in zip(arrays, places, strict=True)]
        if not weighted:
            return statistic(*own)
        return statistic(*own, *(None if w is None else w[at] for w, at in zip(beside, places, strict=True)))

    values: NDArray[np.float64] = np.array([draw_one() for _ in range(resamples)])
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def wilson(share: float, n: float) -> tuple[float, float]:
    """95 % interval of a share of `n` (Wilson, 1927): unlike the bootstrap it has width at 0 and 1."""
    z = 1.959963984540054
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At a share of 0 or 1 the bound equals it exactly; rounding must not put the value outside its own interval.
    return float(min(share, max(0.0, centre - half))), float(max(share, min(1.0, centre + half)))


def mean_interval(values: Values, weights: Weights = None, seed: int = 0) -> Interval:
    """95 % interval of a mean: Wilson's for yes-or-no values, otherwise the bootstrap's.

    With weights, Wilson's counts as many values as their effective number, (sum w)^2 / sum w^2 (Kish, 1965).
    """
    array = np.asarray(values, dtype=np.float64)
    if np.isin(array, (0.0, 1.0)).all():
        n = len(array) if weights is None else float(np.sum(weights) ** 2 / np.sum(np.square(weights)))
        return wilson(weighted_mean(array.tolist(), weights), n)
    if weights is None:
        return bootstrap(lambda sample: float(sample.mean()), values, seed=seed)
    return bootstrap(weighted_mean, values, weights=[weights], seed=seed)


def _fill(weights: Weights, values: Values) -> NDArray[np.float64]:
    return np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)


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
    """Whether `one` and `other` may come from one distribution, and which of them is higher, which p does not show."""
    a, b = np.sort(np.asarray(one, dtype=np.float64)), np.sort(np.asarray(other, dtype=np.float64))
    both = np.concatenate([a, b])
    # Counts, not shares: 3/6 - 1/2 is not always 0 in binary.
    gaps = np.searchsorted(b, both, side="right") * len(a) - np.searchsorted(a, both, side="right") * len(b)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # where p is 1, its exact sum may end a hair above 1
        found = ks_2samp(a, b)
    sign = int(np.sign(int(gaps.max()) + int(gaps.min())))
    return Shift(float(found.statistic), float(found.pvalue), sign)


def smallest_detectable(one: int, other: int, level: float = 0.05) -> float:
    """The smallest distance D of two samples of these sizes at which p falls below `level`; infinite if none does.

    D is a multiple of 1 / lcm(one, other), and p depends on D and the sizes alone.
    """
    common = math.lcm(one, other)
    counts = np.arange(one + 1)[:, None] * (common // one) - np.arange(other + 1)[None] * (common // other)
    gaps, first = np.unique(counts[counts > 0], return_index=True)
    pairs = np.argwhere(counts > 0)[first]

    def is_seen(place: int) -> bool:
        zeros = pairs[place].tolist()
        samples = [[0.0] * k + [1.0] * (n - k) for k, n in zip(zeros, (one, other), strict=True)]
        return ks(*samples).p < level

    place = bisect.bisect_left(range(len(gaps)), True, key=is_seen)
    return float(gaps[place] / common) if place < len(gaps) else math.inf


def harmonic_mean(values: Values) -> float:
    """n over the sum of the inverses; 0 where one value is 0."""
    array = np.asarray(values, dtype=np.float64)
    return float(len(array) / (1 / array).sum()) if (array > 0).all() else 0.0


def priv_leak(area: float, reference: float) -> float:
    """By how many per cent members are farther from standing out than in the reference (PrivLeak, Shi et al., 2024,
    MUSE, arXiv 2407.06460):

        100 ((1 - area) - (1 - reference)) / (1 - reference)

    of areas under the curve with the forget set as positives. Below 0 the forget set still looks like training data,
    above 0 it is over-forgotten. Not a number where the reference's area is 1.
    """
    return 100 * (reference - area) / (1 - reference) if reference != 1 else math.nan


def area(budgets: Values, values: Values) -> float:
    """Mean height of the line through `values` over the range of `budgets` (trapezoids)."""
    if len(budgets) < 2 or budgets[0] == budgets[-1]:
        return float(values[0])
    return float(np.trapezoid(values, budgets) / (budgets[-1] - budgets[0]))


def first_reaching(budgets: Values, values: Values, level: float) -> float | None:
    """The first budget whose value is at least `level`; None where there is none."""
    return next((budget for budget, value in zip(budgets, values, strict=True) if value >= level), None)
