"""Numbers with what their difference needs: intervals that are honest for few records, and each record's part.

Two estimates differ by `value - value`, with the interval of "square and add" (Newcombe, 1998, Statist. Med. 17, 873):

    low  = d - sqrt((a - low_a)^2 - 2 r (a - low_a) (high_b - b) + (high_b - b)^2),    high likewise

r is the correlation of the two estimates where the same records were asked, else 0. Of two means of the same records
this is the paired t interval; of two shares Newcombe's method 10, which has width where every record agrees. Nothing is
drawn, so the order of records changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import stdtrit
from scipy.stats import rankdata

from expunge.primitives.statistics import Interval, Values, Weights, auc, weighted_mean, wilson

if TYPE_CHECKING:
    from numpy.typing import NDArray

Z = 1.959963984540054
"""The normal distribution's quantile of 97.5 %."""


@dataclass(frozen=True)
class Estimate:
    """A number, its 95 % interval, and what each record adds to it."""

    value: float
    low: float
    high: float
    parts: tuple[NDArray[np.float64], ...] = ()
    """Of each sample that was drawn, a number for each record, of whose means the value is made."""

    @staticmethod
    def exact(value: float) -> Estimate:
        """A number that is not measured but known."""
        return Estimate(value, value, value)


Estimator = Callable[[Values, Weights, int], Estimate]
"""`(scores, weights, positives)`: the last says how many of the scores, from the first on, are of the first set."""


def mean_estimate(scores: Values, weights: Weights = None, positives: int = 0) -> Estimate:
    """The mean: of yes-or-no scores with Wilson's interval, of others with Student's."""
    array = np.asarray(scores, dtype=np.float64)
    value, n = weighted_mean(array.tolist(), weights), _count(array, weights)
    if not np.isfinite(array).all():
        return Estimate(value, value, value)
    if is_yes_or_no(array):
        return Estimate(value, *wilson(value, n), (array,))
    half = _half(array, value, weights, n)
    return Estimate(value, value - half, value + half, (array,))


def geometric_estimate(scores: Values, weights: Weights = None, positives: int = 0) -> Estimate:
    """The geometric mean; its interval is that of the logarithms' mean, as long on either side."""
    with np.errstate(divide="ignore"):
        logs = np.log(np.asarray(scores, dtype=np.float64))
    mean = weighted_mean(logs.tolist(), weights)
    with np.errstate(over="ignore"):
        value = float(np.exp(mean))
    if not np.isfinite(logs).all() or not math.isfinite(value):
        return Estimate(value, value, value)
    half = value * _half(logs, mean, weights, _count(logs, weights))
    return Estimate(value, value - half, value + half, (logs,))


def area_estimate(scores: Values, weights: Weights = None, positives: int = 0) -> Estimate:
    """The area under the curve of the first `positives` scores against the others.

    The interval is Newcombe's (2006, Statist. Med. 25, 559-573, method 5), which has width at 0 and 1; the parts are
    DeLong's (1988): of each positive the share of negatives below it, of each negative that of positives above it.
    """
    array = np.asarray(scores, dtype=np.float64)
    ours, theirs = array[:positives], array[positives:]
    own, other = (weights[:positives], weights[positives:]) if weights else (None, None)
    value = auc(ours.tolist(), theirs.tolist(), own, other)
    if not np.isfinite(array).all():
        return Estimate(value, value, value)
    everywhere = rankdata(array)
    below = (everywhere[:positives] - rankdata(ours)) / len(theirs)
    above = 1 - (everywhere[positives:] - rankdata(theirs)) / len(ours)
    return Estimate(value, *_area_interval(value, _count(ours, own), _count(theirs, other)), (below, above))


def difference(one: Estimate, other: Estimate, paired: bool) -> Estimate:
    """By how much `one` exceeds `other`; `paired` where both were measured on the same records."""
    value = one.value - other.value
    if not (math.isfinite(one.value) and math.isfinite(other.value)):
        return Estimate(value, value, value)
    together = _correlation(one.parts, other.parts) if paired else 0.0
    below = _add(one.value - one.low, other.high - other.value, together)
    above = _add(one.high - one.value, other.value - other.low, together)
    return Estimate(value, value - below, value + above)


def is_yes_or_no(scores: Sequence[float] | NDArray[np.float64]) -> bool:
    """Whether all scores are 0 or 1."""
    return bool(np.isin(np.asarray(scores), (0.0, 1.0)).all())


def _add(a: float, b: float, correlation: float) -> float:
    return math.sqrt(max(0.0, a * a - 2 * correlation * a * b + b * b))


def _count(array: NDArray[np.float64], weights: Weights) -> float:
    """How many records weigh as much: Kish's effective number."""
    return float(len(array)) if weights is None else float(np.sum(weights) ** 2 / np.sum(np.square(weights)))


def _half(array: NDArray[np.float64], mean: float, weights: Weights, n: float) -> float:
    """Half the length of Student's interval of a mean."""
    if n <= 1:
        return math.inf
    spread = np.average(np.square(array - mean), weights=weights) * n / (n - 1)
    return float(stdtrit(n - 1, 0.975) * math.sqrt(spread / n))


def _area_interval(area: float, m: float, n: float) -> Interval:
    """The areas from which the one found is 1.96 standard errors away, the error taken at the area that is asked."""
    more = (m + n) / 2 - 1

    def error(at: float) -> float:
        return math.sqrt(at * (1 - at) / (m * n) * (1 + more * (1 - at) / (2 - at) + more * at / (1 + at)))

    def meet(end: float) -> float:
        inside, outside = area, end
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if abs(area - middle) <= Z * error(middle) else (inside, middle)
        return inside

    return meet(0.0), meet(1.0)


def _correlation(ours: Sequence[NDArray[np.float64]], theirs: Sequence[NDArray[np.float64]]) -> float:
    """Of two estimates made of the means of these parts; 0 where it is not known, or one of them has no spread."""
    if [len(a) for a in ours] != [len(b) for b in theirs]:
        return 0.0
    cov = [_covariance(a, b) / len(a) for a, b in zip(ours, theirs, strict=True)]
    spreads = [sum(_covariance(a, a) / len(a) for a in parts) for parts in (ours, theirs)]
    if not cov or min(spreads) <= 0:
        return 0.0
    return float(np.clip(sum(cov) / math.sqrt(spreads[0] * spreads[1]), -1, 1))


def _covariance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(np.mean((a - a.mean()) * (b - b.mean())))
