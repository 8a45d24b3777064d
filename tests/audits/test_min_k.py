"""Min-K% by hand: the mean of an answer's least likely rows, one at least."""

import math

import pytest

from expunge.audits.min_k import MinK
from expunge.core.request import Request
from expunge.errors import UsageRefused
from tests.audits.scripted import Asked, Scripted, likely, membership

# Least likely rows neither first nor last, so that order tells nothing.
SEVEN = likely("seven", 0.9, 0.2, 0.8, 0.1, 0.7, 0.4, 0.6)


def scores(audit: MinK, *forget: Asked) -> tuple[float, ...]:
    return membership(audit, forget, (likely("held out", 0.5),)).scores[:-1]


@pytest.mark.parametrize(
    ("fraction", "lowest"),
    [
        (0.1, (0.1,)),  # int(0.7) is 0, and one row is taken at least
        (0.2, (0.1,)),  # int(1.4) is 1
        (0.3, (0.1, 0.2)),  # int(2.1) is 2
        (0.42, (0.1, 0.2)),  # int(2.94) is 2: rounded down, not to the nearest
        (0.5, (0.1, 0.2, 0.4)),  # int(3.5) is 3
        (1.0, (0.1, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9)),
    ],
)
def test_the_least_likely_rows_are_averaged_their_number_rounded_down(fraction: float, lowest: tuple[float, ...]):
    [score] = scores(MinK(fraction=fraction), SEVEN)
    assert score == pytest.approx(sum(math.log(p) for p in lowest) / len(lowest), rel=1e-12)


def test_each_example_is_read_by_its_own_rows():
    ragged = (likely("one", 0.5), likely("two", 0.9, 0.3), likely("three", 0.6, 0.2, 0.7), SEVEN)
    # half of 1, 2, 3, 7 rows: 1 (one at least), 1, 1, 3
    wanted = (math.log(0.5), math.log(0.3), math.log(0.2), math.log(0.1 * 0.2 * 0.4) / 3)
    assert scores(MinK(fraction=0.5), *ragged) == pytest.approx(wanted, rel=1e-12)


def test_all_rows_are_the_mean_log_probability():
    assert scores(MinK(fraction=1.0), likely("two", 0.5, 0.125)) == pytest.approx([math.log(0.25)])


def test_it_is_the_share_of_pairs_whose_forgotten_example_has_the_likelier_least_likely_rows():
    # Least likely rows 0.3 and 0.1 against 0.2 and 0.1: two won, one lost, one tie. By the likeliest none is won.
    found = membership(
        MinK(), (likely("f1", 0.3, 0.4), likely("f2", 0.1, 0.5)), (likely("h1", 0.2, 0.9), likely("h2", 0.8, 0.1))
    )
    assert found.value == pytest.approx((1 + 1 + 0 + 1 / 2) / 4)
    assert found.n == 4
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_a_model_that_remembers_reads_1_an_over_forgotten_one_0_and_the_ideal_is_one_half():
    unseen = (likely("h1", 0.9, 0.1, 0.9), likely("h2", 0.2))
    assert membership(MinK(), (likely("f1", 0.7, 0.7, 0.7), likely("f2", 0.8)), unseen).value == 1
    over = membership(MinK(), (likely("f1", 0.99, 0.99, 1e-9), likely("f2", 1e-9)), unseen)
    assert (over.value, over.ideal) == (0, 0.5)


def test_without_a_holdout_set_there_is_nothing_to_tell_from():
    assert MinK()(Scripted(), Request(forget=(SEVEN,))) == ()


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5, math.nan])
def test_a_fraction_that_is_none_is_refused(fraction: float):
    with pytest.raises(UsageRefused, match=r"`fraction` of MinK must lie in \(0, 1\]"):
        MinK(fraction=fraction)
