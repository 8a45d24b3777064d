"""Retain by the data: cross-entropy on the retain set (Maini et al., 2024, TOFU, arXiv 2401.06121).

loss = CE(y_r | x_r),   mean over labelled rows, in nats
"""

from dataclasses import dataclass
from typing import ClassVar

from expunge.core.objective import Objective, Scalar
from expunge.core.view import View


@dataclass(frozen=True)
class RetainNLL(Objective):
    """Keep the retain set's right answers likely."""

    needs: ClassVar = ("retain",)
    intention: ClassVar = "retention"

    def __call__(self, now: View, before: View) -> Scalar:
        return now.retain.nll()
