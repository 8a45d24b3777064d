"""The verdict of a run: forgotten, traceless, unharmed, each yes, no or not measured, with the rules behind it.

Rules come from three places: what the measures declare (`rules.py`), what the run itself must have done (here), and
what a user asks for (`required.py`). One no makes an answer no; a yes needs one rule that says yes and could have said
no.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from expunge.core.audit import Finding
from expunge.primitives.meanings import should_be_gone
from expunge.primitives.standard import Standard
from expunge.report.answers import NAMES, Answer, Name, Outcome, Verdict, asks_what_stays
from expunge.report.required import Rule
from expunge.report.rules import Asked, apply_rules

if TYPE_CHECKING:
    from expunge.report.run import Run

MOVED = 1e-4
"""Change of a class score that rounding alone does not make."""
HALF = math.log(2)
"""Nats by which the loss rises where every token is half as likely as before."""
DEGENERATE = 0.1
"""Rise of the share of degenerate texts that passes."""
MEANT = {
    "forgotten": "what should be gone",
    "traceless": "whether the forgetting shows",
    "unharmed": "what should stay",
}
"""What an answer is about."""
YES = {
    "forgotten": "As in a model that never saw it, which the model before is not: {}.",
    "traceless": "Forgotten and never seen records look alike, and did not before: {}.",
    "unharmed": "As good as before: {}.",
}
SUBJECT = re.compile(r"[\w -]+?\s*\.\s*\w+")


def judge(rules: Sequence[Rule], findings: Sequence[Finding], run: Run, asked: Asked) -> Verdict:
    """The three answers about a run, from rules that apply by themselves and from those asked for."""
    outcomes = [*apply_rules(findings, asked), *conditions(run), *(rule.read(findings) for rule in rules)]
    return Verdict(*(_answer(name, outcomes, [*_lacking(name, asked)], [*_besides(name, asked)]) for name in NAMES))


def judge_audit(rules: Sequence[Rule], findings: Sequence[Finding]) -> Verdict | None:
    """The rules asked for, of a model that was only audited: it is both before and after."""
    both = [*findings, *(f.of("after") for f in findings if f.model == "before")]
    outcomes = [rule.read(both, power=False) for rule in rules]
    said = "Nothing was forgotten here: an audit is judged by --require alone."
    return Verdict(*(_answer(name, outcomes, [said], []) for name in NAMES)) if outcomes else None


def _answer(name: Name, outcomes: Sequence[Outcome], lacking: Sequence[str], besides: Sequence[str]) -> Answer:
    rules = tuple(outcome for outcome in outcomes if outcome.answer == name)
    by = {said: [rule for rule in rules if rule.result == said] for said in ("no", "not measured", "yes")}
    unmeasured = (*lacking, *_because(by["not measured"]), *besides)
    shown = [rule for rule in by["yes"] if not rule.condition]
    if by["no"]:
        worst = max(by["no"], key=gravity)
        more = len(by["no"]) - 1
        also = f" {more} more rule{'s say' if more > 1 else ' says'} no." if more else ""
        return Answer("no", f"{subject(worst)} – {worst.because}{also}", rules, unmeasured)
    if shown:
        return Answer("yes", YES[name].format(_list(shown)), rules, unmeasured)
    why = unmeasured[0] if unmeasured else f"Nothing was asked about {MEANT[name]}."
    return Answer("not measured", why, rules, unmeasured)


def _because(rules: Sequence[Outcome]) -> Iterator[str]:
    """Why rules say nothing: each reason once, with what it is true of."""
    for reason in dict.fromkeys(rule.because for rule in rules):
        yield f"{_list([rule for rule in rules if rule.because == reason])}: {reason}"


def subject(rule: Outcome) -> str:
    """What a rule is about: `neighbours.Loss`; of a condition, the whole of it."""
    named = None if rule.condition else SUBJECT.match(rule.rule)
    return named[0] if named else rule.rule


def gravity(rule: Outcome) -> float:
    """How far a rule was missed, in tolerances; what was asked for and what a run must do go first."""
    if rule.condition or rule.tolerance is None or rule.value is None or rule.bound is None:
        return math.inf
    size = abs(rule.value - rule.bound) / (rule.tolerance or 1.0)
    return size if not math.isnan(size) else math.inf


def _list(rules: Sequence[Outcome]) -> str:
    names = list(dict.fromkeys(map(subject, rules)))
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


# What was not measured, and what to give


def _lacking(name: Name, asked: Asked) -> Iterator[str]:
    """What must be given for an answer at all."""
    request = asked.request
    if name == "forgotten" and not request.holdout:
        yield "How a model that never saw it answers: give --holdout (with options, for Choice) or --reference."
    if name == "traceless" and not request.holdout:
        yield "Whether forgotten and never seen records can be told apart: give --holdout."
    if name == "unharmed" and not (request.retain or any(map(asks_what_stays, request.probes))):
        yield "What should stay: give --retain, or a --probe."


def _besides(name: Name, asked: Asked) -> Iterator[str]:
    """What could be given for a fuller answer."""
    left_out = [m.name for m in asked.left_out if m.standard is not None and _serves(name, m.standard)]
    if left_out:
        yield f"{', '.join(left_out)}: left out of --audits."
    probes = asked.request.probes
    if name == "unharmed" and asked.request.retain and not any(map(asks_what_stays, probes)):
        yield "What the model knows besides the retain set, which training reads: give a --probe."
    if name == "forgotten" and not any(map(should_be_gone, probes)):
        yield "The same asked in other words: give --probe paraphrase=FILE."


def _serves(name: Name, standard: Standard) -> bool:
    known = {"forgotten": standard.gone, "traceless": standard.trace, "unharmed": standard.stay or standard.text}
    return known[name] is not None


# What a run must have done


def conditions(run: Run) -> list[Outcome]:
    """What a run must have done, and must not, whatever the audits say: each a no where it is missed."""
    return [*criterion(run), *floor(run)]


def floor(run: Run) -> list[Outcome]:
    """What has to have stayed: a model that lost everything did not forget one thing."""
    made = []
    if run.retain_rise is not None and not _has_budget(run):
        rule = "rise of the retain loss <= ln 2 (a token half as likely)"
        made.append(_condition("unharmed", rule, run.retain_rise, HALF, run.retain_rise <= HALF))
    if run.degenerate_rise is not None:
        rule = "rise of the share of empty or repeating texts, where they should stay <= 0.1"
        made.append(_condition("unharmed", rule, run.degenerate_rise, DEGENERATE, run.degenerate_rise <= DEGENERATE))
    return made


def criterion(run: Run) -> list[Outcome]:
    """What the run aimed at, as outcomes, and that the model is another one than before."""
    made = changes(run)
    if run.ended is None or run.started is None:  # a method without steps
        return made
    aim, ended = run.started, run.ended
    made.insert(0, _condition("forgotten", "kept step >= 1", float(ended.kept_step), 1.0, ended.kept_step >= 1))
    if aim.level is not None:
        of = "that of the holdout set" if aim.level_source == "holdout" else "as given"
        rule = f"forget examples short of {aim.level:.2f} nats ({of}), on average <= slack"
        met = ended.kept_short <= aim.slack
        made.append(_condition("forgotten", rule, ended.kept_short, aim.slack, met))
    if aim.max_retain_increase is not None and ended.kept_rise is not None:
        rule = "rise of the retain loss <= budget (nats)"
        met = ended.kept_rise <= aim.max_retain_increase
        made.append(_condition("unharmed", rule, ended.kept_rise, aim.max_retain_increase, met))
    return made


def changes(run: Run) -> list[Outcome]:
    """That the weights as they were written differ from the original's, and that this can be seen in its answers."""
    changed = run.edited.changed if run.changed is None and run.edited else run.changed
    moved = run.saved.max_logit_change if run.changed is not None and run.saved else None
    made = []
    if changed is not None:
        rule = "numbers of the model changed >= 1 (something changed)"
        made.append(_condition("forgotten", rule, float(changed), 1.0, changed >= 1))
    if moved is not None:
        rule = f"largest change of a score >= {MOVED:g} (its answers changed)"
        made.append(_condition("forgotten", rule, moved, MOVED, moved >= MOVED))
    return made


def _condition(answer: Name, rule: str, value: float, bound: float, met: bool) -> Outcome:
    said = "As every run must; it shows nothing by itself." if met else "Missed, whatever the audits say."
    return Outcome(answer, rule, "yes" if met else "no", value, bound, said, condition=True)


def _has_budget(run: Run) -> bool:
    """Whether the run kept to a limit of its own for the retain loss."""
    limit = run.started.max_retain_increase if run.started else None
    return limit is not None and run.ended is not None and run.ended.kept_rise is not None
