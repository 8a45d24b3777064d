"""Exact match by hand: one wrong row is a wrong answer."""

import pytest

from expunge.audits.exact_match import ExactMatch
from tests.audits.scripted import findings, flagged

RAGGED = (
    flagged("one", True),
    flagged("two", True, False),
    flagged("three", True, True, True),
    flagged("seven", True, True, True, True, True, True, False),
)


def test_it_is_the_share_of_examples_whose_every_row_is_right():
    found = findings(ExactMatch(), forget=RAGGED)["forget"]
    assert found.scores == (1, 0, 1, 0)
    assert found.value == 2 / 4
    assert found.n == 4


@pytest.mark.parametrize("wrong", range(7))
def test_one_wrong_row_of_seven_is_a_wrong_answer_wherever_it_stands(wrong: int):
    rows = [k != wrong for k in range(7)]
    assert findings(ExactMatch(), forget=(flagged("seven", *rows),))["forget"].value == 0


@pytest.mark.parametrize("rows", [3, 7, 49, 1000])
def test_no_number_of_right_rows_is_lost_to_rounding(rows: int):
    # 49 times 1/49 is 0.9999999999999999
    assert findings(ExactMatch(), forget=(flagged("all", *[True] * rows),))["forget"].value == 1
    assert findings(ExactMatch(), forget=(flagged("all but one", False, *[True] * (rows - 1)),))["forget"].value == 0


def test_a_model_that_remembers_reads_1_and_an_over_forgotten_one_0():
    assert findings(ExactMatch(), forget=(flagged("a", True), flagged("b", True, True)))["forget"].value == 1
    assert findings(ExactMatch(), forget=(flagged("a", False), flagged("b", False, False)))["forget"].value == 0


def test_the_interval_is_wilsons():
    # 2 of 4: centre (1/2 + z^2 / 8) / (1 + z^2 / 4) = 1/2, half width z / (1 + z^2 / 4) * sqrt(1/16 + z^2 / 64)
    z = 1.959963984540054
    half = z / (1 + z * z / 4) * (1 / 16 + z * z / 64) ** 0.5
    found = findings(ExactMatch(), forget=RAGGED)["forget"]
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half), rel=1e-12)
