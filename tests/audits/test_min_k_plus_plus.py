"""Min-K%++ by hand: each row's log-probability against its own distribution, of the lowest rows."""

import math

import pytest

from expunge.audits.min_k_plus_plus import MinKPlusPlus
from expunge.errors import UsageRefused
from tests.audits.scripted import Asked, membership


def standing(name: str, *scaled: float) -> Asked:
    """An example whose rows lie so many standard deviations from their own mean: mean -k - 1 and variance k + 1 at row
    k."""
    moments = tuple((-k - 1.0, k + 1.0) for k in range(len(scaled)))
    log_probs = tuple(mean + z * math.sqrt(spread) for z, (mean, spread) in zip(scaled, moments, strict=True))
    return Asked(name, log_probs, moments=moments)


def test_the_lowest_rows_by_their_own_distribution_are_averaged():
    # The least likely row is the last of each: by itself it tells nothing.
    ragged = (
        standing("one", 0.5),
        standing("two", -1.0, 0.25),
        standing("seven", 1.0, -2.0, 0.0, 0.5, -1.0, 0.75, 0.9),
    )
    found = membership(MinKPlusPlus(fraction=0.5), ragged, (standing("held out", -3.0),))
    # half of 1, 2 and 7 rows: 1 (one at least), 1, 3
    assert found.scores == pytest.approx((0.5, -1.0, (-2.0 - 1.0 + 0.0) / 3, -3.0), rel=1e-6)


def test_a_row_that_is_certain_of_another_class_is_not_divided_by_nothing():
    sure = Asked("sure", (-0.002,), moments=((-0.001, 0.0),))
    found = membership(MinKPlusPlus(), (sure,), (standing("held out", 0.0),))
    assert found.scores[0] == pytest.approx(-0.001 / math.sqrt(1e-6))


def test_two_texts_of_one_likelihood_are_told_apart_by_what_else_was_likely():
    """Log p is -1 for all: a mode among many alternatives, or one among few."""
    mode, ordinary = (Asked(name, (-1.0,), moments=((mean, 4.0),)) for name, mean in (("f", -5.0), ("h", -1.0)))
    assert membership(MinKPlusPlus(), (mode,), (ordinary,)).value == 1
    assert membership(MinKPlusPlus(), (ordinary,), (mode,)).value == 0


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5, math.nan])
def test_a_fraction_that_is_none_is_refused(fraction: float):
    with pytest.raises(UsageRefused, match=r"`fraction` of MinKPlusPlus must lie in \(0, 1\]"):
        MinKPlusPlus(fraction=fraction)
