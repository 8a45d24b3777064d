"""On which side of the reference's do a model's truth ratios lie, and how far? (Maini et al., 2024, TOFU)

    D of the two-sample Kolmogorov-Smirnov test (arXiv 2401.06121), with the sign of the larger of its two halves

What `ForgetQuality` does not tell: whether a model still knows more than the reference, or betrays the forgetting.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from expunge.core.audit import Finding, Summary
from expunge.primitives.statistics import ks
from expunge.summaries._truth_ratios import pairs


@dataclass(frozen=True)
class TruthRatioShift(Summary):
    """Distance between the truth ratios of a model and of the reference: below 0 it still knows more."""

    reads = ("TruthRatio",)
    compares = True
    better = "lower"
    ideal = 0.0
    definition = (
        "The test's statistic D with a sign: below 0 this model's truth ratios lie under the reference's, so it still "
        "knows more; above 0 they lie over them, so it is over-forgotten."
    )

    def __call__(self, findings: Sequence[Finding]) -> tuple[Finding, ...]:
        return tuple(self._of(one, reference) for one, reference in pairs(findings))

    def _of(self, one: Finding, reference: Finding) -> Finding:
        shift = ks(one.scores, reference.scores)
        value = shift.sign * shift.distance
        return replace(self.finding(one.set, value, (value, value), one.scores, self.ideal), model=one.model)
