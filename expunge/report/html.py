"""One self-contained HTML page that says what a run forgot, at what cost, and what that does not show.

No script and no outside asset; every string of the report is escaped, and letters that could mislead a reader (bidi and
control characters) are spelled out. The same report gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from expunge.core.audit import Finding
from expunge.primitives.meanings import meaning_of
from expunge.report import plots
from expunge.report.answers import Outcome, in_order
from expunge.report.run import Fact, about_run, blocks_of
from expunge.report.strips import Span, Strip, finite, strip
from expunge.report.words import duration, moment, number, precise, short, storage, visible, with_sign

if TYPE_CHECKING:
    from expunge.report.report import Report, Sample

MODELS = ("before", "after", "reference")
BETTER = {"lower": "lower is better", "higher": "higher is better", "ideal": "nearer its ideal is better"}
MEANINGS = {
    "forget": "what should be gone",
    "paraphrase": "the same, asked in other words",
    "retain": "what should stay",
    "general": "what the model can do besides",
    "neutral": "plain prose, as it reads it",
    "neighbour": "near what should be gone, and should stay",
    "neighbours": "near what should be gone, and should stay",
    "holdout": "never seen in training",
}
MEANT = {"gone": "what should be gone", "kept": "what should stay", "never": "never seen in training"}
"""Of sets that go by other names, or were declared to be what their names do not say."""

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
        answers=answers_of(report),
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


MARKS = {"yes": "met", "no": "missed", "not measured": "open"}
WORDS = {
    "forgotten": {"yes": "forgotten", "no": "not forgotten"},
    "traceless": {"yes": "traceless", "no": "traces show"},
    "unharmed": {"yes": "unharmed", "no": "harmed"},
}
ASKED = {
    "forgotten": "Is what should be gone known no better, and no worse, than by a model that never saw it?",
    "traceless": "Is there nothing by which an attacker tells the forgotten records from never seen ones?",
    "unharmed": "Is what should stay known as well as before?",
}


def outcome(report: Report) -> Headline:
    """The verdict; what was only audited is not said to have been forgotten."""
    verdict = report.verdict
    if verdict is None:
        return Headline("Audited; no thresholds were set", "open")
    if report.run is None:
        missed = sum(rule.result == "no" for rule in verdict.rules)
        were = "threshold was" if len(verdict.rules) == 1 else "thresholds were"
        words = f"{missed} of {len(verdict.rules)} {were} not met" if missed else "Within every threshold"
        return Headline(words, "missed" if missed else "met")
    said = [WORDS[name].get(answer.said, f"{name} not measured") for name, answer in verdict]
    marks = [MARKS[answer.said] for _, answer in verdict]
    mark = next(mark for mark in ("missed", "open", "met") if mark in marks)
    return Headline(", ".join(said).capitalize(), mark)


@dataclass(frozen=True)
class Told:
    """One of the three answers, as a page shows it."""

    name: str
    said: str
    mark: str
    asked: str
    reason: str
    rules: list[Judged]
    further: tuple[str, ...]
    """What was not measured, beyond what the reason says."""


def answers_of(report: Report) -> list[Told]:
    """The answers, each with its reason and its rules: those that say no first."""
    made = []
    for name, answer in report.verdict or ():
        rules = [Judged(rule, MARKS[rule.result], _result(rule), _off(rule)) for rule in answer.rules]
        rules.sort(key=lambda one: (one.outcome.condition, ("missed", "open", "met").index(one.mark)))
        further = tuple(each for each in answer.unmeasured if each != answer.reason)
        made.append(Told(name, answer.said, MARKS[answer.said], ASKED[name], answer.reason, rules, further))
    return made


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
    """A rule, with its result in words."""

    outcome: Outcome
    mark: str
    result: str
    off: str
    """By how much the value differs from what it was held against, with the interval."""


def _result(rule: Outcome) -> str:
    if rule.result == "not measured":
        return "not measured"
    if rule.low is not None or not (finite(rule.value) and finite(rule.bound)):
        return rule.result
    off = round(abs(rule.value - rule.bound), 9)
    gap = f"{off:.2g}" if off < 100 else short(off)
    return f"met, {gap} to spare" if rule.result == "yes" else f"not met, by {gap}"


def _off(rule: Outcome) -> str:
    if not (finite(rule.low) and finite(rule.high) and finite(rule.value) and finite(rule.bound)):
        return ""
    return f"{with_sign(rule.value - rule.bound)} ({with_sign(rule.low)} to {with_sign(rule.high)})"


# The results: sets, audits, models


def by_set(told: Iterable[Finding]) -> Findings:
    """Findings by set, audit and model: what should be gone first, what should stay, the others as they come."""
    findings: Findings = {}
    for finding in told:
        findings.setdefault(finding.set, {}).setdefault(finding.audit, {})[finding.model] = finding
    return {where: findings[where] for where in in_order(findings)}


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
    if " vs " in where:
        return "can the two be told apart?"
    told = MEANT.get(meaning_of(where) or "", "")
    return MEANINGS.get(where, told) if meaning_of(where) == meaning_of(str(where)) else told


def colour(where: str) -> str:
    """The page's style for a set."""
    return {"gone": "gone", "kept": "kept"}.get(meaning_of(where) or "", "other")


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
