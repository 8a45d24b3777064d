"""Intervals of differences, by hand: shares, means, areas, of the same records and of others."""

import math
import random

import numpy as np
import pytest
from scipy.stats import ttest_rel

from expunge.primitives.estimates import (
    Estimate,
    area_estimate,
    difference,
    geometric_estimate,
    mean_estimate,
)
from expunge.primitives.standard import Standard, Tolerance
from expunge.primitives.statistics import wilson


def shares(right: int, n: int) -> Estimate:
    return mean_estimate([1.0] * right + [0.0] * (n - right))


def test_two_shares_differ_by_newcombes_interval():
    # Newcombe (1998), table II: 56/70 - 48/80 = 0.2, method 10 without continuity correction: 0.0524 to 0.3339
    found = difference(shares(56, 70), shares(48, 80), paired=False)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)


def test_shares_of_0_and_1_have_width():
    found = difference(shares(5, 5), shares(0, 5), paired=False)
    low = wilson(1.0, 5)[0]  # 5 / (5 + 1.96^2) = 0.5655
    assert low == pytest.approx(0.5655, abs=1e-4)
    assert (found.low, found.high) == pytest.approx((1 - math.hypot(1 - low, 1 - low), 1.0))


def test_means_of_the_same_records_differ_by_the_paired_t_interval():
    one, other = [3.1, 2.2, 5.9, 4.4, 1.7], [2.8, 2.5, 4.9, 4.1, 1.1]
    found = difference(mean_estimate(one), mean_estimate(other), paired=True)
    known = ttest_rel(one, other).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((known.low, known.high))
    apart = difference(mean_estimate(one), mean_estimate(other), paired=False)
    assert apart.low < found.low < found.high < apart.high


def test_records_that_all_shift_alike_leave_no_doubt():
    found = difference(mean_estimate([1.5, 2.5, 9.5]), mean_estimate([1.0, 2.0, 9.0]), paired=True)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))


def test_two_records_say_little_of_a_mean():
    found = mean_estimate([1.0, 2.0])
    # t of one degree of freedom is 12.71; the standard error of the mean is sqrt(0.5 / 2) = 0.5
    assert (found.low, found.high) == pytest.approx((1.5 - 6.353, 1.5 + 6.353), abs=1e-3)


def test_an_area_has_width_at_1_and_less_of_it_with_more_records():
    few, many = (area_estimate([2.0] * n + [1.0] * n, positives=n) for n in (2, 30))
    assert few.value == many.value == few.high == many.high == 1.0
    assert few.low < 0.5 < many.low < 1  # two against two: 1 in 6 by chance
    low = many.low
    more = 29  # where the area is `low`, that of 1.0 is 1.96 standard errors away
    error = math.sqrt(low * (1 - low) / 900 * (1 + more * (1 - low) / (2 - low) + more * low / (1 + low)))
    assert 1 - low == pytest.approx(1.959964 * error)


def test_areas_of_the_same_records_are_compared_closely():
    draw = np.random.default_rng(0)
    scores = draw.normal(size=60) + np.repeat([0.7, 0.0], 30)
    one, other = area_estimate(scores.tolist(), positives=30), area_estimate((scores * 2 + 1).tolist(), positives=30)
    same = difference(one, other, paired=True)
    assert (same.value, same.low, same.high) == pytest.approx((0, 0, 0), abs=0.02)
    assert difference(one, other, paired=False).high > 0.1


def test_perplexities_that_all_grow_by_a_share_differ_by_little_more_and_less_than_that():
    before = [12.0, 30.0, 18.0, 25.0]
    found = difference(geometric_estimate([1.04 * p for p in before]), geometric_estimate(before), paired=True)
    middle = math.exp(sum(map(math.log, before)) / 4)
    assert found.value == pytest.approx(0.04 * middle)
    assert found.low > 0


@pytest.mark.parametrize("estimate", [mean_estimate, geometric_estimate])
def test_what_is_not_finite_has_no_interval(estimate):
    broken = estimate([1.0, math.inf])
    assert (broken.value, broken.low, broken.high) == (math.inf,) * 3
    assert difference(broken, Estimate.exact(1.0), paired=False).value == math.inf
    assert math.isnan(mean_estimate([1.0, math.nan]).value)


def test_the_order_of_the_records_changes_nothing():
    draw = random.Random(0)
    scores = [(draw.gauss(3, 1), draw.gauss(2, 1)) for _ in range(17)]
    mixed = draw.sample(scores, 17)
    found, again = (
        difference(*(mean_estimate([pair[side] for pair in pairs]) for side in (0, 1)), paired=True)
        for pairs in (scores, mixed)
    )
    assert (found.low, found.high) == pytest.approx((again.low, again.high), abs=1e-12)


def test_a_record_of_weight_2_moves_a_mean_as_two_do_and_an_interval_less():
    heavy, twice = mean_estimate([1.0, 4.0, 6.0], [2.0, 1.0, 1.0]), mean_estimate([1.0, 1.0, 4.0, 6.0])
    assert heavy.value == twice.value == 3.0
    assert heavy.low < twice.low


def test_a_tolerance_is_the_larger_of_a_number_and_a_share():
    assert Tolerance(0.1, 0.05).of(1.0) == 0.1
    assert Tolerance(0.1, 0.05).of(-4.0) == pytest.approx(0.2)
    standard = Standard(stay=Tolerance(0.1), retain=Tolerance(0.2), text=Tolerance(0.3))
    assert [standard.harm(*of).least for of in (("x", False), ("retain", False), ("x", True), ("retain", True))] == [
        0.1, 0.2, 0.3, 0.3,
    ]  # fmt: skip
    assert Standard().harm("x", True) is None
