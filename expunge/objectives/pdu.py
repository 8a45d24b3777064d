"""Primal-dual unlearning (PDU, Entesari et al., 2025, arXiv 2506.05314): flatten forget scores, under a constraint.

    loss = mean over forget rows of (max over v of z(v) - mean over v of z(v))^2 + multiplier * CE(y_r | x_r)
    after each step:  multiplier <- max(0, multiplier + rate * (CE of the step - limit))

The constraint is CE(y_r | x_r) <= limit; `limit` is the first step's retain loss (an adapter has no effect yet) plus
`slack`. The constant -multiplier * limit of the Lagrangian has no gradient and is left out. The multiplier changes
between steps, by the whole loss of the step before, so `accumulate` changes nothing.

Needs the forget set and the retain set; it includes a retain term. Meant as removal: scores are flattened, whatever
the answer was. Published: multiplier 50 to 100 at the start, rate 1 to 5, limit about 0.3 above the first retain loss,
fixed for 5 of 10 epochs. A widely used implementation masks the forget half's rows off by one, so weights do not
carry over. With a fixed multiplier of 50 a third of the forget set stayed on a small model, and membership was far
overshot (AUC 0.02).
"""

from dataclasses import dataclass
from typing import ClassVar, cast

from torch import Tensor

from expunge.core.objective import Objective, Scalar
from expunge.core.view import View
from expunge.errors import UsageRefused
from expunge.notation.recipes import TOFU, Recipe
from expunge.objectives._lagged import last_step
from expunge.primitives.settings import check_finite

PUBLISHED = Recipe(
    "PDU",
    "language",
    f"Finetune(objective=PDU(multiplier=50.0, rate=1.0, slack=0.3, warmup=10), steps=Epochs(count=10.0), {TOFU})",
    "Entesari et al., 2025, by open-unlearning: multiplier 50 to 100, rate 1 to 5, 10 epochs, and "
    "the multiplier fixed for 5 of them; here it is fixed for 10 steps, whatever an epoch is.",
)


@dataclass(frozen=True)
class PDU(Objective):
    """Flatten the forget rows' scores, with a retain weight as large as the constraint needs."""

    needs: ClassVar = ("forget", "retain")
    intention: ClassVar = "removal"

    multiplier: float = 50.0
    """Weight of the retain loss at the start."""
    rate: float = 1.0
    """How fast the weight follows the retain loss."""
    slack: float = 0.3
    """Nats for each row that the retain loss may rise above that of the first step."""
    warmup: int = 10
    """Steps before the weight starts to change."""

    def __post_init__(self) -> None:
        check_finite(self, "multiplier", "rate", "slack")
        for name in ("multiplier", "rate", "warmup"):
            if not getattr(self, name) >= 0:
                raise UsageRefused(f"The `{name}` of PDU must be at least 0. Got {getattr(self, name)!r}.")

    def __call__(self, now: View, before: View) -> Scalar:
        retain_loss = now.retain.nll()
        weight = self._weight(now, float(retain_loss.detach()))
        return now.forget.over_rows(now.forget.each_row(_steepness)) + weight * retain_loss

    def _weight(self, now: View, loss: float) -> float:
        """The multiplier of this step, from the losses of the steps before."""
        memory = cast(
            dict[str, float], now.run.memory.setdefault(repr(self), {"multiplier": self.multiplier, "steps": 0})
        )
        last_loss = last_step(memory, now.run.step, loss)
        if last_loss is not None:
            memory["steps"] += 1
            limit = memory.setdefault("limit", last_loss + self.slack)
            if memory["steps"] >= self.warmup:
                memory["multiplier"] = max(0.0, memory["multiplier"] + self.rate * (last_loss - limit))
        return memory["multiplier"]


def _steepness(_labels: Tensor, logits: Tensor) -> Tensor:
    return (logits.amax(-1) - logits.mean(-1)).square()
