"""The adaptive retain weight of SHA256 (Agrawal and Huang, 2025, arXiv 2504.12996): a higher weight as the retain loss
rises.

    loss = weight * CE(y_r | x_r),   weight = clip(scale * base ** rise + offset, low, high) where rise > 0, else low
    rise = CE of the step before - mean CE of the first `measure` steps

A rise of 1 nat gives 0.3 * 6 + 0.8 = 2.6, one of 1.06 or more the full 2.8. The weight changes between steps, by the
whole loss of the step before, so `accumulate` changes nothing; the paper takes the batch's own loss.

Needs the retain set. Meant as retention. Published: `Ascent() + AdaptiveRetain()` on the MLPs of the first 6 blocks,
learning rate 1.5e-5, 8 epochs, of which the first measures. The authors' code clips at 2.3 and divides the mean by the
number of examples instead of batches, so that its weight is near the cap from the second epoch on.
"""

from dataclasses import dataclass
from typing import ClassVar, cast

from expunge.core.objective import Objective, Scalar
from expunge.core.view import View
from expunge.errors import UsageRefused
from expunge.notation.recipes import ALL_STEPS, Recipe
from expunge.objectives._lagged import last_step
from expunge.primitives.settings import check_finite

PUBLISHED = Recipe(
    "SHA256",
    "language",
    "Finetune(objective=Ascent() + AdaptiveRetain(), adapter=LoRA(rank=64, alpha=128.0, "
    "targets='mlp', layers=(0, 1, 2, 3, 4, 5)), learning_rate=1.5e-05, steps=Epochs(count=8.0), "
    f"batch=120, retain_batch=120, {ALL_STEPS})",
    "Agrawal and Huang, 2025: MLPs of the first six blocks, 8 epochs in batches of 12 times 10 at "
    "1.5e-5, the first epoch measures. The matrices are trained whole there, by a LoRA of rank 64 "
    "here.",
    "Constrained unlearning of SHA256 (Agrawal and Huang, 2025, arXiv 2504.12996): ascent in early "
    "MLPs, an adaptive retain weight.",
)


@dataclass(frozen=True)
class AdaptiveRetain(Objective):
    """Cross-entropy on the retain set, with a weight that grows with its rise."""

    needs: ClassVar = ("retain",)
    intention: ClassVar = "retention"

    scale: float = 0.3
    """Factor of the growing term of the weight."""
    base: float = 6.0
    """Factor by which that term grows for each nat of rise."""
    offset: float = 0.8
    """The constant term of the weight."""
    low: float = 1.2
    """Smallest weight, also while the loss has not risen."""
    high: float = 2.8
    """Largest weight."""
    measure: int = 8
    """First steps, whose mean retain loss is the baseline of the rise."""

    def __post_init__(self) -> None:
        check_finite(self, "scale", "base", "offset", "high")
        if not 0 <= self.low <= self.high:
            raise UsageRefused(f"AdaptiveRetain needs 0 <= low <= high. Got {self.low!r} and {self.high!r}.")
        if self.measure < 1:
            raise UsageRefused(f"The `measure` of AdaptiveRetain must be at least 1. Got {self.measure!r}.")

    def __call__(self, now: View, before: View) -> Scalar:
        retain_loss = now.retain.nll()
        return self._weight(now, float(retain_loss.detach())) * retain_loss

    def weight(self, rise: float) -> float:
        """The weight where the retain loss has risen by so many nats."""
        if rise <= 0:
            return self.low
        # A large power overflows; beyond 100 nats every weight is at its cap.
        weight: float = self.scale * self.base ** min(rise, 100.0) + self.offset
        return min(self.high, max(self.low, weight))

    def _weight(self, now: View, loss: float) -> float:
        memory = cast(
            dict[str, float], now.run.memory.setdefault(repr(self), {"weight": self.low, "steps": 0, "mean": 0.0})
        )
        last_loss = last_step(memory, now.run.step, loss)
        if last_loss is not None and memory["steps"] < self.measure:
            memory["steps"] += 1
            memory["mean"] += (last_loss - memory["mean"]) / memory["steps"]
        elif last_loss is not None:
            memory["weight"] = self.weight(last_loss - memory["mean"])
        return memory["weight"]
