"""The findings of a report as tables: by set, then by audit, a column for each model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from expunge.core.audit import Finding
from expunge.report.answers import in_order
from expunge.report.strips import Span, Strip, finite, strip
from expunge.report.terms import explain
from expunge.report.words import number

MODELS = ("before", "after", "reference")
BETTER = {"lower": "lower is better", "higher": "higher is better", "ideal": "nearer its ideal is better"}

Row = dict[str, Finding]  # findings of one audit on one set, by model
Findings = dict[str, dict[str, Row]]  # by set, then by audit


def by_set(told: Iterable[Finding]) -> Findings:
    """Findings by set, audit and model: what should be gone first, what should stay, the others as they come."""
    findings: Findings = {}
    for finding in told:
        findings.setdefault(finding.set, {}).setdefault(finding.audit, {})[finding.model] = finding
    return {where: findings[where] for where in in_order(findings)}


def rows_of(findings: Findings) -> list[tuple[str, str, Row]]:
    """Every row with its set and its audit."""
    return [(where, audit, row) for where, audits in findings.items() for audit, row in audits.items()]


def any_of(row: Row) -> Finding:
    """What does not depend on the model: the ideal, the definition, which way is better."""
    return next(iter(row.values()))


@dataclass(frozen=True)
class Line:
    """A row of the table; None where a model was not asked."""

    audit: str
    explained: str
    note: int | None
    better: str
    findings: list[Finding | None]
    ideal: float | None
    reach: str
    """Where the ideal lies, seen from the model that forgot."""
    strip: Strip


@dataclass(frozen=True)
class Results:
    """The table of findings."""

    models: list[str]
    lines: dict[str, list[Line]]
    """By set."""
    digests: dict[str, str]
    """The first audit of each set in half a line, for who does not open its table."""
    notes: list[str]
    """Definitions, each once; a line's note counts them from 1."""


def results(findings: Findings) -> Results:
    """The table, with a column for each model that was asked anything."""
    asked = dict.fromkeys(model for _, _, row in rows_of(findings) for model in row)
    models = [*(model for model in MODELS if model in asked), *(model for model in asked if model not in MODELS)]
    notes = notes_of([findings])
    lines = {
        where: [_line(audit, row, models, notes) for audit, row in rows.items()] for where, rows in findings.items()
    }
    return Results(
        models, lines, {where: _digest(*next(iter(rows.items()))) for where, rows in findings.items()}, notes
    )


def _digest(audit: str, row: Row) -> str:
    values = [number(row[model].value) for model in MODELS[:2] if model in row]
    ideal = any_of(row).ideal
    return f"{audit} {' → '.join(values)}" + (f", ideal {number(ideal)}" if finite(ideal) else "")


def _line(audit: str, row: Row, models: Sequence[str], notes: Sequence[str]) -> Line:
    same = any_of(row)
    placed = [(model, model if model in MODELS else "else", span_of(row[model])) for model in models if model in row]
    return Line(
        audit=audit,
        explained=explain(audit),
        note=note_of(row, notes),
        better=better_of(row),
        findings=[row.get(model) for model in models],
        ideal=same.ideal,
        reach=_reach(row),
        strip=strip(placed, same.ideal),
    )


def _reach(row: Row) -> str:
    """Where the ideal lies, seen from the interval of the model that forgot; nothing where either is not known.

    A value without an interval, such as a p-value, lies on no side of anything: it is not said to be below its ideal.
    """
    after, ideal = row.get("after"), any_of(row).ideal
    if after is None or after.low == after.high or not (finite(after.low) and finite(after.high) and finite(ideal)):
        return ""
    return (
        "after is above it"
        if ideal < after.low
        else "after is below it"
        if ideal > after.high
        else "within the interval"
    )


def better_of(row: Row) -> str:
    """Which way is better, in words; nothing where it is the ideal and there is none."""
    same = any_of(row)
    return "" if same.better == "ideal" and not finite(same.ideal) else BETTER[same.better]


def span_of(finding: Finding) -> Span:
    """A finding's place on an axis."""
    return Span(finding.value, finding.low, finding.high)


def notes_of(reports: Iterable[Findings]) -> list[str]:
    """Every definition once, in the order of first use."""
    told = (any_of(row).definition for findings in reports for _, _, row in rows_of(findings))
    return list(dict.fromkeys(definition for definition in told if definition))


def note_of(row: Row, notes: Sequence[str]) -> int | None:
    """Number of a row's definition among the notes."""
    definition = any_of(row).definition
    return notes.index(definition) + 1 if definition in notes else None
