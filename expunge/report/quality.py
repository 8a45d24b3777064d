"""Forget quality: whether a model's truth ratios look drawn like those of a model that never saw the forget set.

It needs the scores of two models, so it is no audit: it is worked out from the findings of `TruthRatio`, where a
reference model was given. (Maini et al., 2024, TOFU, arXiv 2401.06121)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from expunge.core.audit import Finding
from expunge.core.request import should_be_gone
from expunge.primitives.statistics import ks

DERIVED = ("ForgetQuality", "TruthRatioShift")
"""Names of the two findings made of a model's truth ratios and the reference's."""
P_VALUE = (
    "p-value of the two-sided two-sample Kolmogorov-Smirnov test between the truth ratios of this model and of the "
    "reference (TOFU; p itself, not its logarithm). Near 1 they look alike; n is this model's alone. It falls as n "
    "grows and does not tell forgetting from over-forgetting: read it beside TruthRatioShift and the utility."
)
DISTANCE = (
    "The test's statistic D with a sign: below 0 this model's truth ratios lie under the reference's, so it still "
    "knows more; above 0 they lie over them, so it is over-forgotten."
)


def with_quality(findings: list[Finding]) -> list[Finding]:
    """Findings with both numbers for each truth ratio of what should be gone that has a reference beside it.

    A test has no interval of its own, so both ends are the value.
    """
    ratios = [f for f in findings if f.audit == "TruthRatio" and should_be_gone(f.set)]
    references = {f.set: f for f in ratios if f.model == "reference"}
    compared = [(f, references[f.set]) for f in ratios if f.model != "reference" and f.set in references]
    return [*findings, *(made for pair in compared for made in _quality(*pair))]


def _quality(of: Finding, reference: Finding) -> Iterator[Finding]:
    shift = ks(of.scores, reference.scores)
    for name, value, ideal, definition in (
        ("ForgetQuality", shift.p, 1.0, P_VALUE),
        ("TruthRatioShift", shift.sign * shift.distance, 0.0, DISTANCE),
    ):
        yield replace(of, audit=name, value=value, low=value, high=value, ideal=ideal, definition=definition)
