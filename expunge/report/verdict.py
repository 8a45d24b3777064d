"""Thresholds: rules such as `retain.Choice >= before - 0.05`, and whether a run's findings meet them."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from expunge.core.audit import BOTH, Audit, Finding, Summary
from expunge.core.request import Request, should_be_gone
from expunge.errors import UsageRefused

if TYPE_CHECKING:
    from expunge.report.run import Run

FEW = 2
"""Records that a rule must have been asked of: of one alone nothing can be said with any confidence."""
MOVED = 1e-4
"""Change of a class score that rounding alone does not make."""
HALF = math.log(2)
"""Nats by which the loss rises where every token is half as likely as before."""
DEGENERATE = 0.1
"""Rise of the share of degenerate texts that passes."""

LONGEST = 1000
"""Most characters of a rule."""
RULE = re.compile(r"\s*([\w -]+?)\s*\.\s*(\w+)\s*(<=|>=|<|>)\s*(.+?)\s*")


@dataclass(frozen=True)
class Outcome:
    """A rule, the value found, the bound it had to meet, and whether it did."""

    rule: str
    value: float | None
    bound: float | None
    met: bool
    few: bool = False
    """Whether it was asked of one record alone, and so is neither met nor missed."""


@dataclass(frozen=True)
class Verdict:
    """Whether every rule was met, and each rule with its outcome."""

    met: bool
    rules: tuple[Outcome, ...]
    unjudged: str = ""
    """What no rule looked at, though a verdict should: what the model is still good for."""


@dataclass(frozen=True)
class Rule:
    """`SET.AUDIT <= BOUND`, where the bound may name before, reference and ideal, with + - * and numbers."""

    text: str
    set: str
    audit: str
    sign: str
    bound: ast.expr

    @staticmethod
    def parse(text: str) -> Rule:
        """Raises `UsageRefused` where `text` is not a rule."""
        match = RULE.fullmatch(text) if len(text) <= LONGEST else None
        if match:
            try:
                bound = ast.parse(match[4], mode="eval").body
                _value(bound, {"before": 1.0, "reference": 1.0, "ideal": 1.0})
                return Rule(text.strip(), match[1], match[2], match[3], bound)
            except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
                pass
        shown = text if len(text) <= 200 else f"{text[:200]}..."
        raise UsageRefused(
            f"--require '{shown}' could not be read. Write SET.AUDIT <= BOUND, such as forget.Choice <= 0.25 or "
            f"retain.Choice >= before - 0.05; a bound may name before, reference and ideal."
        )

    def read(self, findings: Iterable[Finding]) -> Outcome:
        """The rule's outcome. A number that was not measured never meets a rule."""
        known = {f.model: f for f in findings if f.set == self.set and f.audit == self.audit}
        after = known.get("after")
        if after is None:
            return Outcome(self.text, None, None, False)
        names = {model: finding.value for model, finding in known.items()}
        if after.ideal is not None:
            names["ideal"] = after.ideal
        try:
            bound = _value(self.bound, names)
        except ValueError:
            return Outcome(self.text, after.value, None, False)
        difference = after.value - bound
        if math.isclose(difference, 0.0, abs_tol=1e-9):  # 0.95 - 0.05 is not 0.9 in binary
            difference = 0.0
        met = {"<=": difference <= 0, ">=": difference >= 0, "<": difference < 0, ">": difference > 0}[self.sign]
        return Outcome(self.text, after.value, bound, met and after.n >= FEW, after.n < FEW)


def check_rules(rules: Sequence[Rule], audits: Sequence[Audit], summaries: Sequence[Summary], request: Request) -> None:
    """Refuse a rule about a set or an audit that a run does not have, before the work rather than after."""
    sets, names = [*request.sets(), BOTH], [each.name for each in (*audits, *summaries)]
    for rule in rules:
        if rule.set not in sets:
            raise UsageRefused(f"--require '{rule.text}': there is no set '{rule.set}'. Sets: {', '.join(sets)}.")
        if rule.audit not in names:
            raise UsageRefused(f"--require '{rule.text}': {rule.audit} is not run. Audits: {', '.join(names)}.")
        lacks = [audit.lacks(rule.set, request) for audit in audits if audit.name == rule.audit]
        if lacks and all(lacks):
            raise UsageRefused(f"--require '{rule.text}' could never be measured: {lacks[0]}.")


def judge(rules: Sequence[Rule], findings: Sequence[Finding], run: Run, records: int = FEW) -> Verdict:
    """The run's own criterion, that it changed something, that something stayed, and the rules asked for.

    `records` is the number of records that were to be forgotten.
    """
    outcomes = [*criterion(run), *(rule.read(findings) for rule in rules)]
    if records < FEW:
        said = "records to forget >= 2 (one alone shows too little)"
        outcomes.append(Outcome(said, float(records), float(FEW), False, few=True))
    asked = any(should_stay(rule.set) for rule in rules)
    stayed = [] if asked else floor(run)
    unjudged = (
        "" if asked or stayed or _has_budget(run) else "What it is still good for was not measured: give --retain"
    )
    outcomes += stayed
    return Verdict(all(outcome.met for outcome in outcomes), tuple(outcomes), unjudged)


def judge_audit(rules: Sequence[Rule], findings: Sequence[Finding]) -> Verdict | None:
    """The rules asked for, of a model that was only audited: it is both before and after."""
    both = [*findings, *(f.of("after") for f in findings if f.model == "before")]
    outcomes = tuple(rule.read(both) for rule in rules)
    return Verdict(all(outcome.met for outcome in outcomes), outcomes) if outcomes else None


def should_stay(where: str) -> bool:
    """Whether a model is expected to know a set as well as before."""
    return not should_be_gone(where) and where not in (BOTH, "stand_in")


def floor(run: Run) -> list[Outcome]:
    """What has to have stayed where no rule asks for more: a model that lost everything did not forget one thing."""
    made = []
    if run.retain_rise is not None and not _has_budget(run):
        rule = "rise of the retain loss <= ln 2 (a token half as likely; no threshold asks for more)"
        made.append(Outcome(rule, run.retain_rise, HALF, run.retain_rise <= HALF))
    if run.degenerate_rise is not None:
        rule = "rise of the share of empty or repeating texts, where they should stay <= 0.1"
        made.append(Outcome(rule, run.degenerate_rise, DEGENERATE, run.degenerate_rise <= DEGENERATE))
    return made


def _has_budget(run: Run) -> bool:
    """Whether the run kept to a limit of its own for the retain loss."""
    limit = run.started.max_retain_increase if run.started else None
    return limit is not None and run.ended is not None and run.ended.kept_rise is not None


def criterion(run: Run) -> list[Outcome]:
    """What the run aimed at, as outcomes, and that the model is another one than before."""
    made = changes(run)
    if run.ended is None or run.started is None:  # a method without steps
        return made
    aim, ended = run.started, run.ended
    made.insert(0, Outcome("kept step >= 1", float(ended.kept_step), 1.0, ended.kept_step >= 1))
    if aim.level is not None:
        of = "that of the holdout set" if aim.level_source == "holdout" else "as given"
        rule = f"forget examples short of {aim.level:.2f} nats ({of}), on average <= slack"
        made.append(Outcome(rule, ended.kept_short, aim.slack, ended.kept_short <= aim.slack))
    if aim.max_retain_increase is not None and ended.kept_rise is not None:
        rule = "rise of the retain loss <= budget (nats)"
        made.append(Outcome(rule, ended.kept_rise, aim.max_retain_increase, ended.kept_rise <= aim.max_retain_increase))
    return made


def changes(run: Run) -> list[Outcome]:
    """That the weights as they were written differ from the original's, and that this can be seen in its answers."""
    changed = run.edited.changed if run.changed is None and run.edited else run.changed
    moved = run.saved.max_logit_change if run.changed is not None and run.saved else None
    made = []
    if changed is not None:
        rule = "numbers of the model changed >= 1 (something changed)"
        made.append(Outcome(rule, float(changed), 1.0, changed >= 1))
    if moved is not None:
        made.append(
            Outcome(f"largest change of a score >= {MOVED:g} (its answers changed)", moved, MOVED, moved >= MOVED)
        )
    return made


def _value(node: ast.expr, names: dict[str, float]) -> float:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return float(value)
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, names)
        case ast.BinOp(left=left, op=op, right=right) if isinstance(op, (ast.Add, ast.Sub, ast.Mult)):
            a, b = _value(left, names), _value(right, names)
            return a + b if isinstance(op, ast.Add) else a - b if isinstance(op, ast.Sub) else a * b
    raise ValueError(ast.unparse(node))
