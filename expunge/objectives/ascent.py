"""Gradient ascent on the forget set (Jang et al., 2022, arXiv 2210.01504).

    loss = -CE(y_f | x_f),   CE = mean negative log-probability of the labelled rows, in nats

It has no lower bound: the loss falls for as long as the weights let it. Use it with a retain term and a bound.
"""

from dataclasses import dataclass
from typing import ClassVar

from expunge.core.objective import Objective, Scalar
from expunge.core.view import View


@dataclass(frozen=True)
class Ascent(Objective):
    """Raise the cross-entropy of the forget set."""

    needs: ClassVar = ("forget",)
    intention: ClassVar = "removal"

    def __call__(self, now: View, before: View) -> Scalar:
        return -now.forget.nll()
