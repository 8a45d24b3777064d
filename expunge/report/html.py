"""One self-contained HTML page that says what a run forgot, at what cost, and what that does not show.

No script and no outside asset; every string of the report is escaped, and letters that could mislead a reader (bidi and
control characters) are spelled out. The same report gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from expunge.core.audit import Finding
from expunge.core.request import should_be_gone
from expunge.report import plots
from expunge.report.run import Fact, about_run, blocks_of
from expunge.report.strips import Span, Strip, finite, strip
from expunge.report.words import duration, moment, number, precise, short, storage, visible

if TYPE_CHECKING:
    from expunge.report.report import Report, Sample
    from expunge.report.verdict import Outcome

MODELS = ("before", "after", "reference")
BETTER = {"lower": "lower is better", "higher": "higher is better", "ideal": "nearer its ideal is better"}
MEANINGS = {
    "forget": "what should be gone",
    "paraphrase": "the same, asked in other words",
    "retain": "what should stay",
    "general": "what the model can do besides",
    "holdout": "never seen in training",
}
COLOURS = {"forget": "gone", "paraphrase": "gone", "retain": "kept", "general": "kept"}

ABOVE, BELOW = "after is above it", "after is below it"
ORDER = ("forget", "retain", "holdout")

Row = dict[str, Finding]  # findings of one audit on one set, by model
Findings = dict[str, dict[str, Row]]  # by set, then by audit


def render(report: Report) -> str:
    """The page of one run, or of one audit (no `run`, no steps)."""
    run = report.run
    findings = by_set(report.findings)
    kept = run.ended.kept_step if run and run.ended else None
    level = run.started.level if run and run.started else None
    return page(
        "page.html.j2",
        report=report,
        outcome=outcome(report),
        sentence=sentence(findings),
        tiles=tiles(findings),
        rules=rules_of(report),
        results=results(findings),
        curves=plots.curves(report.steps, kept, level),
        run=about_run(run) if run else [],
        blocks=blocks_of(run.edited) if run and run.edited else [],
        samples=samples_of(report),
        environment=asdict(report.environment).items(),
    )


def page(template: str, **context: object) -> str:
    """A template of this folder, filled in."""
    return _environment().get_template(template).render(context)


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    words = (number, precise, short, storage, duration, moment, meaning, colour)
    made.filters |= {word.__name__: word for word in words}
    return made


# The outcome


@dataclass(frozen=True)
class Headline:
    """The verdict in words, and which mark stands beside it: met, missed or open."""

    words: str
    mark: str
    outside: str = ""
    """What of the forgotten lies elsewhere than in a model that never saw it; a threshold may not have asked."""


def outcome(report: Report) -> Headline:
    """The verdict; what was only audited is not said to have been forgotten."""
    return replace(_headline(report), outside=outside(by_set(report.findings)))


def _headline(report: Report) -> Headline:
    rules = report.verdict.rules if report.verdict else ()
    missed = sum(not rule.met for rule in rules)
    if not rules:
        return Headline("No thresholds were set", "open")
    if missed and all(rule.met or rule.few for rule in rules):
        return Headline("Inconclusive: one record is too few to tell", "open")
    if missed:
        were = "threshold was" if len(rules) == 1 else "thresholds were"
        return Headline(f"{missed} of {len(rules)} {were} not met", "missed")
    if report.run is None:
        return Headline("Within every threshold", "met")
    if not any(rule.rule.startswith("forget") for rule in rules):
        return Headline("Changed, but no threshold asks whether it forgot", "open")
    if report.verdict and report.verdict.unjudged:
        return Headline(f"Forgotten within every threshold. {report.verdict.unjudged}", "open")
    return Headline("Forgotten within every threshold", "met")


def outside(findings: Findings) -> str:
    """What should be gone and, after forgetting, does not have its ideal in its interval; on which side of it it is."""
    sides = {ABOVE: "above", BELOW: "below"}
    far = [
        f"{where} {audit} ({sides[reach]})"
        for where, audit, row in rows_of(findings)
        if should_be_gone(where) and (reach := _reach(row)) in sides
    ]
    return f"Outside the interval of its ideal: {', '.join(far)}" if far else ""


def sentence(findings: Findings) -> str:
    """The first audit of the forget set, and the same on the retain set, in one sentence; empty where there is none."""
    for audit, row in findings.get("forget", {}).items():
        kept = findings.get("retain", {}).get(audit)
        said = f"On what should be gone, {audit} {_movement(row)}{_ideal(row)}"
        return said + (f"; on what should stay it {_movement(kept)}." if kept else ".")
    return ""


def _movement(row: Row) -> str:
    before, after = (row[model].value if model in row else None for model in ("before", "after"))
    if not (finite(before) and finite(after)):
        return f"is {number(row['after'].value if 'after' in row else any_of(row).value)}"
    if number(before) == number(after):
        return f"stayed at {number(after)}"
    return f"{'fell' if after < before else 'rose'} from {number(before)} to {number(after)}"


def _ideal(row: Row) -> str:
    ideal = any_of(row).ideal
    return f" (ideal {number(ideal)})" if finite(ideal) else ""


@dataclass(frozen=True)
class Tile:
    """A number large enough to be read across a table."""

    where: str
    audit: str
    values: list[str]
    hint: str


def tiles(findings: Findings) -> list[Tile]:
    """The first audit of the forget set, on each set that it was asked of; at most four."""
    audit = next(iter(findings.get("forget") or next(iter(findings.values()), {})), None)
    return [_tile(where, audit, rows[audit]) for where, rows in findings.items() if audit in rows][:4]


def _tile(where: str, audit: str, row: Row) -> Tile:
    values = [number(row[model].value) for model in ("before", "after") if model in row]
    return Tile(where, audit, values, better_of(row) + _ideal(row))


@dataclass(frozen=True)
class Judged:
    """A threshold, with its result in words."""

    outcome: Outcome
    result: str


def rules_of(report: Report) -> list[Judged]:
    """Thresholds, each with its result in words."""
    return [Judged(rule, _result(rule)) for rule in (report.verdict.rules if report.verdict else ())]


def _result(rule: Outcome) -> str:
    if not (finite(rule.value) and finite(rule.bound)):
        return "met" if rule.met else "not met: not measured"
    if rule.few:
        return "open: asked of one record alone"
    off = round(abs(rule.value - rule.bound), 9)
    gap = f"{off:.2g}" if off < 100 else short(off)
    return f"met, {gap} to spare" if rule.met else f"not met, by {gap}"


# The results: sets, audits, models


def by_set(told: Iterable[Finding]) -> Findings:
    """Findings by set, audit and model: what should be gone first, what should stay, the others as they come."""
    findings: Findings = {}
    for finding in told:
        findings.setdefault(finding.set, {}).setdefault(finding.audit, {})[finding.model] = finding
    return {where: findings[where] for where in in_order(findings)}


def in_order(sets: Iterable[str]) -> list[str]:
    """Sets as they are read on a page."""
    return sorted(sets, key=lambda where: ORDER.index(where) if where in ORDER else len(ORDER))


def rows_of(findings: Findings) -> list[tuple[str, str, Row]]:
    return [(where, audit, row) for where, audits in findings.items() for audit, row in audits.items()]


def any_of(row: Row) -> Finding:
    """What does not depend on the model: the ideal, the definition, which way is better."""
    return next(iter(row.values()))


@dataclass(frozen=True)
class Line:
    """A row of the table; None where a model was not asked."""

    audit: str
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
    return Results(models, lines, notes)


def _line(audit: str, row: Row, models: Sequence[str], notes: Sequence[str]) -> Line:
    same = any_of(row)
    placed = [(model, model if model in MODELS else "else", span_of(row[model])) for model in models if model in row]
    return Line(
        audit=audit,
        note=note_of(row, notes),
        better=better_of(row),
        findings=[row.get(model) for model in models],
        ideal=same.ideal,
        reach=_reach(row),
        strip=strip(placed, same.ideal),
    )


def _reach(row: Row) -> str:
    """Where the ideal lies, seen from the interval of the model that forgot; nothing where either is not known."""
    after, ideal = row.get("after"), any_of(row).ideal
    if after is None or not (finite(after.low) and finite(after.high) and finite(ideal)):
        return ""
    return ABOVE if ideal < after.low else BELOW if ideal > after.high else "within the interval"


def better_of(row: Row) -> str:
    """Which way is better, in words; nothing where it is the ideal and there is none."""
    same = any_of(row)
    return "" if same.better == "ideal" and not finite(same.ideal) else BETTER[same.better]


def span_of(finding: Finding) -> Span:
    return Span(finding.value, finding.low, finding.high)


def notes_of(reports: Iterable[Findings]) -> list[str]:
    """Every definition once, in the order of first use."""
    told = (any_of(row).definition for findings in reports for _, _, row in rows_of(findings))
    return list(dict.fromkeys(definition for definition in told if definition))


def note_of(row: Row, notes: Sequence[str]) -> int | None:
    definition = any_of(row).definition
    return notes.index(definition) + 1 if definition in notes else None


def meaning(where: str) -> str:
    """What a set is for, in plain words."""
    return "can the two be told apart?" if " vs " in where else MEANINGS.get(where, "")


def colour(where: str) -> str:
    """The page's style for a set."""
    return COLOURS.get(where.split(" ")[0], "other")


# The samples


@dataclass(frozen=True)
class Shown:
    """One example, with its texts only if somebody asked for them."""

    id: str
    where: str
    texts: list[Fact]


def samples_of(report: Report) -> list[Shown]:
    """Texts are passed on only where the report says that they are shown; then no template can show them by mistake."""
    shown = report.samples.shown
    return [Shown(item.id, item.set, _texts(item) if shown else []) for item in report.samples.items]


def _texts(item: Sample) -> list[Fact]:
    texts = {
        "Asked": item.prompt,
        "Right answer": item.answer,
        "Before": item.before,
        "After": item.after,
        "Reference": item.reference,
    }
    return [(label, text) for label, text in texts.items() if text is not None]
