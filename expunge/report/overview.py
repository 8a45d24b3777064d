"""The first screen in plain words: what was asked, what is gone, what is left, what was harmed, what was not measured.

Shares of records are given in counts, from the score of each record before and after.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from expunge.core.audit import BOTH
from expunge.primitives.estimates import is_yes_or_no
from expunge.primitives.meanings import should_be_gone
from expunge.report.headline import Told
from expunge.report.results import Findings, Row, any_of
from expunge.report.strips import finite
from expunge.report.terms import begin, name_finding, name_rule
from expunge.report.words import number

if TYPE_CHECKING:
    from expunge.report.report import Report

ALL = 1 - 1e-9
"""Score from which a record is answered wholly right."""
COUNTED = {
    "Choice": "right answers among the options",
    "Accuracy": "right classes",
    "ExactMatch": "answers known token by token",
    "Rouge": "answers written out in full",
}
"""Audits whose score of a record is 1 where it is answered rightly, and what the records are then."""


@dataclass(frozen=True)
class Point:
    """A question that who signs has, and its answer."""

    asked: str
    said: list[str]


def overview(report: Report, findings: Findings, answers: Sequence[Told]) -> list[Point]:
    """The five points."""
    return [
        Point("What was asked", [*_say_asked(report)]),
        Point("What is gone", [*_say_gone(findings)] or ["Nothing was asked of it that has a right answer."]),
        Point("What is left", [*_say_left(findings)] or ["Nothing was asked of it that has a right answer."]),
        Point("What was harmed", [*_say_harmed(answers)]),
        Point("What was not measured", [*_say_unmeasured(report, answers)]),
    ]


def _say_asked(report: Report) -> Iterator[str]:
    sets = report.request.sets
    if "forget" in sets:
        yield f"{sets['forget'].examples:,} records ({sets['forget'].source}) are to be forgotten."
    if "retain" in sets:
        yield f"{sets['retain'].examples:,} ({sets['retain'].source}) are to be kept, and were trained on."
    if "holdout" in sets:
        holdout = sets["holdout"]
        yield f"{holdout.examples:,} ({holdout.source}) no model saw: they show what not knowing looks like."
    others = [f"{name} ({of.examples:,})" for name, of in sets.items() if name not in ("forget", "retain", "holdout")]
    if others:
        yield f"Only asked, never trained on: {', '.join(others)}."


def _rows(findings: Findings) -> Iterator[tuple[str, str, Row]]:
    """The rows of what should be gone whose records are answered rightly or not."""
    for where, audits in findings.items():
        for audit, row in audits.items():
            before, after = row.get("before"), row.get("after")
            if should_be_gone(where) and audit in COUNTED and before and after and before.scores and after.scores:
                yield where, audit, row


def _say_gone(findings: Findings) -> Iterator[str]:
    for where, audit, row in _rows(findings):
        knew = [score >= ALL for score in row["before"].scores]
        lost = sum(a < ALL for a, b in zip(row["after"].scores, knew, strict=False) if b)
        of = f"{lost:,} of the {sum(knew):,}" if any(knew) else "There were no"
        yield f"{of} {COUNTED[audit]}{_asked_as(where)}."


def _say_left(findings: Findings) -> Iterator[str]:
    for where, audit, row in _rows(findings):
        after, ideal = row["after"], any_of(row).ideal
        left = sum(score >= ALL for score in after.scores)
        counted = finite(ideal) and is_yes_or_no(after.scores)
        seen = f"; a model that never saw them: about {(ideal or 0) * after.n:.0f}" if counted else ""
        yield f"{left:,} of {after.n:,} {COUNTED[audit]}{_asked_as(where)}{seen}."
    for audit, row in findings.get(BOTH, {}).items():
        if "after" in row and finite(any_of(row).ideal):
            now, ideal = row["after"].value, any_of(row).ideal
            yield f"{begin(name_finding(BOTH, audit))}: {number(now)}, where guessing has {number(ideal)}."


def _asked_as(where: str) -> str:
    return {"forget": "", "paraphrase": ", asked in other words"}.get(where, f" ({where})")


def _say_harmed(answers: Sequence[Told]) -> Iterator[str]:
    [unharmed] = [answer for answer in answers if answer.name == "unharmed"]
    if unharmed.said == "yes":
        yield "Nothing that was asked, by more than its tolerance and by more than chance."
    if unharmed.said == "not measured":
        yield unharmed.reason
    for rule in (each.outcome for each in unharmed.rules if each.outcome.result == "no"):
        yield f"{begin(name_rule(rule))}: {rule.because}"
    yield from (f"Perhaps: {line[:1].lower()}{line[1:]}" for line in unharmed.against)


def name_unmeasured(report: Report, answers: Sequence[Told]) -> list[str]:
    """What was not measured, each in a few words."""
    named = [answer.name for answer in answers if answer.said == "not measured"]
    further = [line.partition(":")[0] for answer in answers for line in answer.further]
    named += [name[:1].lower() + name[1:] for name in further]
    return [*dict.fromkeys(named), *(["what the weights still hold"] if report.run else [])]


def _say_unmeasured(report: Report, answers: Sequence[Told]) -> Iterator[str]:
    for answer in answers:
        said = (answer.reason, *answer.further) if answer.said == "not measured" else answer.further
        yield from (f"{answer.name.capitalize()}: {line[:1].lower()}{line[1:]}" for line in said)
    yield from report.limits[:1]
