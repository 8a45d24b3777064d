"""Do a model's truth ratios look drawn like those of one that never saw the forget set? (Maini et al., 2024, TOFU)

    p-value of the two-sided two-sample Kolmogorov-Smirnov test (arXiv 2401.06121); p itself, not its logarithm

It needs the scores of two models, so it is no audit: it is worked out from the findings of `TruthRatio`, where a
reference model is given. A test has no interval of its own, so both ends are the value.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from expunge.core.audit import Finding, Summary
from expunge.primitives.statistics import ks
from expunge.summaries._truth_ratios import pairs


@dataclass(frozen=True)
class ForgetQuality(Summary):
    """p-value: near 1 the truth ratios look like the reference's."""

    reads = ("TruthRatio",)
    compares = True
    ideal = 1.0
    definition = (
        "p-value of the two-sided two-sample Kolmogorov-Smirnov test between the truth ratios of this model and of the "
        "reference (TOFU; p itself, not its logarithm). Near 1 they look alike; n is this model's alone. It falls as n "
        "grows and does not tell forgetting from over-forgetting: read it beside TruthRatioShift and the utility."
    )

    def __call__(self, findings: Sequence[Finding]) -> tuple[Finding, ...]:
        return tuple(self._of(one, reference) for one, reference in pairs(findings))

    def _of(self, one: Finding, reference: Finding) -> Finding:
        p = ks(one.scores, reference.scores).p
        return replace(self.finding(one.set, p, (p, p), one.scores, self.ideal), model=one.model)
