"""Perplexity by hand, inside its interval to the last digit, and of a model that is lost beyond counting."""

import math

import pytest

from expunge.audits.perplexity import Perplexity
from expunge.core.audit import Finding
from tests.audits.scripted import findings, lost


def finding(*texts: tuple[float, ...]) -> Finding:
    [found] = findings(Perplexity(), forget=tuple(lost(str(k), *losses) for k, losses in enumerate(texts))).values()
    return found


def test_it_is_the_geometric_mean_over_texts_not_over_tokens():
    found = finding((1.0,), (2.0, 4.0))
    assert found.value == pytest.approx(math.exp((1 + 3) / 2), rel=1e-12)
    assert found.scores == pytest.approx((math.exp(1), math.exp(3)), rel=1e-12)
    assert found.n == 2


@pytest.mark.parametrize("count", range(1, 12))
@pytest.mark.parametrize("loss", [0.1, 0.3, 1.7])
def test_equal_texts_have_an_interval_that_holds_the_value(count, loss):
    # Three times 0.1, summed and divided by 3, is 0.10000000000000002 or 0.1, as it is summed.
    found = finding(*[(loss,)] * count)
    assert found.low <= found.value <= found.high


def test_a_model_that_is_lost_beyond_counting_is_told_as_infinite_and_stops_nothing():
    found = finding((800.0,), (900.0,))  # exp(710) is more than a float holds
    assert found.value == found.low == found.high == math.inf
    assert found.scores == (math.inf, math.inf)
