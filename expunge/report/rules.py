"""The rules that apply without being asked for: how far each number is from what it should be, and whether that shows.

A rule is of the form d = value - ideal, with a 95 % interval. No: the interval excludes 0 and d exceeds the tolerance
that the measure declares. Yes: it does not, and the rule could have said no: the model before fails it, and the model
after differs from that one by more than chance. Otherwise it is not measured, and the rule says why.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

from expunge.core.audit import BOTH, Audit, Finding, Measure
from expunge.core.request import Request
from expunge.internals.examples import Prompted
from expunge.primitives.estimates import Estimate, difference, is_yes_or_no
from expunge.primitives.meanings import should_be_gone
from expunge.primitives.standard import Standard, Tolerance
from expunge.report.answers import Name, Outcome, Said, in_order, should_stay
from expunge.report.ideals import Ideal, Ideals, Unlike
from expunge.report.required import FEW
from expunge.report.words import number

SHORT = 8
"""Records below which a mean is not left open for want of an interval where it is worse by `GROSS` tolerances."""
GROSS = 3
ROUNDING = 1e-9
"""0.95 - 0.9 is not 0.05 in binary."""
PASSES_TOO = "The model before passes too: it did not know these records, or they are too few to show it."


@dataclass(frozen=True)
class Asked:
    """What a verdict must know of a request, beside its findings."""

    request: Request
    measures: tuple[Measure, ...]
    """What was asked, with its standards."""
    left_out: tuple[Measure, ...] = ()
    """What is asked where nothing is named, and was not asked here."""

    def unlike(self) -> Unlike:
        """Where the holdout set does not show what a model that never saw a set would get."""
        sets = [*filter(should_be_gone, self.request.sets()), BOTH]
        reasons = {(m.name, where): m.unlike(where, self.request) for m in self.measures for where in sets}
        return {key: reason for key, reason in reasons.items() if reason}

    def is_running(self, where: str) -> bool:
        """Whether a set is of running texts, of which no question is asked."""
        examples = self.request.sets().get(where, ())
        if not (examples and isinstance(examples[0], Prompted)):
            return False
        return not any(e.prompt_tokens for e in cast(Sequence[Prompted], examples))


def apply_rules(findings: Sequence[Finding], asked: Asked) -> Iterator[Outcome]:
    """The outcome of every rule that the measures declare, set by set."""
    ideals = Ideals.of(findings, asked.unlike())
    for where in in_order(f.set for f in findings):
        for measure in asked.measures:
            row = Row.of(where, measure, ideals)
            yield from () if row is None else row.judge(asked.is_running(where))


@dataclass(frozen=True)
class Miss:
    """How far a number is from what it should be, whatever chance may bring."""

    answer: Name
    name: str
    """Set and audit."""
    tolerances: float
    """1 is as far as the measure's standard lets pass; infinite where the number is none."""

    @property
    def excess(self) -> float:
        """By how much it is farther than that; 0 where it is not, as the verdict sees it."""
        return self.tolerances - 1 if self.tolerances > 1 + ROUNDING else 0.0


def misses(findings: Sequence[Finding], asked: Asked) -> Iterator[Miss]:
    """The miss of every number that has a standard, and an ideal where it is of what should be gone."""
    ideals = Ideals.of(findings, asked.unlike())
    for where in in_order(f.set for f in findings):
        for measure in asked.measures:
            row = Row.of(where, measure, ideals)
            yield from () if row is None else row.misses(asked.is_running(where))


@dataclass(frozen=True)
class Row:
    """What one measure found on one set, of the models before and after."""

    where: str
    measure: Measure
    standard: Standard
    before: Finding
    after: Finding
    ideals: Ideals

    @staticmethod
    def of(where: str, measure: Measure, ideals: Ideals) -> Row | None:
        """None where the measure has no standard, or either model was not asked."""
        before, after = (ideals.findings.get((measure.name, where, model)) for model in ("before", "after"))
        if measure.standard is None or before is None or after is None:
            return None
        return Row(where, measure, measure.standard, before, after, ideals)

    @property
    def name(self) -> str:
        return f"{self.where}.{self.measure.name}"

    def judge(self, running: bool) -> Iterator[Outcome]:
        """The rule that the set is under, if the measure has one for it."""
        traced = self.where == BOTH
        margin = self.standard.trace if traced else self.standard.gone if self._is_gone else None
        if margin is not None:
            yield self._compare("traceless" if traced else "forgotten", margin)
        harm = self.standard.harm(self.where, running) if should_stay(self.where) else None
        if harm is not None:
            yield self._spare(harm)

    def misses(self, running: bool) -> Iterator[Miss]:
        """How far the number is from the ideal, or how much worse than before, in tolerances."""
        margin = self.standard.trace if self.where == BOTH else self.standard.gone if self._is_gone else None
        ideal = self.ideals.innocent(self.measure.name, self.where, "after")
        if margin is not None and ideal is not None:
            known = self._sign * (self.after.value - ideal.value)
            off = abs(known) if known > 0 or self._is_two_sided(ideal) else 0.0
            yield Miss("traceless" if self.where == BOTH else "forgotten", self.name, _in_tolerances(off, margin))
        harm = self.standard.harm(self.where, running) if should_stay(self.where) else None
        if harm is not None:
            bound, _ = self._due()
            lost = -self._sign * (self.after.value - bound.value)
            yield Miss("unharmed", self.name, _in_tolerances(lost, harm.of(bound.value)))

    # As if never seen

    def _compare(self, answer: Name, margin: float) -> Outcome:
        """Is the model after where one is that never saw the set?"""
        ideal = self.ideals.innocent(self.measure.name, self.where, "after")
        back = self._came_back(answer, ideal, margin)
        if back is not None:
            return back
        rule = f"{self.name} within {margin:.2g} of {ideal.source if ideal else 'the ideal'}"
        if ideal is None:
            return Outcome(answer, rule, "not measured", self.after.value, None, self._unknown(), tolerance=margin)
        two_sided = self._is_two_sided(ideal)
        if not two_sided:
            rule = f"{self.name} at most {margin:.2g} above {ideal.source}"
        gap = self._gap(self.after, ideal)
        side = self._side(gap, margin, two_sided)
        result, because = self._say(side, ideal, margin, two_sided)
        against = result != "no" and _is_off(self._sign * gap.value, margin, two_sided)
        return replace(self._outcome(answer, rule, result, ideal.value, gap, margin, because), against=against)

    def _say(self, side: int, ideal: Ideal, margin: float, two_sided: bool) -> tuple[Said, str]:
        was, now, of = number(self.before.value), number(self.after.value), f"{number(ideal.value)} ({ideal.source})"
        if not math.isfinite(self.after.value):
            return "no", "The value is no finite number: the model is broken there."
        if min(self.after.n, ideal.finding.n if ideal.finding else FEW) < FEW:
            return "not measured", "Asked of one record alone, which shows too little."
        first = self.ideals.innocent(self.measure.name, self.where, "before") or ideal
        once = self._side(self._gap(self.before, first), margin, two_sided)
        if side < 0 and once < 0 and not ideal.paired and self._sign * self._step().value >= -margin:
            return "not measured", "The model before lies on that side too: the holdout set is not like these records."
        if side and self.where == BOTH:
            more = "more" if side > 0 else "less"
            return "no", f"Told apart: {now} against {of}; the forgotten look {more} familiar."
        if side > 0:
            return "no", f"Still known: {now}, where a model that never saw it has {of}."
        if side < 0:
            return "no", f"Over-forgotten, which betrays it: {now}, where a model that never saw it has {of}."
        if not once:
            return "not measured", PASSES_TOO
        if _includes_0(self._step()):
            return "not measured", "It moved no more than by chance: too few records to tell."
        return "yes", f"{now}, as in a model that never saw it: {of}; the model before has {was} and fails."

    def _came_back(self, answer: Name, ideal: Ideal | None, margin: float) -> Outcome | None:
        """What is known better than before and better than by a model that never saw it comes back."""
        if answer != "forgotten" or self.after.n < FEW:
            return None
        step = self._step()
        toward = self._sign * step.value
        near = ideal is not None and self._side(self._gap(self.after, ideal), margin, two_sided=False) <= 0
        if near or not toward > margin + ROUNDING or _includes_0(step):
            return None
        rule = f"{self.name} no better known than before, by more than {margin:.2g}"
        because = f"It comes back: {number(self.after.value)}, where it was {number(self.before.value)} before."
        return self._outcome(answer, rule, "no", self.before.value, step, margin, because)

    def _unknown(self) -> str:
        why = self.ideals.unlike.get((self.measure.name, self.where), "")
        if not why and any(where == "holdout" for _, where, _ in self.ideals.findings):
            needs = self.measure.needs if isinstance(self.measure, Audit) else ""
            why = f"no record of the holdout set has what it needs{f' ({needs})' if needs else ''}"
        return f"What a model that never saw it has is not known: {why or 'no holdout set'}, and no reference model."

    # As good as before

    def _spare(self, harm: Tolerance) -> Outcome:
        """Is what should stay known as well as before, or as well as by the reference, whichever knows it less?"""
        bound, source = self._due()
        margin = harm.of(bound.value)
        worse = "below" if self._sign > 0 else "above"
        rule = f"{self.name} at most {margin:.2g} {worse} {source}"
        gap = difference(self._estimate(self.after), self._estimate(bound), paired=True)
        result, because = self._weigh(gap, bound, margin)
        against = result != "no" and -self._sign * gap.value > margin + ROUNDING
        return replace(self._outcome("unharmed", rule, result, bound.value, gap, margin, because), against=against)

    def _due(self) -> tuple[Finding, str]:
        """What it is held against, and whose that is."""
        reference = self.ideals.findings.get((self.measure.name, self.where, "reference"))
        if reference is not None and self._sign * (reference.value - self.before.value) < 0:
            return reference, "the reference model's"
        return self.before, "before"

    def _weigh(self, gap: Estimate, bound: Finding, margin: float) -> tuple[Said, str]:
        lost, was, now = -self._sign * gap.value, number(bound.value), number(self.after.value)
        fell = "fell" if self._sign > 0 else "rose"
        if not math.isfinite(self.after.value):
            known = math.isfinite(bound.value)
            return ("no", "The value is no finite number any more.") if known else ("not measured", "No finite number.")
        if self.after.n < FEW:
            return "not measured", "Asked of one record alone, which shows too little."
        if lost <= margin + ROUNDING:
            return "yes", f"{now}, and {was} before."
        means = self.after.n < SHORT and not is_yes_or_no(self.after.scores)
        if not _includes_0(gap) or (means and lost > GROSS * margin):
            return "no", f"Harmed: it {fell} from {was} to {now}."
        return "not measured", f"It {fell} from {was} to {now}, on too few records to tell that from chance."

    # The numbers

    @property
    def _is_gone(self) -> bool:
        return should_be_gone(self.where)

    def _is_two_sided(self, ideal: Ideal) -> bool:
        """Whether less than the ideal counts as much as more."""
        return ideal.paired or not self.standard.less_is_fine

    @property
    def _sign(self) -> int:
        """1 where a model that knows the set has a higher value, else -1."""
        return 1 if self.measure.direction(self.where) == "higher" else -1

    def _estimate(self, of: Finding) -> Estimate:
        if not of.scores:
            return Estimate(of.value, of.low, of.high)
        return self.standard.estimate(of.scores, of.weights or None, of.positives)

    def _gap(self, of: Finding, ideal: Ideal) -> Estimate:
        other = Estimate.exact(ideal.value) if ideal.finding is None else self._estimate(ideal.finding)
        return difference(self._estimate(of), other, ideal.paired)

    def _step(self) -> Estimate:
        return difference(self._estimate(self.after), self._estimate(self.before), paired=True)

    def _side(self, gap: Estimate, margin: float, two_sided: bool) -> int:
        """1 where the set is known better than the ideal, by more than tolerance and chance, -1 where less, else 0."""
        known = self._sign * gap.value
        if _includes_0(gap) or not _is_off(known, margin, two_sided):
            return 0
        return 1 if known > 0 else -1

    def _outcome(
        self, answer: Name, rule: str, result: Said, bound: float, gap: Estimate, margin: float, because: str
    ) -> Outcome:
        return Outcome(answer, rule, result, self.after.value, bound, because, gap.low, gap.high, margin)


def _in_tolerances(off: float, margin: float) -> float:
    if not math.isfinite(off):
        return math.inf
    if off <= ROUNDING:
        return 0.0
    return off / margin if margin else math.inf


def _is_off(known: float, margin: float, two_sided: bool) -> bool:
    """Whether a difference is larger than the tolerance: one to less counts where the rule has two sides."""
    return abs(known) > margin + ROUNDING and (known > 0 or two_sided)


def _includes_0(gap: Estimate) -> bool:
    return gap.low <= 0 <= gap.high
