"""One self-contained HTML page that says what a run forgot, at what cost, and what that does not show.

No script and no outside asset; every string of the report is escaped, and letters that could mislead a reader (bidi and
control characters) are spelled out. The same report gives the same bytes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from expunge.report import plots
from expunge.report.plots import finite
from expunge.report.words import duration, moment, number, precise, short, storage, visible

MODELS = ("before", "after", "reference")
TEXTS = {"prompt": "Asked", "answer": "Right answer", "before": "Before", "after": "After", "reference": "Reference"}
BETTER = {"lower": "lower is better", "higher": "higher is better", "ideal": "nearer its ideal is better"}
MEANINGS = {
    "forget": "what should be gone",
    "paraphrase": "the same, asked in other words",
    "retain": "what should stay",
    "general": "what the model can do besides",
    "holdout": "never seen in training",
}
COLOURS = {"forget": "gone", "paraphrase": "gone", "retain": "kept", "general": "kept"}

SHOWN = 60
"""Blocks of a model that the page names at most."""

Fact = tuple[str, str]
Row = dict[str, dict]  # findings of one audit on one set, by model
Findings = dict[str, dict[str, Row]]  # by set, then by audit


def render(report: dict, steps: list[dict]) -> str:
    """The page of one run, or of one audit (no `run`, no steps)."""
    run = report.get("run") or {}
    findings = by_set(report)
    return page(
        "page.html.j2",
        report=report,
        name=name_of(report),
        outcome=outcome(report),
        sentence=sentence(findings),
        tiles=tiles(findings),
        rules=rules_of(report),
        results=results(findings),
        curves=plots.curves(steps, run.get("kept_step"), run.get("level")),
        run=about_run(run),
        blocks=blocks_of(run),
        samples=samples_of(report),
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


def outcome(report: dict) -> Headline:
    """The verdict; what was only audited is not said to have been forgotten."""
    rules = rules_of(report)
    missed = sum(not rule["met"] for rule in rules)
    if not rules:
        return Headline("No thresholds were set", "open")
    if missed:
        were = "threshold was" if len(rules) == 1 else "thresholds were"
        return Headline(f"{missed} of {len(rules)} {were} not met", "missed")
    if not changed(report):
        return Headline("Within every threshold", "met")
    if not any(str(rule["rule"]).startswith("forget") for rule in rules):
        return Headline("Changed, but no threshold asks whether it forgot", "open")
    return Headline("Forgotten within every threshold", "met")


def changed(report: dict) -> bool:
    """Whether a model was made to forget, rather than looked at."""
    return bool(report.get("run")) or any("after" in row for _, _, row in rows_of(by_set(report)))


def sentence(findings: Findings) -> str:
    """The first audit of the forget set, and the same on the retain set, in one sentence; empty where there is none."""
    for audit, row in findings.get("forget", {}).items():
        kept = findings.get("retain", {}).get(audit)
        said = f"On what should be gone, {audit} {_moved(row)}{_ideal(row)}"
        return said + (f"; on what should stay it {_moved(kept)}." if kept else ".")
    return ""


def _moved(row: Row) -> str:
    before, after = (row.get(model, {}).get("value") for model in ("before", "after"))
    if not (finite(before) and finite(after)):
        return f"is {number((row.get('after') or any_of(row)).get('value'))}"
    if number(before) == number(after):
        return f"stayed at {number(after)}"
    return f"{'fell' if after < before else 'rose'} from {number(before)} to {number(after)}"


def _ideal(row: Row) -> str:
    ideal = any_of(row).get("ideal")
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
    values = [number(row[model].get("value")) for model in ("before", "after") if model in row]
    return Tile(where, audit, values, better_of(row) + _ideal(row))


def rules_of(report: dict) -> list[dict]:
    """Thresholds, each with its result in words."""
    return [_judged(rule) for rule in (report.get("verdict") or {}).get("rules") or []]


def _judged(rule: dict) -> dict:
    value, bound, met = rule.get("value"), rule.get("bound"), rule.get("met") is True
    if not (finite(value) and finite(bound)):
        result = "met" if met else "not met: not measured"
    else:
        off = round(abs(value - bound), 9)
        gap = f"{off:.2g}" if off < 100 else short(off)
        result = f"met, {gap} to spare" if met else f"not met, by {gap}"
    return {"rule": rule.get("rule"), "value": value, "bound": bound, "met": met, "result": result}


# The results: sets, audits, models


def by_set(report: dict) -> Findings:
    """Findings by set, audit and model, in the order of the report."""
    findings: Findings = {}
    for finding in report.get("findings") or []:
        audits = findings.setdefault(finding.get("set") or "–", {})
        audits.setdefault(finding.get("audit") or "–", {})[finding.get("model") or "before"] = finding
    return findings


def rows_of(findings: Findings) -> list[tuple[str, str, Row]]:
    return [(where, audit, row) for where, audits in findings.items() for audit, row in audits.items()]


def any_of(row: Row) -> dict:
    """What does not depend on the model: the ideal, the definition, which way is better."""
    return next(iter(row.values()))


@dataclass(frozen=True)
class Line:
    """A row of the table; None where a model was not asked."""

    audit: str
    note: int | None
    better: str
    findings: list[dict | None]
    ideal: float | None
    reach: str
    """Where the ideal lies, seen from the model that forgot."""
    strip: plots.Strip


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
        ideal=same.get("ideal"),
        reach=_reach(row.get("after") or {}, same.get("ideal")),
        strip=plots.strip(placed, same.get("ideal")),
    )


def _reach(after: dict, ideal: float | None) -> str:
    low, high = after.get("low"), after.get("high")
    if not (finite(low) and finite(high) and finite(ideal)):
        return ""
    return "after is above it" if ideal < low else "after is below it" if ideal > high else "within the interval"


def better_of(row: Row) -> str:
    """Which way is better, in words; nothing where it is the ideal and there is none."""
    better = any_of(row).get("better")
    return "" if better == "ideal" and not finite(any_of(row).get("ideal")) else BETTER.get(better, "")


def span_of(finding: dict) -> plots.Span:
    return plots.Span(finding.get("value"), finding.get("low"), finding.get("high"))


def notes_of(reports: Iterable[Findings]) -> list[str]:
    """Every definition once, in the order of first use."""
    told = (any_of(row).get("definition") for findings in reports for _, _, row in rows_of(findings))
    return list(dict.fromkeys(definition for definition in told if definition))


def note_of(row: Row, notes: Sequence[str]) -> int | None:
    definition = any_of(row).get("definition")
    return notes.index(definition) + 1 if definition in notes else None


def meaning(where: str) -> str:
    """What a set is for, in plain words."""
    return "can the two be told apart?" if " vs " in where else MEANINGS.get(where, "")


def colour(where: str) -> str:
    """The page's style for a set."""
    return COLOURS.get(where.split(" ")[0], "other")


# The run and its samples


def name_of(report: dict) -> str:
    return (report.get("model") or {}).get("name") or "a model without a name"


def about_run(run: dict) -> list[Fact]:
    """How the run went, as far as it was recorded."""
    adapter = run.get("adapter") or {}
    source = f", from {run['level_source']}" if run.get("level_source") else ""
    layers = f" in {adapter['layers']} layers" if finite(adapter.get("layers")) else ""
    share = f", {adapter['share']:.2%} of the model" if finite(adapter.get("share")) else ""
    facts = {
        "Why it stopped": run.get("stopped"),
        "Kept": _told(run.get("kept_step"), "step ", f" of {number(run.get('steps'))}"),
        "Forget loss to reach": _told(run.get("level"), after=source),
        "Budget for the retain loss": _told(run.get("budget")),
        "Numbers that could move": _told(adapter.get("trainable"), after=layers + share),
        "Read in parts": _told(run.get("parts"), after=" a step, since memory ran out"),
        **_left(run),
        **_merged(run.get("merge") or {}, "edit" not in run),
        **_edited(run.get("edit") or {}),
    }
    return [(name, said) for name, said in facts.items() if said]


def _left(run: dict) -> dict[str, str]:
    """Which blocks still change, of an adapter that switches some off when a run ends."""
    left, groups = run.get("blocks_left"), run.get("groups")
    if not isinstance(left, list):
        return {}
    many = f"{len(left)} of {len(groups)}" if isinstance(groups, list) else str(len(left))
    which = f" (from 0: {', '.join(map(str, left))})" if left else ""
    return {"Blocks that still change": many + which}


def _merged(merge: dict, usual: bool) -> dict[str, str]:
    """How far the model that was written is from the one that was trained; where both are one, nothing. Whether there
    was an adapter is taken as `usual` where it is not told."""
    gap = merge.get("max_logit_difference")
    if merge.get("adapter", usual):
        return {"Merged model against adapter": _told(gap, "logits within ")}
    return {"Saved model against the trained one": _told(gap, "logits within ")} if gap else {}


def _edited(edit: dict) -> dict[str, str]:
    """How much of the model a method without steps changed."""
    changed, count = edit.get("changed"), edit.get("parameters")
    share = f" of {short(count)} ({changed / count:.2%})" if finite(changed) and finite(count) and count else ""
    alpha = _told(edit.get("alpha"), ", each more than ", " times as important to the forget set as to all data")
    return {
        "Numbers changed": f"{short(changed)}{share}" if finite(changed) else "",
        "Numbers dampened": f"{short(edit['selected'])}{alpha}" if finite(edit.get("selected")) else "",
        "Length of the change": _told(edit.get("distance")),
    }


@dataclass(frozen=True)
class Block:
    """A part of the model, and how much of it was changed."""

    name: str
    changed: int
    parameters: int
    share: float
    distance: float | None
    width: float
    """Of its bar, in per cent of the block of which the largest share was changed."""


def blocks_of(run: dict) -> list[Block]:
    """The blocks that a method without steps changed, as far as that was recorded; at most 60, the most changed."""
    told = {
        name: of
        for name, of in ((run.get("edit") or {}).get("blocks") or {}).items()
        if finite(of.get("changed")) and finite(of.get("parameters")) and of["parameters"] > 0
    }
    shares = {name: of["changed"] / of["parameters"] for name, of in told.items()}
    shown = set(sorted(shares, key=lambda name: -shares[name])[:SHOWN])
    most = max(shares.values(), default=0) or 1
    return [
        Block(name, of["changed"], of["parameters"], shares[name], of.get("distance"), 100 * shares[name] / most)
        for name, of in told.items()
        if name in shown
    ]


def _told(value: object, before: str = "", after: str = "") -> str:
    return f"{before}{number(value)}{after}" if finite(value) else ""


@dataclass(frozen=True)
class Sample:
    """One example, with its texts only if somebody asked for them."""

    id: str
    where: str
    texts: list[Fact]


def samples_of(report: dict) -> list[Sample]:
    """Texts are passed on only where the report says that they are shown; then no template can show them by mistake."""
    samples = report.get("samples") or {}
    fields = TEXTS if samples.get("shown") is True else {}
    return [
        Sample(str(item.get("id", "–")), item.get("set") or "–", _texts(item, fields))
        for item in samples.get("items") or []
    ]


def _texts(item: dict, fields: dict[str, str]) -> list[Fact]:
    return [(label, item[field]) for field, label in fields.items() if item.get(field) is not None]
