"""The two-sample test against published values, its sign, and the summaries of a budget curve."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.primitives.statistics import area, first_reaching, harmonic_mean, ks, priv_leak, smallest_detectable

samples = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=12)


def apart(n: int, m: int, gap: int) -> tuple[list[float], list[float]]:
    """Samples of n and m zeros and ones: the first has k zeros, the second j, and k / n - j / m = gap / lcm(n, m)."""
    common = math.lcm(n, m)
    places = itertools.product(range(n + 1), range(m + 1))
    k, j = next((k, j) for k, j in places if k * (common // n) - j * (common // m) == gap)
    return [0.0] * k + [1.0] * (n - k), [0.0] * j + [1.0] * (m - j)


@pytest.mark.parametrize(
    ("n", "m", "gap", "distance", "p"),
    [
        # The p-values of the TOFU benchmark lie on a grid that the two sizes fix.
        (40, 300, 51, 0.0850, "0.94314"),  # lcm 600: 51 / 600
        (40, 300, 217, 0.36167, "0.00012787"),
        (300, 300, 19, 19 / 300, "0.58498"),
        (300, 300, 13, 13 / 300, "0.94145"),
        (300, 300, 14, 14 / 300, "0.90032"),
        (40, 40, 4, 0.100, "0.99"),
        (40, 40, 5, 0.125, "0.9188"),
        (40, 40, 8, 0.2, "0.4046"),
        (40, 40, 20, 0.5, "6.6e-05"),
        (200, 200, 10, 0.05, "0.9647"),
        (200, 200, 11, 0.055, "0.9238"),
        (200, 200, 27, 0.135, "0.052"),
        (300, 300, 33, 0.11, "0.053"),
    ],
)
def test_the_grid_of_p_values_is_the_published_one(n: int, m: int, gap: int, distance: float, p: str):
    one, other = apart(n, m, gap)
    found = ks(one, other)
    assert (len(one), len(other)) == (n, m)
    assert found.distance == pytest.approx(distance, abs=5e-6)
    digits = len(p.partition("e")[0].replace(".", "").lstrip("0"))
    assert f"{found.p:.{digits}g}" == p
    assert found.sign == -1  # the first has more zeros


@pytest.mark.parametrize(("n", "p"), [(200, 1.94e-119), (400, 1.06e-239)])
def test_complete_separation_has_the_p_value_of_2_out_of_all_orders(n: int, p: float):
    low, high = [float(k) for k in range(n)], [float(k + n) for k in range(n)]
    found = ks(low, high)
    assert found.distance == 1.0
    assert found.p == pytest.approx(2 / math.comb(2 * n, n), rel=1e-9)
    assert found.p == pytest.approx(p, rel=5e-3)
    # and the p-value is the same whichever lies above: only the sign tells forgetting from remembering
    assert (found.sign, ks(high, low).sign) == (-1, 1)
    assert ks(high, low).p == found.p


def test_the_sign_is_that_of_the_larger_gap():
    # Below 2 lie 2 of 3 and none of 3: gap 2/3 to the left. Below 9 lie 2 of 3 and 3 of 3: gap 1/3 to the right.
    assert ks([0.0, 1.0, 9.0], [2.0, 3.0, 4.0]).sign == -1
    assert ks([5.0, 6.0, 0.0], [1.0, 2.0, 3.0]).sign == 1
    assert ks([0.0, 3.0], [1.0, 2.0]).sign == 0  # 1/2 to either side


def test_a_sample_against_itself_is_not_shifted():
    found = ks([0.3, 0.1, 0.2], [0.1, 0.2, 0.3])
    assert (found.distance, found.p, found.sign) == (0.0, 1.0, 0)


@settings(max_examples=60, deadline=None)
@given(one=samples, other=samples)
def test_the_shift_turned_around_has_the_other_sign(one: list[float], other: list[float]):
    there, back = ks(one, other), ks(other, one)
    assert there.distance == pytest.approx(back.distance)
    assert there.p == pytest.approx(back.p)
    assert there.sign == -back.sign


@settings(max_examples=60, deadline=None)
@given(one=samples, other=samples)
def test_the_distance_is_the_largest_gap_by_counting(one: list[float], other: list[float]):
    def below(sample: list[float], at: float) -> float:
        return sum(value <= at for value in sample) / len(sample)

    gaps = [below(one, at) - below(other, at) for at in (*one, *other)]
    found = ks(one, other)
    assert found.distance == pytest.approx(max(map(abs, gaps)))
    if found.sign:
        assert found.sign == np.sign(-max(gaps, key=abs))


def test_the_area_of_a_curve_is_its_mean_height():
    # 0 to 2: height 1/2 on average; 2 to 10: height 1. (2 * 0.5 + 8 * 1) / 10
    assert area([0, 2, 10], [0.0, 1.0, 1.0]) == pytest.approx(0.9)
    assert area([0, 5, 20], [0.3, 0.3, 0.3]) == pytest.approx(0.3)
    assert area([4], [0.7]) == 0.7


def test_a_level_is_reached_at_the_first_budget_that_has_it():
    assert first_reaching([0, 1, 2, 5], [0.0, 0.4, 0.5, 0.4], 0.5) == 2
    assert first_reaching([0, 1, 2, 5], [0.6, 0.4, 0.5, 0.4], 0.5) == 0
    assert first_reaching([0, 1], [0.0, 0.4], 0.5) is None


@pytest.mark.parametrize(
    ("n", "m", "least", "too_small"),
    [
        (40, 40, 13 / 40, 12 / 40),
        (300, 300, 34 / 300, 33 / 300),
        (200, 200, 28 / 200, 27 / 200),
        (40, 300, 135 / 600, 0),
    ],
)
def test_the_smallest_distance_that_shows_is_the_first_on_the_grid_below_5_per_cent(n, m, least, too_small):
    assert smallest_detectable(n, m) == pytest.approx(least)
    assert ks(*apart(n, m, round(least * math.lcm(n, m)))).p < 0.05
    assert not too_small or ks(*apart(n, m, round(too_small * math.lcm(n, m)))).p >= 0.05


def test_one_against_one_shows_nothing():
    assert smallest_detectable(1, 1) == math.inf


def test_a_harmonic_mean_is_that_of_the_inverses_and_0_where_one_is():
    assert harmonic_mean([1.0, 0.5, 0.25]) == pytest.approx(3 / 7)
    assert harmonic_mean([1.0, 0.0]) == 0


def test_privleak_is_negative_where_the_forget_set_still_looks_like_training_data():
    assert priv_leak(1.0, 0.5) == -100  # every member is told, as MUSE reports of the unchanged model
    assert priv_leak(0.5, 0.5) == 0
    assert priv_leak(0.2, 0.6) == pytest.approx(100)
    assert math.isnan(priv_leak(0.5, 1.0))
