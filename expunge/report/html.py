"""One self-contained HTML page that says what a run forgot, at what cost, and what that does not show.

No script and no outside asset; every string of the report is escaped, and letters that could mislead a reader (bidi and
control characters) are spelled out. The same report gives the same bytes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from expunge.report import plots
from expunge.report.by_class import class_lines
from expunge.report.confusion import confusion_table
from expunge.report.headline import answers_of, outcome
from expunge.report.overview import name_unmeasured, overview
from expunge.report.places import draw_places
from expunge.report.results import Findings, Row, any_of, better_of, by_set, results
from expunge.report.run import about_run, blocks_of
from expunge.report.samples import samples_of
from expunge.report.strips import finite
from expunge.report.terms import colour, meaning
from expunge.report.words import duration, moment, number, precise, short, storage, visible

if TYPE_CHECKING:
    from expunge.report.report import Report


def render(report: Report) -> str:
    """The page of one run, or of one audit (no `run`, no steps)."""
    run = report.run
    findings, answers = by_set(report.findings), answers_of(report)
    kept = run.ended.kept_step if run and run.ended else None
    level = run.started.level if run and run.started else None
    return page(
        "page.html.j2",
        report=report,
        outcome=outcome(report),
        answers=answers,
        unmeasured=name_unmeasured(report, answers) if run and answers else [],
        overview=overview(report, findings, answers) if run and answers else [],
        sentence="" if run else sentence(findings),
        tiles=[] if run else tiles(findings),
        results=results(findings),
        curves=plots.curves(report.steps, kept, level),
        run=about_run(run) if run else [],
        blocks=blocks_of(run.edited) if run and run.edited else [],
        confusion=confusion_table(report.confusion),
        classes=class_lines(report.classes),
        places=draw_places(report.places),
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


# The first screen of an audit, which judged nothing by itself


def sentence(findings: Findings) -> str:
    """The first audit of the forget set, and the same on the retain set, in one sentence; empty where there is none."""
    for audit, row in findings.get("forget", {}).items():
        kept = findings.get("retain", {}).get(audit)
        said = f"On what should be gone, {audit} is {number(any_of(row).value)}{_ideal(row)}"
        return said + (f"; on what should stay it is {number(any_of(kept).value)}." if kept else ".")
    return ""


def _ideal(row: Row) -> str:
    ideal = any_of(row).ideal
    return f" (ideal {number(ideal)})" if finite(ideal) else ""


@dataclass(frozen=True)
class Tile:
    """A number large enough to be read across a table."""

    where: str
    audit: str
    value: str
    hint: str


def tiles(findings: Findings) -> list[Tile]:
    """The first audit of the forget set, on each set that it was asked of; at most four."""
    audit = next(iter(findings.get("forget") or next(iter(findings.values()), {})), "")
    rows = [(where, each[audit]) for where, each in findings.items() if audit in each]
    return [Tile(where, audit, number(any_of(row).value), better_of(row) + _ideal(row)) for where, row in rows][:4]
