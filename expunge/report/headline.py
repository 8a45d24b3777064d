"""The verdict as a page says it: a headline, three answers with their reasons, and what speaks against each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from expunge.core.audit import Finding
from expunge.primitives.estimates import is_yes_or_no
from expunge.report.answers import Answer, Name, Outcome
from expunge.report.results import Findings, by_set
from expunge.report.strips import finite
from expunge.report.terms import begin, in_plain_words, name_finding, name_rule, parts_of
from expunge.report.verdict import gravity
from expunge.report.words import number, short, with_sign

if TYPE_CHECKING:
    from expunge.report.report import Report

MARKS = {"yes": "met", "no": "missed", "not measured": "open"}
WORDS = {
    "forgotten": {"yes": "forgotten", "no": "not forgotten"},
    "traceless": {"yes": "traceless", "no": "traces show"},
    "unharmed": {"yes": "unharmed", "no": "harmed"},
}
ASKED = {
    "forgotten": "Is it known no better, and no worse, than by a model that never saw it?",
    "traceless": "Can no attacker tell forgotten records from never seen ones?",
    "unharmed": "Is what should stay known as well as before?",
}


@dataclass(frozen=True)
class Headline:
    """The verdict in words, and which mark stands beside it: met, doubted, missed or open."""

    words: str
    mark: str


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
    marks = [_mark(answer) for _, answer in verdict]
    mark = next(mark for mark in ("missed", "open", "doubted", "met") if mark in marks)
    return Headline(", ".join(said).capitalize(), mark)


def _mark(answer: Answer) -> str:
    """A yes that some numbers speak against has a mark of its own."""
    return "doubted" if answer.said == "yes" and any(rule.against for rule in answer.rules) else MARKS[answer.said]


@dataclass(frozen=True)
class Told:
    """One of the three answers, as a page shows it."""

    name: str
    said: str
    mark: str
    asked: str
    reason: str
    against: list[str]
    """Numbers on the wrong side that chance may have put there."""
    rules: list[Judged]
    further: tuple[str, ...]
    """What was not measured, beyond what the reason says."""

    @property
    def count(self) -> str:
        """How many rules say what."""
        said = [each.outcome.result for each in self.rules]
        parts = [f"{said.count(each)} {each}" for each in MARKS if each in said]
        return f"{len(said)} rule{'s' * (len(said) != 1)}: {', '.join(parts)}"


@dataclass(frozen=True)
class Judged:
    """A rule, with its result in words."""

    outcome: Outcome
    mark: str
    result: str
    off: str
    """By how much the value differs from what it was held against, with the interval."""


def answers_of(report: Report) -> list[Told]:
    """The answers, each with its reason and its rules: those that say no first."""
    findings, made = by_set(report.findings), []
    for name, answer in report.verdict or ():
        rules = [Judged(rule, MARKS[rule.result], _result(rule), _off(rule)) for rule in answer.rules]
        rules.sort(key=lambda one: (one.outcome.condition, ("missed", "open", "met").index(one.mark)))
        further = tuple(in_plain_words(each) for each in answer.unmeasured if each != answer.reason)
        reason = begin(reason_of(name, answer, findings))
        against = [_speak_against(rule, findings) for rule in answer.rules if rule.against]
        made.append(Told(name, answer.said, _mark(answer), ASKED[name], reason, against, rules, further))
    return made


def reason_of(name: Name, answer: Answer, findings: Findings) -> str:
    """Why an answer is what it is, by the rule that tells most; the verdict's own sentence where no rule does."""
    noes = [rule for rule in answer.rules if rule.result == "no"]
    yeses = [rule for rule in answer.rules if rule.result == "yes" and not rule.condition]
    if answer.said == "no" and noes:
        worst = max(noes, key=gravity)
        return f"{name_rule(worst)}: {worst.because}{_and_more(len(noes) - 1)}"
    if answer.said == "yes" and yeses:
        first = next((rule for rule in yeses if parts_of(rule)[1] and rule.low is not None), yeses[0])
        if name == "unharmed":
            return _say_unharmed(yeses)
        where, audit = parts_of(first)
        row = findings.get(where, {}).get(audit, {})
        was = f", {tell(row['before'])} before" if "before" in row else ""
        now = tell(row["after"]) if "after" in row else number(first.value)
        return f"{name_rule(first)}: {now} now{was}; {_aim(first, row.get('after'))}.{_and_more(len(yeses) - 1)}"
    return in_plain_words(answer.reason)


def _aim(rule: Outcome, found: Finding | None) -> str:
    """What a value was held against."""
    if rule.low is None:
        return f"asked for was {rule.rule}"
    who = "guessing" if rule.answer == "traceless" else "a model that never saw them"
    return f"{who}: {_like(rule.bound, found)}"


def _say_unharmed(yeses: Sequence[Outcome]) -> str:
    sets = dict.fromkeys(parts_of(rule)[0] or rule.rule for rule in yeses)
    return f"No worse than before by more than the tolerance: {', '.join(sets)} ({len(yeses)} rules)."


def _and_more(count: int) -> str:
    return f" {count} more rule{'s say' if count > 1 else ' says'} so." if count else ""


def tell(finding: Finding) -> str:
    """A share of records in counts, any other number as it is."""
    return f"{sum(finding.scores):.0f} of {finding.n}" if _is_counted(finding) else number(finding.value)


def _like(value: float | None, finding: Finding | None) -> str:
    """An ideal as a finding beside it is told."""
    if finding is None or not _is_counted(finding) or not finite(value):
        return number(value)
    count = value * finding.n
    return f"{'' if abs(count - round(count)) < 1e-6 else 'about '}{count:.0f} of {finding.n}"


def _is_counted(finding: Finding) -> bool:
    own = bool(finding.scores) and not finding.weights and not finding.positives
    return own and is_yes_or_no(finding.scores) and abs(sum(finding.scores) / finding.n - finding.value) < 1e-6


def _speak_against(rule: Outcome, findings: Findings) -> str:
    where, audit = parts_of(rule)
    after = findings.get(where, {}).get(audit, {}).get("after")
    now, n = (tell(after), f" (n = {after.n:,})") if after else (number(rule.value), "")
    return f"{begin(name_finding(where, audit))}: {now} instead of {_like(rule.bound, after)}; may be chance{n}."


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
