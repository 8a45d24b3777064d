"""One page that sets several runs side by side: what each forgot, what each kept, and what it cost.

Runs go by a letter, in the order given; a letter, unlike a colour or a name, fits into a plot and survives a printer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import TYPE_CHECKING

from expunge.core.audit import Finding
from expunge.report import plots
from expunge.report.answers import in_order, should_stay
from expunge.report.headline import Headline, Told, answers_of, outcome
from expunge.report.html import page
from expunge.report.results import Findings, Row, any_of, better_of, by_set, note_of, notes_of, rows_of, span_of
from expunge.report.samples import side_by_side
from expunge.report.strips import Span, Strip, finite, strip
from expunge.report.terms import explain
from expunge.report.tradeoff import Axis, Point, draw_tradeoff
from expunge.report.words import number

if TYPE_CHECKING:
    from expunge.report.report import Report

BESIDE = (("before", "before"), ("reference", "reference"))
"""Models beside a run's own, and what they are called in a plot."""


@dataclass(frozen=True)
class Run:
    """A report under its letter."""

    letter: str
    name: str
    colour: str
    outcome: Headline
    answers: list[Told]
    findings: Findings
    report: Report

    @property
    def only_audited(self) -> bool:
        """Whether nothing was done to its model."""
        return self.report.run is None

    @property
    def shown_model(self) -> str:
        """Which model stands under the letter: the one after, or before, where it was only looked at."""
        return "before" if self.only_audited else "after"


def render(runs: Sequence[tuple[str, Report]]) -> str:
    """The page that compares runs, each given as its name and its report."""
    told = [_run(position, *run) for position, run in enumerate(runs)]
    notes = notes_of(run.findings for run in told)
    return page(
        "comparison.html.j2",
        runs=told,
        colours={run.letter: run.colour for run in told},
        letters={run.letter: run.letter for run in told},
        sentence=_sentence(told),
        warnings=differences(told),
        lines=_lines(told, notes),
        notes=notes,
        digests=_digests(told),
        referenced=any(f.model == "reference" for run in told for f in run.report.findings),
        tradeoffs=_tradeoffs(told),
        samples=side_by_side({run.letter: run.report for run in told}),
        hidden=[run.letter for run in told if run.report.samples.items and not run.report.samples.shown],
        untouched=[run.letter for run in told if run.only_audited],
        only_looked=all(run.only_audited for run in told),
        curves=plots.overlay([(run.letter, run.report.steps) for run in told]),
        limits=_limits(told),
    )


def _run(position: int, name: str, report: Report) -> Run:
    colour = f"run-{position % len(plots.RUN_COLOURS)}"
    return Run(letter(position), name, colour, outcome(report), answers_of(report), by_set(report.findings), report)


def letter(position: int) -> str:
    """A to Z, then AA, AB, ..."""
    before, last = divmod(position, 26)
    return (letter(before - 1) if before else "") + ascii_uppercase[last]


def _sentence(runs: Sequence[Run]) -> str:
    judged = [run for run in runs if run.report.verdict is not None]
    met = [run.letter for run in judged if run.report.is_met]
    if not judged:
        return "None of them was judged."
    which = f" ({', '.join(met)})" if met and len(met) < len(judged) else ""
    return f"In {len(met)} of {len(judged)} judged runs no answer is no{which}."


def differences(runs: Sequence[Run]) -> list[str]:
    """Reasons why numbers of different runs may not be set against one another."""
    models = {run.letter: run.report.original.fingerprint for run in runs}
    requests = {run.letter: run.report.request.fingerprint for run in runs}
    return [
        f"Not all runs {what}: {said}."
        for what, marks in (("began with the same model", models), ("had the same request", requests))
        if (said := _sides(marks))
    ]


def _sides(marks: dict[str, str]) -> str:
    sides: dict[str, list[str]] = {}
    for run, mark in marks.items():
        sides.setdefault(mark[:12], []).append(run)
    said = [f"{', '.join(letters)} ({mark})" for mark, letters in sides.items()]
    return " against ".join(said) if len(said) > 1 else ""


# The table


@dataclass(frozen=True)
class Cell:
    """What one run, or several that agree, measured; letters is empty where all agree."""

    letters: str
    finding: Finding
    best: bool = False


@dataclass(frozen=True)
class Line:
    """An audit on a set, over all runs."""

    audit: str
    explained: str
    note: int | None
    better: str
    before: list[Cell]
    after: list[Cell | None]
    reference: list[Cell]
    ideals: dict[str, float]
    """Each different ideal once, by the letters of its runs; no letters where all agree."""
    strip: Strip


def _lines(runs: Sequence[Run], notes: Sequence[str]) -> dict[str, list[Line]]:
    lines: dict[str, list[Line]] = {}
    for where, audit in dict.fromkeys((where, audit) for run in runs for where, audit, _ in rows_of(run.findings)):
        rows = [run.findings.get(where, {}).get(audit, {}) for run in runs]
        lines.setdefault(where, []).append(_line(audit, rows, runs, notes))
    return {where: lines[where] for where in in_order(lines)}


def _digests(runs: Sequence[Run]) -> dict[str, str]:
    """By set, what its first audit found of each run, for who does not open its table."""
    made = {}
    for where in dict.fromkeys(where for run in runs for where in run.findings):
        audit = next(audit for run in runs for audit in run.findings.get(where, {}))
        rows = ((run, run.findings.get(where, {}).get(audit, {}).get(run.shown_model)) for run in runs)
        made[where] = f"{audit}: " + ", ".join(f"{run.letter} {number(found.value)}" for run, found in rows if found)
    return made


def _line(audit: str, rows: Sequence[Row], runs: Sequence[Run], notes: Sequence[str]) -> Line:
    first = next(row for row in rows if row)
    same, best = any_of(first), _best(rows) if _are_alike(rows, runs) else None
    begun = [{} if run.only_audited else row for row, run in zip(rows, runs, strict=True)]
    before, reference = _common_rows(begun, runs, "before"), _common_rows(rows, runs, "reference")
    under = [row.get(run.shown_model) for row, run in zip(rows, runs, strict=True)]
    after = [Cell("", found, place == best) if found else None for place, found in enumerate(under)]
    return Line(
        audit=audit,
        explained=explain(audit),
        note=note_of(first, notes),
        better=better_of(first),
        before=before,
        after=after,
        reference=reference,
        ideals=_ideals(rows, runs),
        strip=_strip(before, after, reference, runs, same.ideal),
    )


def _common_rows(rows: Sequence[Row], runs: Sequence[Run], model: str) -> list[Cell]:
    """Each different answer once, with the letters of the runs that share it."""
    groups: dict[str, list[tuple[str, Finding]]] = {}
    for row, run in zip(rows, runs, strict=True):
        if model in row:
            groups.setdefault(number(row[model].value), []).append((run.letter, row[model]))
    alone = len(groups) == 1
    return [Cell("" if alone else ", ".join(letter for letter, _ in group), group[0][1]) for group in groups.values()]


def _ideals(rows: Sequence[Row], runs: Sequence[Run]) -> dict[str, float]:
    groups: dict[str, list[tuple[str, float]]] = {}
    for row, run in zip(rows, runs, strict=True):
        ideal = any_of(row).ideal if row else None
        if finite(ideal):
            groups.setdefault(number(ideal), []).append((run.letter, ideal))
    alone = len(groups) == 1
    return {"" if alone else ", ".join(letter for letter, _ in group): group[0][1] for group in groups.values()}


def _are_alike(rows: Sequence[Row], runs: Sequence[Run]) -> bool:
    """Whether all runs that were asked had one request, without which no value is better than another."""
    return len({run.report.request.fingerprint for row, run in zip(rows, runs, strict=True) if row}) < 2


def _best(rows: Sequence[Row]) -> int | None:
    """Which run's value is best; None where there is nothing to choose, or two are equal."""
    after = {place: row["after"] for place, row in enumerate(rows) if "after" in row and finite(row["after"].value)}
    known = {place: _distance(finding) for place, finding in after.items()}
    distances = {place: distance for place, distance in known.items() if distance is not None}
    if len(known) < 2 or len(distances) < len(known):
        return None
    least = min(distances.values())
    places = [place for place, distance in distances.items() if distance == least]
    return places[0] if len(places) == 1 else None


def _distance(finding: Finding) -> float | None:
    """Less is better: how far from the ideal, on either side, for to go past it earns nothing.

    None where it is not known. Of what should stay more is then better; of what should be gone less is not: it may be
    less than a model has that never saw it.
    """
    if finite(finding.ideal):
        return abs(finding.value - finding.ideal)
    if finding.better == "ideal" or not should_stay(finding.set):
        return None
    return finding.value if finding.better == "lower" else -finding.value


def _strip(
    before: Iterable[Cell],
    after: Iterable[Cell | None],
    reference: Iterable[Cell],
    runs: Sequence[Run],
    ideal: float | None,
) -> Strip:
    marks = [("before", "before", span_of(cell.finding)) for cell in before]
    marks += [(run.letter, run.colour, span_of(cell.finding)) for run, cell in zip(runs, after, strict=True) if cell]
    marks += [("reference", "reference", span_of(cell.finding)) for cell in reference]
    return strip(marks, ideal)


# The trade-off

PLOTS = 4
"""Sets that are plotted at most."""


@dataclass(frozen=True)
class Tradeoff:
    """What was forgotten against what one set kept."""

    where: str
    forget: str
    kept: str
    """The audits of the two axes."""
    svg: str


def _tradeoffs(runs: Sequence[Run]) -> list[Tradeoff]:
    """A plot for each set that should stay and no training read; of the retain set only where there is no other."""
    asked = dict.fromkeys(where for run in runs for where in run.findings if should_stay(where))
    probes = [where for where in asked if where not in ("retain", "holdout")] or [w for w in asked if w == "retain"]
    made = (_tradeoff(runs, where) for where in probes)
    return [plot for plot in made if plot is not None][:PLOTS]


def _choose_audits(runs: Sequence[Run], where: str) -> tuple[str, str] | None:
    """Which audits of the forget set and of another to plot: the same on both, if there is one."""
    forget, kept = (
        dict.fromkeys(audit for run in runs for audit in run.findings.get(name, {})) for name in ("forget", where)
    )
    if not (forget and kept):
        return None
    same = [audit for audit in forget if audit in kept]
    return (same[0], same[0]) if same else (next(iter(forget)), next(iter(kept)))


def _tradeoff(runs: Sequence[Run], where: str) -> Tradeoff | None:
    chosen = _choose_audits(runs, where)
    if chosen is None:
        return None
    points: dict[object, Point] = {}
    for place, run in enumerate(runs):
        own = (run.shown_model, run.letter)
        for model, label in (own, ("reference", "reference")) if run.only_audited else (*BESIDE, own):
            spans = (_span(run, "forget", chosen[0], model), _span(run, where, chosen[1], model))
            if all(finite(span.value) for span in spans):
                point = Point(label, *spans, run=place if label == run.letter else None)
                points.setdefault((label, *spans), point)  # runs on one model share their before
    if not points:
        return None
    axes = _axis(runs, "forget", chosen[0]), _axis(runs, where, chosen[1])
    return Tradeoff(where, *chosen, draw_tradeoff(list(points.values()), *axes, name=f"tradeoff-{where}"))


def _span(run: Run, where: str, audit: str, model: str) -> Span:
    row = run.findings.get(where, {}).get(audit, {})
    return span_of(row[model]) if model in row else Span(math.nan)


def _axis(runs: Sequence[Run], where: str, audit: str) -> Axis:
    rows = (run.findings.get(where, {}).get(audit) for run in runs)
    row = next(row for row in rows if row)
    better = f" ({better_of(row)})" if better_of(row) else ""
    return Axis(f"{audit} on {where}{better}", any_of(row).ideal)


def _limits(runs: Sequence[Run]) -> list[str]:
    """Every limit once, with the letters of the runs that it binds, unless it binds all."""
    bound: dict[str, list[str]] = {}
    for run in runs:
        for limit in dict.fromkeys(run.report.limits):
            bound.setdefault(limit, []).append(run.letter)
    return [limit if len(by) == len(runs) else f"{', '.join(by)}: {limit}" for limit, by in bound.items()]
