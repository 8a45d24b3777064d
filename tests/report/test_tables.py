"""Tables for other programs: every number is in them, and they can be read."""

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest

from expunge.errors import UsageRefused
from expunge.report.pages import write_page
from expunge.report.tables import HEAD, MARKS, render_table
from tests.report.reports import finding as found_at
from tests.report.reports import report
from tests.report.test_pages import run

RUNS = [("a_1", report()), ("b|2 & more", report())]


def test_a_csv_file_has_a_line_for_each_number_in_full():
    lines = list(csv.DictReader(io.StringIO(render_table(RUNS, ".csv"))))
    assert tuple(lines[0]) == HEAD
    found = [finding for _, each in RUNS for finding in each.findings]
    assert len(lines) == len(found)
    for line, finding in zip(lines, found, strict=True):
        assert (line["set"], line["audit"], line["model"]) == (finding.set, finding.audit, finding.model)
        assert (float(line["value"]), float(line["low"]), float(line["high"])) == (
            finding.value,
            finding.low,
            finding.high,
        )
        assert line["ideal"] == ("" if finding.ideal is None else str(finding.ideal))
    assert {line["run"] for line in lines} == {"a_1", "b|2 & more"}


def test_a_markdown_table_has_as_many_cells_in_each_line():
    mark, head, rule, *lines = render_table(RUNS, ".md").splitlines()
    assert mark.encode() == MARKS[".md"]
    columns = head.replace("\\|", "").count("|")
    assert columns == 2 + 1 + 2 + 2 + 1
    assert all(line.count("|") == columns for line in (rule, *lines))
    assert any(line.startswith("| forget | Choice | 0.97 [0.92, 1.02] | 0.20 [0.15, 0.25] |") for line in lines)
    assert "| 0.29 [0.24, 0.34] | 0.25 |" in "\n".join(lines)


def test_a_latex_table_escapes_what_latex_reads_otherwise():
    text = render_table(RUNS, ".tex")
    assert text.startswith("% expunge\n\\begin{tabular}{llrrrrr}")
    assert r"a\_1 & b|2 \& more" in text
    assert text.count(r"\\") == 1 + len({(f.set, f.audit) for f in RUNS[0][1].findings})


@pytest.mark.parametrize("ending", MARKS)
def test_a_table_is_written_over_a_table_of_ours_and_over_nothing_else(ending: str, tmp_path: Path):
    folder, out = run(tmp_path), tmp_path / f"table{ending}"
    assert write_page([folder], out) == out
    first = out.read_bytes()
    assert first.startswith(MARKS[ending])
    write_page([folder], out)
    assert out.read_bytes() == first
    out.write_text("something of the user's\n")
    with pytest.raises(UsageRefused, match="a file that expunge did not write"):
        write_page([folder], out)
    assert out.read_text() == "something of the user's\n"


@pytest.mark.parametrize("name", ["table", "table.txt", "table.xlsx", "model.safetensors"])
def test_a_name_that_does_not_say_what_is_wanted_is_refused(name: str, tmp_path: Path):
    with pytest.raises(UsageRefused, match=r"must end in \.html, \.htm, \.csv, \.md, \.tex"):
        write_page([run(tmp_path)], tmp_path / name)
    assert not (tmp_path / name).exists()


def test_what_was_not_measured_is_a_dash_and_not_a_nought():
    bare = replace(report(), findings=tuple(f for f in report().findings if f.model != "reference"))
    assert "| – | 0.25 |" in render_table([("a", bare)], ".md")


def test_a_value_without_an_interval_has_none_in_a_table():
    p = found_at("ForgetQuality", "forget", "after", 0.31, spread=0.0, ideal=1.0)
    runs = [("a", report(findings=(p,)))]
    assert "| forget | ForgetQuality | – | 0.31 | – |" in render_table(runs, ".md")
    assert "a,forget,ForgetQuality,after,0.31,,,24,1.0,lower" in render_table(runs, ".csv")
    assert "[" not in render_table(runs, ".tex")
