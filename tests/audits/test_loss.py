"""The loss by hand: nats for each row, then the mean over examples."""

import math

import pytest

from expunge.audits.loss import Loss
from tests.audits.scripted import findings, likely, lost

RAGGED = (
    likely("one", 0.5),
    likely("two", 0.5, 0.25),
    likely("three", 0.125, 0.5, 0.5),
    likely("seven", *[0.5] * 6, 0.25),
)


def test_it_is_the_mean_over_examples_of_the_mean_over_rows():
    found = findings(Loss(), forget=RAGGED)["forget"]
    # in units of log 2: 1; (1 + 2) / 2; (3 + 1 + 1) / 3; (6 + 2) / 7
    assert found.scores == pytest.approx([math.log(2) * each for each in (1, 3 / 2, 5 / 3, 8 / 7)], rel=1e-12)
    assert found.value == pytest.approx(math.log(2) * (1 + 3 / 2 + 5 / 3 + 8 / 7) / 4, rel=1e-12)
    # neither the mean over the 13 rows nor the mean of the sums
    assert found.value != pytest.approx(math.log(2) * (1 + 3 + 5 + 8) / 13, abs=0.01)
    assert found.n == 4


def test_a_model_that_remembers_loses_nothing_and_an_over_forgotten_one_more_than_an_innocent():
    remembers, innocent, over = (
        findings(Loss(), forget=(lost("a", nats), lost("b", nats, nats, nats)))["forget"].value
        for nats in (0.0, math.log(50), 40.0)
    )
    assert remembers == 0
    assert innocent == pytest.approx(math.log(50))
    assert over == 40 > innocent


def test_the_interval_holds_the_value_and_a_single_example_has_none():
    found = findings(Loss(), forget=RAGGED)["forget"]
    assert found.low < found.value < found.high
    one = findings(Loss(), forget=RAGGED[1:2])["forget"]
    assert one.low == one.value == one.high == pytest.approx(1.5 * math.log(2))


@pytest.mark.parametrize("count", range(1, 12))
@pytest.mark.parametrize("loss", [0.1, 0.3, 1.7])
def test_equal_losses_have_an_interval_that_holds_the_value_to_the_last_digit(count: int, loss: float):
    found = findings(Loss(), forget=tuple(lost(str(k), loss) for k in range(count)))["forget"]
    assert found.low <= found.value <= found.high
