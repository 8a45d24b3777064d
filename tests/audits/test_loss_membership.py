"""Loss membership by hand: which of two examples looks seen is told by its mean log-probability."""

import math

import pytest

from expunge.audits.loss_membership import LossMembership
from expunge.core.request import Request
from tests.audits.scripted import Scripted, likely, membership

FORGET = (likely("f1", 0.5), likely("f2", 0.5, 0.125), likely("f3", *[0.6] * 7))
HOLDOUT = (likely("h1", 0.4), likely("h2", 0.55, 0.55, 0.55))


def test_it_is_the_share_of_pairs_in_which_the_forgotten_example_is_likelier_by_its_mean_row():
    found = membership(LossMembership(), FORGET, HOLDOUT)
    # geometric means: 0.5, 0.25, 0.6 against 0.4, 0.55: pairs won 1 of 2, 0 of 2, 2 of 2
    assert found.scores == pytest.approx([math.log(p) for p in (0.5, 0.25, 0.6, 0.4, 0.55)], rel=1e-12)
    assert found.value == pytest.approx(3 / 6)
    assert found.n == 5


def test_the_length_of_an_answer_has_no_say():
    """By their sums every long answer would look unseen."""
    longer = (likely("f1", *[0.6] * 7), likely("f2", *[0.6] * 3))
    assert membership(LossMembership(), longer, (likely("h1", 0.5), likely("h2", 0.5, 0.5))).value == 1
    assert membership(LossMembership(), (likely("f1", 0.5),), (likely("h1", *[0.6] * 7),)).value == 0


def test_ties_count_one_half():
    # f ties with h1 and beats h2: (1/2 + 1) / 2
    assert membership(LossMembership(), (likely("f", 0.5),), (likely("h1", 0.5), likely("h2", 0.25))).value == 0.75
    assert membership(LossMembership(), (likely("f", 0.5),), (likely("h", 0.5),)).value == 0.5


def test_a_model_that_remembers_reads_1_an_over_forgotten_one_0_and_the_ideal_is_one_half():
    sure, unseen, lost = ((likely(f"{p}a", p), likely(f"{p}b", p, p)) for p in (0.9, 0.1, 1e-9))
    assert membership(LossMembership(), sure, unseen).value == 1
    assert membership(LossMembership(), lost, unseen).value == 0
    assert membership(LossMembership(), lost, unseen).ideal == 0.5


def test_the_interval_holds_the_value():
    found = membership(LossMembership(), FORGET, HOLDOUT)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high


def test_without_a_holdout_set_there_is_nothing_to_tell_from():
    assert LossMembership()(Scripted(), Request(forget=FORGET)) == ()
