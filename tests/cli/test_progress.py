"""What a user sees at the end of a run."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from expunge.cli.progress import Progress
from expunge.core.audit import Finding
from expunge.events import Checked, Started
from expunge.report.report import Report
from tests.report.reports import outcome, report, verdict


def finding(set_: str, model: str, value: float, ideal: float | None = None) -> Finding:
    return Finding("Probability", set_, value, value / 2, 2 * value, 7, "a definition", ideal, model)


def shown(made: Report, capsys: pytest.CaptureFixture) -> list[str]:
    Progress(Console(file=io.StringIO())).summary(made, Path("out"))
    return capsys.readouterr().out.splitlines()


def test_a_value_is_shown_with_its_interval_and_count_however_small(capsys):
    found = (finding("forget", "before", 0.5, 0.01), finding("forget", "after", 0.0012, 0.01))
    head, row = shown(report(findings=found), capsys)[:2]
    assert head.split() == ["set", "audit", "n", "before", "after", "95", "%", "of", "after", "ideal"]
    assert row.split() == ["forget", "Probability", "7", "0.50", "0.0012", "6.0e-04", "to", "0.0024", "0.01"]


def test_what_should_be_gone_stands_first_and_what_should_stay_next(capsys):
    sets = ("holdout", "mine", "retain", "forget")
    lines = shown(report(findings=tuple(finding(name, "before", 0.5) for name in sets)), capsys)
    assert [line.split()[0] for line in lines[1:5]] == ["forget", "retain", "holdout", "mine"]


def test_a_rule_says_its_number_and_bound_or_that_nothing_was_measured(capsys):
    judged = verdict(
        outcome("forget.Probability <= 0.25", "yes", 0.0012345),
        outcome("forget.Choice <= 0.25", "no", None, None),
        outcome("forget.Loss within 0.69", "not measured", 4.0, 5.0, low=-1.5, high=0.5),
    )
    found = (finding("forget", "before", 0.5), finding("forget", "after", 0.0012345))
    lines = shown(report(findings=found, verdict=judged), capsys)
    assert lines[lines.index("Forgotten: no. Why forgotten is so.") + 1 :][:3] == [
        "  yes   forget.Probability <= 0.25  (0.001234, against 0.25)",
        "  NO    forget.Choice <= 0.25  (not measured: no record of this set has what the audit needs)",
        "  OPEN  forget.Loss within 0.69  (4, against 5, off by −1.50 to +0.50)",
    ]
    assert lines[-4:] == [
        "Not forgotten, traceless not measured, unharmed not measured.",
        "To measure traceless: Why traceless is so.",
        "To measure unharmed: Why unharmed is so.",
        f"Report: {Path('out', 'report.html')}",
    ]


def test_a_table_is_not_folded_where_there_is_no_terminal(capsys):
    models = ("before", "after", "reference")
    found = tuple(finding("forget vs holdout", model, 0.000123, 0.000456) for model in models)
    lines = shown(report(findings=found), capsys)
    assert lines[1].count("e-0") == 6  # three values, the interval's two ends and the ideal on one line


def test_a_run_without_a_level_says_when_it_ends():
    told = io.StringIO()
    with Progress(Console(file=told, width=200)) as progress:
        progress(Started(2, 1, 10, 5, None, 0.1, "none", None))
        progress(Checked(0, 2.0, 1.5, None, 0.0))
    lines = told.getvalue().splitlines()
    assert len(lines) == 3  # and no empty line, since no bar was drawn
    assert lines[1].endswith("All 5 steps are taken")
    assert lines[2].endswith("step 0: forget loss 2.00, retain loss 1.50")


def test_a_value_without_an_interval_is_shown_without_one(capsys):
    p = Finding("ForgetQuality", "forget", 0.31, 0.31, 0.31, 7, "a definition", 1.0, "after")
    _, row = shown(report(findings=(p,)), capsys)[:2]
    assert row.split() == ["forget", "ForgetQuality", "7", "0.31", "1.00"]
