"""Rules that a user asks for: `retain.Choice >= before - 0.05`, and whether a run's findings meet them."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from expunge.core.audit import BOTH, Audit, Finding, Summary
from expunge.core.request import Request
from expunge.errors import UsageRefused
from expunge.notation.rules import bound_value, split_rule
from expunge.report.answers import Outcome, answer_about

FEW = 2
"""Records that a rule must have been asked of: of one alone nothing can be said with any confidence."""


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
        return Rule(text.strip(), *split_rule(text))

    def read(self, findings: Iterable[Finding], power: bool = True) -> Outcome:
        """The rule's outcome: what was asked for and not measured is not met.

        `power`: of what should be gone, a rule that the model before meets too shows nothing.
        """
        known = {f.model: f for f in findings if f.set == self.set and f.audit == self.audit}
        made = self._read(known)
        if not (power and made.result == "yes" and made.answer != "unharmed" and "before" in known):
            return made
        if self._read({**known, "after": known["before"]}).result == "no":
            return made
        return replace(made, result="not measured", because="Met, but the original model meets it too.")

    def _read(self, known: dict[str, Finding]) -> Outcome:
        answer, after = answer_about(next((f.set for f in known.values()), self.set)), known.get("after")
        if after is None:
            said = "Asked for, and not measured: no record of this set has what the audit needs."
            return Outcome(answer, self.text, "no", None, None, said)
        names = {model: finding.value for model, finding in known.items()}
        if after.ideal is not None:
            names["ideal"] = after.ideal
        try:
            bound = bound_value(self.bound, names)
        except ValueError:
            said = "Asked for, and its bound is not known: it names a value that was not measured."
            return Outcome(answer, self.text, "no", after.value, None, said)
        if after.n < FEW:
            said = "Asked for, and open: it was asked of one record alone."
            return Outcome(answer, self.text, "no", after.value, bound, said)
        difference = after.value - bound
        if math.isclose(difference, 0.0, abs_tol=1e-9):  # 0.95 - 0.05 is not 0.9 in binary
            difference = 0.0
        met = {"<=": difference <= 0, ">=": difference >= 0, "<": difference < 0, ">": difference > 0}[self.sign]
        said = "As it was asked for." if met else "Not as it was asked for."
        return Outcome(answer, self.text, "yes" if met else "no", after.value, bound, said)


def read_as_meant(
    rules: Sequence[Rule], measures: Sequence[Audit | Summary], request: Request
) -> tuple[tuple[Rule, ...], list[str]]:
    """The rules with `forget.MinK` as `forget vs holdout.MinK`, where the audit is of both; a line on each such.

    An audit that compares two sets has no finding of either, so nothing else can be meant.
    """
    audits = [each for each in measures if isinstance(each, Audit)]
    compared = {each.name for each in audits if each.lacks("forget", request) and not each.lacks(BOTH, request)}
    made, told = [], []
    for rule in rules:
        meant = rule.set == "forget" and rule.audit in compared
        made.append(replace(rule, set=BOTH) if meant else rule)
        if meant:
            told.append(f"--require '{rule.text}' is read as {BOTH}.{rule.audit}: {rule.audit} compares the two")
    return tuple(made), told


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
