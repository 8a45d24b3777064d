"""Gradient difference (Liu et al., 2022, arXiv 2203.12817): descend on the retain set, ascend on the forget set.

    loss = CE(y_r | x_r) - forget_weight * CE(y_f | x_f)

It is a sum, so it is written as one: `GradDiff()` reads back as `Ascent() + RetainNLL()`.
"""

from expunge.core.objective import Objective
from expunge.objectives.ascent import Ascent
from expunge.objectives.retain_nll import RetainNLL


def GradDiff(forget_weight: float = 1.0) -> Objective:  # noqa: N802 (a plug-in's name is the paper's)
    """Ascent on the forget set, weighted, and descent on the retain set."""
    return (Ascent() if forget_weight == 1 else forget_weight * Ascent()) + RetainNLL()
