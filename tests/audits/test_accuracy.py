"""Accuracy by hand, on answers of 1, 2, 3 and 7 rows."""

import pytest

from expunge.audits.accuracy import Accuracy
from tests.audits.scripted import findings, flagged

RAGGED = (
    flagged("one", True),
    flagged("two", True, False),
    flagged("three", False, False, True),
    flagged("seven", True, True, True, True, True, False, False),
)


def test_it_is_the_mean_over_examples_of_the_share_of_right_rows():
    found = findings(Accuracy(), forget=RAGGED)["forget"]
    assert found.scores == pytest.approx((1, 1 / 2, 1 / 3, 5 / 7), rel=1e-6)
    assert found.value == pytest.approx((1 + 1 / 2 + 1 / 3 + 5 / 7) / 4, rel=1e-6)
    # not the mean over rows, 8 / 13 = 0.615
    assert round(found.value, 3) == 0.637
    assert found.n == 4


def test_each_set_gets_the_scores_of_its_own_examples():
    found = findings(Accuracy(), forget=RAGGED[:1], retain=RAGGED[1:3], holdout=RAGGED[3:])
    assert found["forget"].value == 1
    assert found["retain"].value == pytest.approx((1 / 2 + 1 / 3) / 2, rel=1e-6)
    assert found["holdout"].value == pytest.approx(5 / 7, rel=1e-6)


@pytest.mark.parametrize(("right", "value"), [(True, 1.0), (False, 0.0)])
def test_a_model_that_remembers_is_right_everywhere_and_an_over_forgotten_one_nowhere(right: bool, value: float):
    found = findings(Accuracy(), forget=(flagged("a", right), flagged("b", right, right, right)))["forget"]
    assert found.value == value
    assert found.low <= value <= found.high
    # Wilson's interval has width where all are alike: 2 of 2 may be 1 in 3 of many
    assert found.high - found.low > 0.5


def test_the_interval_of_shares_is_the_bootstraps_and_holds_the_value():
    found = findings(Accuracy(), forget=RAGGED)["forget"]
    assert min(found.scores) <= found.low < found.value < found.high <= max(found.scores)


def test_what_an_innocent_gets_is_not_known_beforehand():
    assert findings(Accuracy(), forget=RAGGED)["forget"].ideal is None
