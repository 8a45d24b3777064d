"""TOFU's probability by hand: the geometric mean over an answer's rows, then the mean over examples."""

import math

import pytest

from expunge.audits.probability import Probability
from tests.audits.scripted import findings, likely

RAGGED = (
    likely("one", 0.5),
    likely("two", 0.5, 0.125),
    likely("three", 0.5, 0.5, 0.25),
    likely("seven", *[0.5] * 7),
)


def test_it_is_the_mean_of_the_answers_probabilities_each_to_the_power_one_over_rows():
    found = findings(Probability(), forget=RAGGED)["forget"]
    # (1/2)^(1/1), (1/16)^(1/2), (1/16)^(1/3), (1/128)^(1/7)
    assert found.scores == pytest.approx((1 / 2, 1 / 4, 2 ** (-4 / 3), 1 / 2), rel=1e-12)
    assert found.value == pytest.approx((1 / 2 + 1 / 4 + 2 ** (-4 / 3) + 1 / 2) / 4, rel=1e-12)
    assert found.n == 4


def test_longer_answers_of_equally_likely_rows_are_as_probable():
    found = findings(Probability(), forget=tuple(likely(str(n), *[0.3] * n) for n in (1, 2, 3, 7)))["forget"]
    assert found.scores == pytest.approx((0.3,) * 4, rel=1e-12)


def test_it_is_not_the_mean_of_the_rows_probabilities():
    found = findings(Probability(), forget=(likely("a", 0.9, 0.1),))["forget"]
    assert found.value == pytest.approx(math.sqrt(0.9 * 0.1), rel=1e-12)  # 0.3, where the mean would be 0.5


def test_a_model_that_remembers_reads_1_and_an_over_forgotten_one_0():
    assert findings(Probability(), forget=(likely("a", 1.0), likely("b", 1.0, 1.0)))["forget"].value == 1
    assert findings(Probability(), forget=(likely("a", 1e-30), likely("b", 1e-30, 1e-30)))["forget"].value < 1e-29


def test_the_interval_holds_the_value():
    found = findings(Probability(), forget=RAGGED)["forget"]
    assert 1 / 4 <= found.low < found.value < found.high <= 1 / 2
