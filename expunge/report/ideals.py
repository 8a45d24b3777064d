"""What a model that never saw the forget set would get, as far as that is known: the one place that says so.

Of what should be gone: the reference model's value; else the value of the holdout set, which no model saw, under the
model after forgetting; else what the audit itself found that such a model gets. On any other set it is no change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from expunge.core.audit import BOTH, Finding
from expunge.primitives.meanings import should_be_gone

Unlike = Mapping[tuple[str, str], str]
"""By audit and set: why the holdout set does not show what a model that never saw the set would get."""


@dataclass(frozen=True)
class Ideal:
    """A value, where it comes from in words, and the finding that it was measured by, if it was."""

    value: float
    source: str
    finding: Finding | None = None
    paired: bool = False
    """Whether it was measured on the same records."""


@dataclass(frozen=True)
class Ideals:
    """The ideals of findings; `unlike` says where the holdout set does not do."""

    findings: Mapping[tuple[str, str, str], Finding]
    unlike: Unlike

    @staticmethod
    def of(findings: Sequence[Finding], unlike: Unlike | None = None) -> Ideals:
        """From the findings of all models."""
        return Ideals({(f.audit, f.set, f.model): f for f in findings}, unlike or {})

    def last(self, audit: str, where: str) -> Finding | None:
        """The finding about the model after forgetting; of a model that was only audited, about that."""
        return next((f for model in ("after", "before") if (f := self.findings.get((audit, where, model)))), None)

    def innocent(self, audit: str, where: str, model: str) -> Ideal | None:
        """What a model that never saw `where` would get, asked beside `model`; None where that is not known."""
        reference = self.findings.get((audit, where, "reference"))
        if reference is not None:
            return Ideal(reference.value, "the reference model's", reference, paired=True)
        unlike = (audit, where) in self.unlike
        holdout = None if unlike or where == BOTH else self.findings.get((audit, "holdout", model))
        if holdout is not None:
            return Ideal(holdout.value, "the holdout set's", holdout)
        own = self.last(audit, where)
        if own is None or own.ideal is None or (unlike and where == BOTH):
            return None
        return Ideal(own.ideal, "no difference" if where == BOTH else "guessing" if own.ideal else "never")


def with_ideals(findings: Sequence[Finding], unlike: Unlike | None = None) -> list[Finding]:
    """Findings with their ideals, the same for all models."""
    ideals = Ideals.of(findings, unlike)
    last = "after" if any(f.model == "after" for f in findings) else "before"

    def value(f: Finding) -> float | None:
        if f.set == BOTH or should_be_gone(f.set):
            known = ideals.innocent(f.audit, f.set, last)
            return None if known is None else known.value
        before = ideals.findings.get((f.audit, f.set, "before"))
        return None if before is None else before.value

    return [f.with_ideal(value(f)) for f in findings]
