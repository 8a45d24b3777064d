"""Gradient ascent on the forget set (Jang et al., 2022, arXiv 2210.01504).

    loss = -CE(y_f | x_f),   CE = mean negative log-probability of the labelled rows, in nats

It has no lower bound: the loss falls for as long as the weights let it. Use it with a retain term and a bound.
"""

from dataclasses import dataclass
from typing import ClassVar

from expunge.core.objective import Objective, Scalar
from expunge.core.view import View
from expunge.notation.recipes import CIFAR, TOFU, Recipe

PUBLISHED = (
    Recipe(
        "GA",
        "language",
        f"Finetune(objective=Ascent(), steps=Epochs(count=10.0), {TOFU})",
        "open-unlearning's configuration for TOFU: AdamW at 1e-5, batches of 32, 10 epochs; no retain term.",
    ),
    Recipe(
        "GA",
        "vision",
        f"Finetune(objective=Ascent(), adapter=Full(), learning_rate=0.0001, steps=Epochs(count=5.0), {CIFAR})",
        "SalUn's code (Fan et al., 2024) on CIFAR-10: SGD at 1e-4, 5 epochs; no retain term.",
    ),
)


@dataclass(frozen=True)
class Ascent(Objective):
    """Raise the cross-entropy of the forget set."""

    needs: ClassVar = ("forget",)
    intention: ClassVar = "removal"

    def __call__(self, now: View, before: View) -> Scalar:
        return -now.forget.nll()
