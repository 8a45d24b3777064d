"""A run's findings on one half of its records: to choose on the validation half, and to show the test half.

Each set is cut by a fixed hash of its records' contents: neither their order nor their ids nor a seed matters, and
equal records lie in one half. Nothing is asked again: a finding has the score of each record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from expunge.audits._kinds import MembershipAudit, ScoreAudit, SetAudit
from expunge.core.audit import BOTH, Audit, Finding
from expunge.core.request import Example, Request
from expunge.errors import DataRefused
from expunge.primitives.estimates import Estimator, mean_estimate
from expunge.report.ideals import with_ideals
from expunge.report.rules import Asked, Miss, misses

Half = Literal["validation", "test"]
HALVES: tuple[Half, ...] = ("validation", "test")
SPLIT = (
    "Of each set the records whose SHA-256 (of 'expunge half' and the digest of question and answer, or of the pixels) "
    "are the lower half are the validation half, the others the test half."
)
LEAST = 4
"""Forget records, of which two are in each half."""


@dataclass(frozen=True)
class Halves:
    """A request, and which records of each set are for validation."""

    asked: Asked
    chosen: Mapping[str, frozenset[str]]
    """Digests of the validation half of each set."""

    @staticmethod
    def of(asked: Asked) -> Halves:
        """Raises `DataRefused` where there are too few records to forget."""
        sets = asked.request.sets()
        count = len({example.fact_digest() for example in asked.request.forget})
        if count < LEAST:
            raise DataRefused(
                f"A sweep chooses on one half of the records and shows the other, and the forget set has {count}. "
                f"Give {LEAST} at least."
            )
        return Halves(asked, {name: _lower_half(examples) for name, examples in sets.items()})

    def sizes(self) -> dict[str, tuple[int, int]]:
        """How many records of each set are in either half."""
        found = {}
        for name, examples in self.asked.request.sets().items():
            inside = sum(self._is_in(name, example, "validation") for example in examples)
            found[name] = (inside, len(examples) - inside)
        return found

    def findings(self, findings: Sequence[Finding], half: Half) -> list[Finding]:
        """What an audit found, of the records of one half alone; of those whose value is made of scores."""
        made = [self._cut(finding, half) for finding in findings]
        return with_ideals([finding for finding in made if finding is not None], self.asked.unlike())

    def misses(self, findings: Sequence[Finding], half: Half) -> list[Miss]:
        """How far each number of a half is from what it should be."""
        return list(misses(self.findings(findings, half), self._ask_half(half)))

    def _ask_half(self, half: Half) -> Asked:
        def part(name: str, examples: Sequence[Example]) -> tuple[Example, ...]:
            return tuple(example for example in examples if self._is_in(name, example, half))

        whole = self.asked.request
        request = Request(
            forget=part("forget", whole.forget),
            retain=part("retain", whole.retain),
            holdout=part("holdout", whole.holdout),
            probes={name: part(name, examples) for name, examples in whole.probes.items()},
        )
        return replace(self.asked, request=request)

    def _is_in(self, where: str, example: Example, half: Half) -> bool:
        return (example.fact_digest() in self.chosen[where]) == (half == "validation")

    def _cut(self, finding: Finding, half: Half) -> Finding | None:
        audit = next((m for m in self.asked.measures if m.name == finding.audit and isinstance(m, Audit)), None)
        sets = asked_of(audit, finding.set, self.asked.request) if audit else []
        estimate = _estimator(audit) if audit else None
        if estimate is None or sum(len(examples) for _, examples in sets) != len(finding.scores):
            return None
        kept = [self._is_in(where, example, half) for where, examples in sets for example in examples]
        scores, weights = _keep(finding.scores, kept), _keep(finding.weights, kept)
        positives = sum(kept[: finding.positives])
        if not scores or (finding.positives and positives in (0, len(scores))):
            return None
        made = estimate(scores, weights or None, positives)
        return replace(
            finding,
            value=made.value,
            low=made.low,
            high=made.high,
            n=len(scores),
            scores=scores,
            weights=weights,
            positives=positives,
        )


def asked_of(audit: Audit, where: str, request: Request) -> list[tuple[str, Sequence[Example]]]:
    """The records that an audit's scores on a set are of, in their order, by set; none where that is not known."""
    if where == BOTH and isinstance(audit, MembershipAudit):
        return [("forget", request.forget), ("holdout", request.holdout)]
    if isinstance(audit, SetAudit) and where in request.sets():
        return [(where, audit.applicable(request).get(where, []))]
    return []


def _estimator(audit: Audit) -> Estimator | None:
    """How an audit's value is made of the scores of its records; None where that is not known."""
    if audit.standard is not None:
        return audit.standard.estimate
    return mean_estimate if isinstance(audit, ScoreAudit) else None


def _lower_half(examples: Iterable[Example]) -> frozenset[str]:
    digests = {example.fact_digest() for example in examples}
    hashed = sorted(digests, key=lambda digest: hashlib.sha256(f"expunge half {digest}".encode()).digest())
    return frozenset(hashed[: (len(hashed) + 1) // 2])


def _keep(numbers: Sequence[float], kept: Sequence[bool]) -> tuple[float, ...]:
    return tuple(number for number, keep in zip(numbers, kept, strict=True) if keep) if numbers else ()
