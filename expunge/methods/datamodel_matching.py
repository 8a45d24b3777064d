"""Datamodel matching (Georgiev et al., 2025, arXiv 2410.23232): train towards what a retrained model would say.

    loss = forget share * mean over forget of |z(x) - t(x)|^2  +  retain share * mean over retain of |z(x) - t(x)|^2

z(x) are the class scores and t(x) those of a stand-in for the retrained model, an oracle. The published oracle is the
original's scores less the influence of the forget set, from a datamodel. Here any method gives it: by default `Newton`,
whose last layer is the exact influence on the head, so t(x) is right where the head is all that was trained and a
first-order guess elsewhere. Models that were really retrained, wrapped as a method, make this oracle matching, the
upper bound of the paper. Unlike ascent it has a minimum, where every example is at its own target; so nothing that is
unlearned early is driven on.

Published: Adam at 5e-4, 5 epochs of the forget set, batches of 512 with three retained examples for each forgotten one.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from expunge.adapters.full import Full
from expunge.core.method import Method, WeightMethod
from expunge.core.model import Model, Network
from expunge.core.objective import Objective, Scalar
from expunge.core.request import Request
from expunge.core.view import View
from expunge.errors import DataRefused, UsageRefused
from expunge.events import Note, OnEvent
from expunge.methods.epochs import Epochs
from expunge.methods.finetune import Finetune
from expunge.methods.newton import Newton
from expunge.methods.stop import Stop
from expunge.notation.recipes import ALL_STEPS, Recipe

PUBLISHED = Recipe(
    "DMM",
    "vision",
    "DatamodelMatching(learn=Finetune(adapter=Full(), learning_rate=0.0005, steps=Epochs(count=5.0), batch=128, "
    f"retain_batch=384, {ALL_STEPS}, norms=False))",
    "Georgiev et al., 2025: Adam at 5e-4, 5 epochs, 512 examples a step of which three in four are retained. Their "
    "scores come from datamodels of thousands of trainings; here from Newton's step of the last layer.",
)


@dataclass(frozen=True)
class DatamodelMatching(WeightMethod):
    """Match the class scores that another method, such as Newton, says a retrained model has."""

    oracle: Method = Newton()
    """Makes the model whose scores are matched. It sees the same request."""
    retain: float = 0.75
    """Share of the retained examples in the loss, from 0 to 1; the rest is the forget set's."""
    learn: Finetune = Finetune(
        adapter=Full(),
        learning_rate=5e-4,
        steps=Epochs(count=5.0),
        batch=16,
        retain_batch=48,
        stop=Stop(level=None, max_retain_increase=None, every=1000),
        norms=False,
    )
    """How the scores are trained towards the oracle's; its own objective is not used."""

    resumable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.retain < 1:
            raise UsageRefused(f"The `retain` of DatamodelMatching must be from 0 up to 1. Got {self.retain!r}.")

    def with_seed(self, seed: int) -> Self:
        return replace(self, learn=self.learn.with_seed(seed))

    def change(self, network: Network, request: Request, on_event: OnEvent) -> Model:
        if self.retain and not request.retain:
            raise DataRefused("DatamodelMatching matches the retain set too, and the request has none. Give --retain.")
        on_event(Note(f"Making what is matched by {self.oracle!r}"))
        target = self.oracle(network, request)
        return replace(self.learn, objective=_Matched(target, self.retain))(network, request, on_event)


@dataclass(frozen=True)
class _Matched(Objective):
    """Squared distance of the class scores from another model's: summed over classes, mean over examples' rows."""

    needs: ClassVar = ("forget", "retain")
    intention: ClassVar = "removal"

    target: Model
    retain: float

    def __repr__(self) -> str:
        return f"_Matched(retain={self.retain!r})"

    def __call__(self, now: View, before: View) -> Scalar:
        wanted = replace(before, model=self.target, replies={}, passes=[])
        shares = {"forget": 1 - self.retain, "retain": self.retain}
        parts = [
            share * now.scores(name).over_rows(now.scores(name).each_row(_distance, wanted.scores(name)))
            for name, share in shares.items()
            if share
        ]
        return sum(parts[1:], start=parts[0])


def _distance(_labels: Tensor, now: Tensor, wanted: Tensor) -> Tensor:
    return (now - wanted).square().sum(-1)
