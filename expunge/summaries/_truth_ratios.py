"""Truth ratios of a model beside those of the reference: what both summaries of them read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from expunge.core.audit import Finding
from expunge.primitives.meanings import should_be_gone


def pairs(findings: Sequence[Finding]) -> Iterator[tuple[Finding, Finding]]:
    """Each finding of `TruthRatio` on what should be gone, with the reference's on the same set."""
    ratios = [f for f in findings if f.audit == "TruthRatio" and should_be_gone(f.set)]
    references = {f.set: f for f in ratios if f.model == "reference"}
    return ((f, references[f.set]) for f in ratios if f.model != "reference" and f.set in references)
