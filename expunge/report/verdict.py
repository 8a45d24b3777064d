"""Thresholds: rules such as `retain.Choice >= before - 0.05`, and whether a run's findings meet them."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from expunge.core.audit import Audit, Finding, MembershipAudit, ScoreAudit
from expunge.core.request import Request
from expunge.errors import UsageRefused
from expunge.report.quality import DERIVED

RULE = re.compile(r"\s*([\w -]+?)\s*\.\s*(\w+)\s*(<=|>=|<|>)\s*(.+?)\s*")

BOTH = "forget vs holdout"

NEEDS = {"Choice": "options: wrong answers", "TruthRatio": "options: wrong answers", "Rouge": "a question"}
"""What a record must have for an audit, as a user would name it."""


@dataclass(frozen=True)
class Outcome:
    """A rule, the value found, the bound it had to meet, and whether it did."""

    rule: str
    value: float | None
    bound: float | None
    met: bool


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


def check_rules(rules: list[Rule], audits: Sequence[Audit], request: Request, referenced: bool) -> None:
    """Refuse a rule about a set or an audit that this job does not have, before the work rather than after."""
    sets, names = [*request.sets(), BOTH], [audit.name for audit in audits]
    names += DERIVED if referenced and "TruthRatio" in names else ()
    for rule in rules:
        if rule.set not in sets:
            raise UsageRefused(f"--require '{rule.text}': there is no set '{rule.set}'. Sets: {', '.join(sets)}.")
        if rule.audit not in names:
            raise UsageRefused(f"--require '{rule.text}': {rule.audit} is not run. Audits: {', '.join(names)}.")
        lacks = [_lack(audit, rule.set, request) for audit in audits if audit.name == rule.audit]
        if lacks and all(lacks):
            raise UsageRefused(f"--require '{rule.text}' could never be measured: {lacks[0]}.")


def _lack(audit: Audit, where: str, request: Request) -> str:
    """Why an audit will have no finding of a set; empty where it will, as far as the records show that."""
    if isinstance(audit, MembershipAudit) and not (where == BOTH and request.holdout):
        return f"{audit.name} is of the set '{BOTH}', and needs --holdout"
    if not isinstance(audit, ScoreAudit) and audit.name != "TruthRatio":
        return ""
    if where == BOTH:
        return f"{audit.name} is of one set at a time"
    can = [audit.applies(e) if isinstance(audit, ScoreAudit) else bool(e.alternatives) for e in request.sets()[where]]
    if not any(can):
        needs = f" ({NEEDS[audit.name]})" if audit.name in NEEDS else ""
        return f"no record of the set '{where}' has what {audit.name} needs{needs}"
    return ""


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
