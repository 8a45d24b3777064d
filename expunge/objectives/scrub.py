"""SCRUB (Kurmanji et al., 2023, arXiv 2302.09880): away from the original on the forget set, close to it on the rest.

    up     loss = -D(forget)                                for one pass through the forget set
    down   loss = alpha * D(retain) + gamma * CE(y_r | x_r)   then for one through the retain set
    D = mean over labelled rows of  T^2 * KL( p_before^(1/T) || p_now^(1/T) ),   p^(1/T) = softmax(z / T)

The original model is the teacher. After `passes` such rounds all steps go down: D has no bound, so a run must be long
enough to end so. The very first step up has no gradient, since the two models agree; a forget set that fits one batch
is therefore hardly pushed. Outside of a run (step 0) the loss is the sum of both.

Needs the forget set, the retain set and the reference. Meant as removal.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from expunge.core.objective import Objective, Scalar
from expunge.core.predictions import Predictions
from expunge.core.view import View
from expunge.errors import UsageRefused
from expunge.notation.recipes import ALL_STEPS, Recipe
from expunge.primitives.class_scores import divergence
from expunge.primitives.settings import check_finite

PUBLISHED = Recipe(
    "SCRUB",
    "vision",
    "Finetune(objective=SCRUB(temperature=4.0, alpha=0.001, gamma=0.99, passes=2), adapter=Full(), optimizer='sgd', "
    "learning_rate=0.0005, steps=Epochs(count=5.0, of='retain'), batch=32, retain_batch=256, weight_decay=0.0005, "
    f"{ALL_STEPS})",
    "The authors' code on all of CIFAR-10: temperature 4, alpha 0.001, gamma 0.99, SGD at 5e-4, two passes up, three "
    "down. Steps up count too, so the length here is that of five passes down. Forget batches of 32 are those of "
    "their settings; their notebook reads 512 at once.",
)


@dataclass(frozen=True)
class SCRUB(Objective):
    """Alternate steps away from the teacher on the forget set and towards it on the retain set."""

    needs: ClassVar = ("forget", "retain", "reference")
    intention: ClassVar = "removal"

    temperature: float = 4.0
    """Divides the scores before they are compared: a higher one looks at unlikely classes too."""
    alpha: float = 0.001
    """Weight of the retain set's divergence."""
    gamma: float = 0.99
    """Weight of the retain set's cross-entropy."""
    passes: int = 2
    """Passes up, each before one down; then all steps go down."""

    def __post_init__(self) -> None:
        check_finite(self, "temperature", "alpha", "gamma")
        if not self.temperature > 0 or self.passes < 0:
            raise UsageRefused(
                f"SCRUB: `temperature` must be positive and `passes` at least 0. "
                f"Got {self.temperature!r}, {self.passes!r}."
            )

    def __call__(self, now: View, before: View) -> Scalar:
        # Of the original both are read in every step, so that a resumed run fills its cache in the same batches.
        teacher, other = before.forget, before.retain
        if not now.run.step:
            return self._down(now, other) - self._apart(now.forget, teacher)
        return -self._apart(now.forget, teacher) if self._goes_up(now) else self._down(now, other)

    def _goes_up(self, now: View) -> bool:
        up, down = (_steps_of_pass(now, name) for name in ("forget", "retain"))
        done = now.run.step - 1
        return done // (up + down) < self.passes and done % (up + down) < up

    def _down(self, now: View, teacher: Predictions) -> Scalar:
        return self.alpha * self._apart(now.retain, teacher) + self.gamma * now.retain.nll()

    def _apart(self, now: Predictions, teacher: Predictions) -> Scalar:
        return now.over_rows(now.each_row(self._divergence, teacher))

    def _divergence(self, labels: Tensor, now: Tensor, before: Tensor) -> Tensor:
        return self.temperature**2 * divergence(labels, now / self.temperature, before / self.temperature)


def _steps_of_pass(now: View, name: str) -> int:
    """Steps in which every example of a set is read once."""
    step = now.shares[name].examples if name in now.shares else len(now.batch(name))
    return max(1, round(len(now.run.whole.get(name, ())) / step))
