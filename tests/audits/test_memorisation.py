"""Extraction strength and exact memorisation by hand: which of an answer's tokens come out right, its end aside."""

import pytest

from expunge.audits.exact_memorization import ExactMemorization
from expunge.audits.extraction_strength import ExtractionStrength
from expunge.errors import UsageRefused
from tests.audits.scripted import Asked, findings, flagged

RAGGED = (
    flagged("all", True, True, True, True, True),
    flagged("late", False, True, True, True, False),
    flagged("broken", True, True, False, True, True),
    flagged("early", True, True, True, False, True),
    flagged("two", False, True),
)
"""The last row of each is its end token, which is not counted: 4, 4, 4, 4 and 1 are."""


def test_extraction_strength_is_the_right_end_of_an_answer():
    found = findings(ExtractionStrength(), forget=RAGGED)["forget"]
    assert found.scores == (1, 3 / 4, 1 / 4, 1 / 4, 1)  # open-unlearning's loop ends at the last row: never 0
    assert found.value == pytest.approx((1 + 3 / 4 + 1 / 4 + 1 / 4 + 1) / 5)


def test_without_a_floor_an_answer_that_ends_wrong_has_0():
    assert findings(ExtractionStrength(floor="none"), forget=RAGGED)["forget"].scores == (1, 3 / 4, 1 / 4, 0, 0)
    with pytest.raises(UsageRefused, match="`floor` of ExtractionStrength must be 'none' or 'last row'. Got 'last'"):
        ExtractionStrength(floor="last")


def test_exact_memorisation_is_the_share_of_right_tokens_wherever_they_stand():
    found = findings(ExactMemorization(), forget=RAGGED)["forget"]
    assert found.scores == (1, 3 / 4, 3 / 4, 3 / 4, 0)
    assert found.value == pytest.approx(13 / 4 / 5)


@pytest.mark.parametrize("audit", [ExtractionStrength(), ExactMemorization()])
def test_an_answer_of_which_only_its_end_is_labelled_is_left_out(audit):
    found = findings(audit, forget=(flagged("one", True), RAGGED[1]), retain=(Asked("end alone"),))
    assert found.keys() == {"forget"}
    assert found["forget"].scores == (3 / 4,)
