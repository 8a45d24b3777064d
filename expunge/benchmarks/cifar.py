"""Forgetting pictures: a class, some at random, or class after class, by the metrics of SalUn, SSD and GS-LoRA.

    UA              1 - accuracy on the forgotten training pictures;  RA, TA: accuracy on the retained, on test pictures
    MIA efficacy    share of the forgotten that an attacker calls unseen
    linear probe    share of test pictures of a forgotten class whose class the features below the last layer still tell
    H-mean          2 TA D / (TA + D),   D = the fall of accuracy on test pictures of the forgotten class
    average gap     mean distance of UA, RA, TA and MIA efficacy from a retrained model

Test pictures of a forgotten class stand in a set of their own, never in `test`. A class of which no picture is named
right any more may still be in the features: training the last layer alone does as much. Read the probe beside it.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from expunge.benchmarks._data import Data
from expunge.benchmarks._kinds import RequestBenchmark, Stage
from expunge.benchmarks._numbers import Number
from expunge.benchmarks._picture_numbers import numbers
from expunge.benchmarks._pictures import Drawn, Pictures, class_numbers, probe, read_each, relearn, replay
from expunge.benchmarks._values import Values
from expunge.core.model import Model, Network, network_of
from expunge.core.request import Request
from expunge.errors import DataRefused, UsageRefused
from expunge.events import OnEvent
from expunge.notation.parse import parse
from expunge.primitives.settings import check_least
from expunge.runtime.cached_model import CachedModel
from expunge.select._kinds import Selector


@dataclass(frozen=True)
class Cifar(RequestBenchmark):
    """Pictures of CIFAR-10, CIFAR-100 or of your own folders, and an image classifier that was trained on them."""

    task: Literal["class", "random", "continual"] = "class"
    """class: all pictures of one; random: a share of all; continual: one request after the other, each checked anew."""
    forget_class: str = "0"
    """Classes by name or number. Commas part the requests of continual; a plus joins classes of one: cat+dog,ship."""
    share: float = 0.1
    """Of random: how many of the training pictures are forgotten."""
    select: str = ""
    """Of random: what picks them instead of chance, such as Hardest(count=200), which says how many too."""
    train_pictures: int = 0
    """Most training pictures that are read, drawn at random; 0: all."""
    test_pictures: int = 0
    """Most test pictures; 0: all."""
    replay: int | None = None
    """Retained pictures of each class that a method is given: 4 is few-shot, 0 none at all; None: all there are."""
    no_replay: str = ""
    """Retained classes of which a method is given no picture; what it does to them is measured as 'not replayed'."""
    draw: int = 0
    """Which pictures are drawn."""

    home = "uoft-cs/cifar10"
    axes = (("UA", "forget"), ("accuracy", "test"))

    def __post_init__(self) -> None:
        check_least(self, train_pictures=0, test_pictures=0, draw=0)
        if not 0 < self.share < 1:
            raise UsageRefused(f"The `share` of Cifar must lie between 0 and 1. Got {self.share!r}.")
        if self.replay is not None and self.replay < 0:
            raise UsageRefused(f"The `replay` of Cifar must be at least 0, or None. Got {self.replay!r}.")
        if self.select:
            self._selector()

    def stages(self, data: Data, network: Network) -> list[Stage]:
        drawn = Drawn.read(data, network, (self.train_pictures, self.test_pictures), self.draw)
        if self.task == "random":
            return [self._random(drawn, network)]
        words = [part.split("+") for part in self.forget_class.split(",")]
        groups = words if self.task == "continual" else [[name for group in words for name in group]]
        return [self._deletion(drawn, groups[: k + 1], network) for k in range(len(groups))]

    def _selector(self) -> Selector:
        """What picks the pictures. Raises a `Refusal`."""
        made = parse(self.select)
        if not isinstance(made, Selector) or made.reads_forget:
            raise UsageRefused(
                f"The `select` of Cifar must be a selector that needs no forget set, such as Hardest(count=200). "
                f"Got '{self.select}'."
            )
        if self.task != "random":
            raise UsageRefused(f"The `select` of Cifar is for the task random. Got the task {self.task}.")
        return made

    def _random(self, drawn: Drawn, network: Network) -> Stage:
        """Half of the test pictures are a holdout set, which a method may read; the others are measured."""
        order, half = random.Random(self.draw).sample(drawn.train, len(drawn.train)), len(drawn.test) // 2
        picked = tuple(range(round(self.share * len(order))))
        if self.select:
            picked = self._selector()(network, (), [[picture] for picture in order]).indices
        gone = set(picked)
        sets = {
            "forget": tuple(order[k] for k in picked),
            "retain": tuple(picture for k, picture in enumerate(order) if k not in gone),
            "test": drawn.test[half:],
        }
        request = Request(_refuse_empty(sets)["forget"], sets["retain"], holdout=drawn.test[:half])
        return Stage(request, sets, drawn.train)

    def _deletion(self, drawn: Drawn, groups: list[list[str]], network: Network) -> Stage:
        """The last of these groups is forgotten now, the others were before."""
        numbered = [class_numbers("forget_class", group, network) for group in groups]
        gone, kept = drawn.split(lambda picture: any(picture.label in group for group in numbered))
        now, _ = gone.split(lambda picture: picture.label in numbered[-1])
        missing = class_numbers("no_replay", filter(None, self.no_replay.split(",")), network)
        sets = {"forget": now.train, "forget test": now.test, "retain": kept.train, "test": kept.test}
        request = Request(_refuse_empty(sets)["forget"], replay(kept.train, self.replay, missing, self.draw))
        sets["not replayed"] = tuple(p for p in kept.test if p.label in missing)
        if self.task == "continual":
            each = zip((name for group in groups for name in group), sum(numbered, []), strict=True)
            sets |= {f"test of {name}": tuple(p for p in gone.test if p.label == number) for name, number in each}
        return Stage(request, {name: batch for name, batch in sets.items() if batch}, drawn.train)

    def measure(self, model: Model, data: Data, known: CachedModel, on_event: OnEvent) -> Values:
        if self.select:
            raise UsageRefused(
                "With --select a model picks the pictures itself, so two that are measured as they are would be held "
                "against each other on different ones. Give --method: then the original and all references share them."
            )
        return super().measure(model, data, known, on_event)

    def examine(self, model: Model, stage: Stage, known: CachedModel) -> Values:
        network = network_of(model, "Cifar")
        found = read_each(known, stage.sets)
        if "forget test" in stage.sets:
            found = found.join(probe(network, stage.learnt, "forget test", stage.sets["forget test"]))
        return found.join(relearn(network, stage))

    def numbers(self, values: Values, references: Mapping[str, Values]) -> list[Number]:
        return numbers(values, references)


def _refuse_empty(sets: dict[str, Pictures]) -> dict[str, Pictures]:
    empty = next((name for name, pictures in sets.items() if not pictures), None)
    if empty:
        raise DataRefused(f"Cifar: the set '{empty}' has no picture. Read more of them, or forget fewer classes.")
    return sets
