"""Choice by hand: the right answer must beat every wrong one by its mean row; guessing has a known rate."""

import math

import pytest

from expunge.audits.choice import Choice
from tests.audits.scripted import Asked, findings, likely


def question(name: str, right: tuple[float, ...], *wrong: tuple[float, ...]) -> Asked:
    """A right answer and wrong ones, of rows of these probabilities."""
    options = tuple(likely(f"{name}{k}", *rows) for k, rows in enumerate(wrong))
    return Asked(name, tuple(map(math.log, right)), alternatives=options)


# Ragged: geometric means 0.5 against 0.4 and 0.3; 0.25 against 0.3; 0.6 against 0.5, 0.59 and 0.1.
KNOWN = question("known", (0.5, 0.5, 0.5), (0.4,), (0.3,) * 7)
MISSED = question("missed", (0.5, 0.125), (0.3,))
LONG = question("long", (0.6,) * 7, (0.5,), (0.59, 0.59), (0.1, 0.1, 0.1))


def test_it_is_the_share_of_questions_whose_right_answer_beats_every_wrong_one():
    found = findings(Choice(), forget=(KNOWN, MISSED, LONG))["forget"]
    assert found.scores == (1, 0, 1)
    assert found.value == pytest.approx(2 / 3)
    assert found.n == 3


def test_one_better_option_among_worse_ones_is_enough_to_miss():
    for place in range(3):
        wrong = [(0.1,), (0.1,), (0.1,)]
        wrong[place] = (0.51,)
        assert findings(Choice(), forget=(question("q", (0.5,), *wrong),))["forget"].value == 0


def test_answers_are_compared_by_their_mean_row_so_length_has_no_say():
    # sums: 7 log 0.6 = -3.6 against log 0.5 = -0.7
    assert findings(Choice(), forget=(question("long right", (0.6,) * 7, (0.5,)),))["forget"].value == 1
    assert findings(Choice(), forget=(question("long wrong", (0.5,), (0.6,) * 7),))["forget"].value == 0


def test_a_tie_is_not_known():
    assert findings(Choice(), forget=(question("tie", (0.5,), (0.5,)),))["forget"].value == 0
    assert findings(Choice(), forget=(question("tie", (0.5, 0.5), (0.5,), (0.1,)),))["forget"].value == 0


def test_guessing_gets_one_in_so_many_options_averaged_over_questions():
    # 3, 2 and 4 options
    found = findings(Choice(), forget=(KNOWN, MISSED, LONG))["forget"]
    assert found.ideal == pytest.approx((1 / 3 + 1 / 2 + 1 / 4) / 3)
    assert findings(Choice(), forget=(MISSED,))["forget"].ideal == 1 / 2


def test_guessing_is_no_aim_for_the_retain_set():
    found = findings(Choice(), retain=(KNOWN,), holdout=(MISSED,), probes={"forget_other": (LONG,)})
    assert (found["retain"].ideal, found["holdout"].ideal, found["forget_other"].ideal) == (None, 1 / 2, 1 / 4)


def test_questions_without_wrong_answers_are_not_asked():
    found = findings(Choice(), forget=(KNOWN, likely("open", 0.1)), retain=(likely("also open", 0.1),))
    assert {name: each.n for name, each in found.items()} == {"forget": 1}


def test_a_model_that_remembers_reads_1_and_an_over_forgotten_one_0_beyond_guessing():
    remembers = findings(Choice(), forget=(question("a", (0.9,), (0.1,)), question("b", (0.9,) * 3, (0.1,))))["forget"]
    over = findings(Choice(), forget=(question("a", (1e-9,), (0.1,)), question("b", (1e-9,) * 3, (0.1,))))["forget"]
    assert (remembers.value, over.value, over.ideal) == (1, 0, 0.5)
    for found in (remembers, over):
        assert found.low <= found.value <= found.high
