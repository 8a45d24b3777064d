"""Statistics that audits read their scores with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import rankdata

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
