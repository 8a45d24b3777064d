"""Statistics against scikit-learn and against numbers worked by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from expunge.primitives.statistics import auc, bootstrap, mean_interval, tpr_at_fpr, wilson

# Few distinct values, so that ties are common.
scores = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(positive=scores, negative=scores)
def test_auc_is_scikit_learn_s_with_and_without_ties(positive: list[float], negative: list[float]):
    labels = [1] * len(positive) + [0] * len(negative)
    assert math.isclose(auc(positive, negative), roc_auc_score(labels, positive + negative), abs_tol=1e-12)


def test_auc_is_the_share_of_pairs_won():
    assert auc([3.0, 1.0], [2.0, 0.0]) == 3 / 4  # 3>2, 3>0, 1>0 of four pairs
    assert auc([1.0], [1.0]) == 1 / 2
    assert auc([2.0, 2.0], [1.0]) == 1.0
    assert auc([0.0], [1.0, 2.0]) == 0.0


def test_auc_turned_around_is_one_minus_itself():
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=40).tolist(), draw.normal(size=25).tolist()
    assert math.isclose(auc(a, b), 1 - auc(b, a))


def test_wilson_is_its_formula_at_one_half():
    # z = 1.96: centre 1/2, half z / (1 + z^2/10) * sqrt(1/40 + z^2/400)
    z = 1.959963984540054
    half = z / (1 + z * z / 10) * math.sqrt(1 / 40 + z * z / 400)
    low, high = wilson(0.5, 10)
    assert math.isclose(low, 0.5 - half)
    assert math.isclose(high, 0.5 + half)
    assert (round(low, 4), round(high, 4)) == (0.2366, 0.7634)  # as in tables


def test_wilson_has_width_at_the_ends_and_holds_its_value():
    assert wilson(0.0, 10)[0] == 0.0
    assert round(wilson(0.0, 10)[1], 4) == 0.2775  # z^2 / (n + z^2) = 3.8415 / 13.8415
    assert wilson(1.0, 10)[1] == 1.0
    assert round(wilson(1.0, 10)[0], 4) == 0.7225


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 10_000), part=st.floats(0, 1))
def test_wilson_stays_between_0_and_1_and_covers_its_share(n: int, part: float):
    share = round(part * n) / n
    low, high = wilson(share, n)
    assert 0 <= low <= share <= high <= 1


def test_bootstrap_is_the_same_each_time_and_other_for_another_seed():
    values = np.random.default_rng(1).normal(size=30).tolist()
    first = bootstrap(np.mean, values, seed=3, resamples=200)
    assert first == bootstrap(np.mean, values, seed=3, resamples=200)
    assert first != bootstrap(np.mean, values, seed=4, resamples=200)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    draw = np.random.default_rng(2)
    covered = 0
    for seed in range(200):
        low, high = bootstrap(np.mean, draw.normal(size=50), seed=seed, resamples=200)
        covered += low <= 0 <= high
    # Binomial(200, 0.95) lies within 179 and 198 but for one case in a thousand; 50 values cost about a point.
    assert 178 <= covered <= 198


def test_bootstrap_of_two_samples_draws_each_anew():
    low, high = bootstrap(auc, [1.0, 2.0, 3.0], [0.0, 0.5])
    assert (low, high) == (1.0, 1.0)  # every positive exceeds every negative in every resample
    low, high = bootstrap(auc, [0.0, 2.0], [1.0, 3.0])
    assert low < auc([0.0, 2.0], [1.0, 3.0]) < high


def test_bootstrap_of_equal_values_has_no_width():
    assert bootstrap(np.mean, [4.0, 4.0, 4.0]) == (4.0, 4.0)


def test_tpr_at_fpr_counts_positives_above_the_allowed_negatives():
    negative = [float(k) for k in range(100)]  # 99 is the highest
    # 1 % of 100 negatives is one, which may exceed the threshold: the threshold is 98.
    assert tpr_at_fpr([98.5, 98.0, 200.0, 5.0], negative, fpr=0.01) == 2 / 4
    assert tpr_at_fpr([98.5, 99.0, 200.0, 5.0], negative, fpr=0.0) == 1 / 4
    assert tpr_at_fpr([0.0, 1.0], [5.0, 6.0], fpr=1.0) == 1.0


def test_tpr_at_fpr_allows_29_of_100_though_0_29_times_100_is_less_than_29():
    negative = [float(k) for k in range(100)]
    assert math.floor(0.29 * 100) == 28
    assert tpr_at_fpr([70.5], negative, fpr=0.29) == 1.0  # 71 to 99 exceed 70: 29 of them
    assert tpr_at_fpr([69.5], negative, fpr=0.29) == 0.0


@settings(max_examples=40, deadline=None)
@given(negative=scores, percent=st.integers(0, 100))
def test_no_more_than_the_allowed_share_of_negatives_passes(negative: list[float], percent: int):
    if percent < 100:
        assert tpr_at_fpr(negative, negative, percent / 100) <= percent / 100


@pytest.mark.parametrize("n", [3, 10])
def test_the_interval_of_yes_or_no_values_is_wilson_s(n: int):
    values = [1.0] * 2 + [0.0] * (n - 2)
    assert mean_interval(values) == wilson(2 / n, n)
    assert mean_interval([0.1, 0.4, 0.7]) == bootstrap(np.mean, [0.1, 0.4, 0.7])
