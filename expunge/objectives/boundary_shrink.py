"""Boundary shrink (Chen et al., 2023, CVPR, arXiv 2303.11570): give a class's pictures to the classes around it.

    x' = x + bound * sign( d CE(y | x) / d x ),   by the original model
    y' = the class other than y that the original finds likeliest at x'
    loss = mean over labelled rows of CE(y' | x)

The step towards a higher loss crosses the nearest boundary, and what lies behind it is what a network without the class
would say; the class's region shrinks to nothing. Where it does not cross one, the likeliest other class is taken too.
Of texts, which cannot be moved a little, y' is the runner-up at x itself: the same with a bound of 0.

Needs the forget set and the original. Meant as removal. There is no retain term: a long run, or a high rate, costs the
other classes. A step costs a pass through the original forward and backward and one at x'.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from expunge.core.model import Batch, network_of
from expunge.core.objective import Objective, Scalar
from expunge.core.predictions import Predictions
from expunge.core.question import Scores
from expunge.core.view import View
from expunge.internals.examples import Pictured
from expunge.notation.recipes import ALL_STEPS, Recipe
from expunge.primitives.settings import check_finite

PUBLISHED = Recipe(
    "BoundaryShrink",
    "vision",
    "Finetune(objective=BoundaryShrink(bound=0.4), adapter=Full(), optimizer='sgd', learning_rate=1e-05, "
    f"steps=Epochs(count=10.0), batch=64, {ALL_STEPS})",
    "Chen et al., 2023: SGD at 1e-5 for 10 epochs. Their bound is 0.1 of the range of a pixel, here about 0.4 in the "
    "units that a classifier of CIFAR-10 reads. Batches of 64 are those of reimplementations.",
)


@dataclass(frozen=True)
class BoundaryShrink(Objective):
    """Learn the nearest other class of each example."""

    needs: ClassVar = ("forget", "reference")
    intention: ClassVar = "removal"

    bound: float = 0.4
    """How far each pixel is moved, in the units that the model reads (of CIFAR, 0.4 is about a tenth of the range)."""

    def __post_init__(self) -> None:
        check_finite(self, "bound")

    def __call__(self, now: View, before: View) -> Scalar:
        nearest = self._ask(before).each_row(_runner_up).long()
        said = replace(now.forget, labels=nearest.to(now.forget.labels.device))
        return -said.over_rows(said.log_prob())

    def _ask(self, before: View) -> Predictions:
        """What the original says of the examples once they are moved; without gradients."""
        batch = before.batch("forget")
        if not all(isinstance(example, Pictured) for example in batch):
            return before.forget
        network = network_of(before.model, "BoundaryShrink")
        before.passes += [("forget", Scores())] * 2  # which a plan counts
        pictures: list[Any] = list(batch)
        still = torch.stack([picture.pixels for picture in pictures]).requires_grad_()
        with torch.enable_grad():
            losses = network.ask(Scores(), _moved_to(pictures, still)).log_prob().neg()
            [slope] = torch.autograd.grad(losses.sum(), still)
        with torch.no_grad():
            moved = still + self.bound * slope.sign()
            return network.ask(Scores(), _moved_to(pictures, moved))


def _moved_to(pictures: list[Any], pixels: Tensor) -> Batch:
    return [replace(picture, pixels=own) for picture, own in zip(pictures, pixels, strict=True)]


def _runner_up(labels: Tensor, logits: Tensor) -> Tensor:
    """The likeliest wrong class of each row."""
    return logits.scatter(-1, labels[:, None], -torch.inf).argmax(-1).to(logits.dtype)
