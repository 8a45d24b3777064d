"""Thresholds: rules such as `retain.Choice >= before - 0.05`, and whether a run's findings meet them."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from expunge.core.audit import BOTH, Audit, Finding, Summary
from expunge.core.request import Request
from expunge.errors import UsageRefused

if TYPE_CHECKING:
    from expunge.report.report import Run

RULE = re.compile(r"\s*([\w -]+?)\s*\.\s*(\w+)\s*(<=|>=|<|>)\s*(.+?)\s*")


@dataclass(frozen=True)
class Outcome:
    """A rule, the value found, the bound it had to meet, and whether it did."""

    rule: str
    value: float | None
    bound: float | None
    met: bool


@dataclass(frozen=True)
class Verdict:
    """Whether every rule was met, and each rule with its outcome."""

    met: bool
    rules: tuple[Outcome, ...]


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
        match = RULE.fullmatch(text)
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
        return Outcome(self.text, after.value, bound, met)


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


def judge(rules: Sequence[Rule], findings: Sequence[Finding], run: Run) -> Verdict:
    """The run's own criterion, that it changed something, and the rules asked for."""
    outcomes = [*criterion(run), *(rule.read(findings) for rule in rules)]
    return Verdict(all(outcome.met for outcome in outcomes), tuple(outcomes))


def judge_audit(rules: Sequence[Rule], findings: Sequence[Finding]) -> Verdict | None:
    """The rules asked for, of a model that was only audited: it is both before and after."""
    both = [*findings, *(f.of("after") for f in findings if f.model == "before")]
    outcomes = tuple(rule.read(both) for rule in rules)
    return Verdict(all(outcome.met for outcome in outcomes), outcomes) if outcomes else None


def criterion(run: Run) -> list[Outcome]:
    """What the run aimed at, as outcomes."""
    if run.ended is None or run.started is None:  # a method without steps
        changed = run.edited.changed if run.edited else None
        said = "numbers of the model changed >= 1 (something changed)"
        return [] if changed is None else [Outcome(said, float(changed), 1.0, changed >= 1)]
    aim, ended = run.started, run.ended
    made = [Outcome("kept step >= 1 (something changed)", float(ended.kept_step), 1.0, ended.kept_step >= 1)]
    if aim.level is not None:
        of = "that of the holdout set" if aim.level_source == "holdout" else "as given"
        rule = f"forget examples short of {aim.level:.2f} nats ({of}), on average <= slack"
        made.append(Outcome(rule, ended.kept_short, aim.slack, ended.kept_short <= aim.slack))
    if aim.max_retain_increase is not None and ended.kept_rise is not None:
        rule = "rise of the retain loss <= budget (nats)"
        made.append(Outcome(rule, ended.kept_rise, aim.max_retain_increase, ended.kept_rise <= aim.max_retain_increase))
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
