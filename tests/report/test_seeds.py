"""Several runs in one table: mean, spread and worst by hand."""

import math

import pytest

from expunge.report.seeds import gather, worst_of
from tests.report.reports import finding, report

LOSS = {"ideal": 5.0, "better": "ideal"}


def runs(*values: float, **facts) -> list:
    return [finding("Loss", "forget", "after", value, **facts) for value in values]


@pytest.mark.parametrize(
    ("found", "worst"),
    [
        (runs(4.0, 5.5, 6.5, **LOSS), 6.5),  # 1.0, 0.5 and 1.5 from the ideal: over-forgotten is as bad
        (runs(3.0, 5.5, 6.5, **LOSS), 3.0),
        (runs(1.0, 3.0, 2.0, better="lower"), 3.0),
        (runs(1.0, 3.0, 2.0, better="higher"), 1.0),
        (runs(1.0, 3.0, better="ideal"), None),  # nothing says which is good
    ],
)
def test_the_worst_is_farthest_from_the_ideal_or_on_the_wrong_side(found: list, worst: float | None):
    assert worst_of(found) == worst


def test_a_row_has_the_mean_and_the_standard_deviation_between_runs():
    before = finding("Loss", "forget", "before", 0.5, **LOSS)
    made = [report(findings=(before, one)) for one in runs(4.0, 6.0, 8.0, **LOSS)]
    told = gather({0: made[0], 4: made[1], 9: None, 7: made[2]}, {0: 0, 4: 6, 9: 5, 7: 0})
    [row] = told.findings
    assert (row.values, row.mean, row.before, row.ideal, row.worst) == ((4.0, 6.0, 8.0), 6.0, 0.5, 5.0, 8.0)
    assert row.deviation == pytest.approx(math.sqrt((4 + 0 + 4) / 2))
    assert (told.seeds, told.exits) == ((0, 4, 9, 7), (0, 6, 5, 0))
    assert told.verdicts[2] == {}  # it failed
    [alone] = gather({3: made[0]}, {3: 0}).findings
    assert alone.deviation is None


def test_what_should_be_gone_stands_first():
    found = tuple(finding("Loss", where, "after", 1.0) for where in ("mine", "retain", "forget"))
    assert [row.set for row in gather({0: report(findings=found)}, {0: 0}).findings] == ["forget", "retain", "mine"]
