"""Bad teaching (Chundawat et al., 2023, AAAI, arXiv 2205.08096): the forgotten as a network knows it that never learnt.

    loss = mean over labelled rows of  KL( p_blank^(1/T) || p_now^(1/T) ),   p^(1/T) = softmax(z / T)

The incompetent teacher is a network of the same shape with random weights, drawn once for a run. The competent one, the
original on the retain set, is `RetainKL()`: the paper takes the mean over a batch of both, so the two weights are the
shares of the batch. The authors' code averages over the classes too, which divides its loss by their number; Adam does
not see it. A class of which the answers are random is not one that a retrained network gives: such a network takes its
images for those of the likest class, so the forgetting shows.

Needs the forget set; the reference gives the shape. Meant as removal. Costs one more pass through the forget batch, and
the memory of a second model in each process.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from expunge.core.objective import Objective, Scalar
from expunge.core.view import View
from expunge.errors import UsageRefused
from expunge.notation.recipes import ALL_STEPS, Recipe
from expunge.objectives._untaught import ask_untaught
from expunge.primitives.class_scores import divergence
from expunge.primitives.settings import check_finite, check_seed

PUBLISHED = Recipe(
    "BadTeacher",
    "vision",
    "Finetune(objective=0.27 * BadTeacher(temperature=1.0) + 0.73 * RetainKL(), adapter=Full(), learning_rate=0.0001, "
    f"steps=Epochs(count=1.0), batch=69, retain_batch=187, {ALL_STEPS})",
    "The authors' code for a class of CIFAR-10: temperature 1, Adam at 1e-4, one pass through the class and 30 % of "
    "the rest in batches of 256, of which the class is 27 %.",
)


@dataclass(frozen=True)
class BadTeacher(Objective):
    """Distil a network that was never trained, on the forget set."""

    needs: ClassVar = ("forget", "reference")
    intention: ClassVar = "removal"

    temperature: float = 1.0
    """Divides the scores before they are compared: a higher one looks at unlikely classes too."""
    seed: int = 0
    """Draws the teacher's weights."""

    def __post_init__(self) -> None:
        check_finite(self, "temperature")
        check_seed(self)
        if not self.temperature > 0:
            raise UsageRefused(f"The `temperature` of BadTeacher must be positive. Got {self.temperature!r}.")

    def __call__(self, now: View, before: View) -> Scalar:
        taught = ask_untaught(self, self.seed, now, before).forget
        return now.forget.over_rows(now.forget.each_row(self._divergence, taught))

    def _divergence(self, labels: Tensor, now: Tensor, taught: Tensor) -> Tensor:
        return divergence(labels, now / self.temperature, taught / self.temperature)
