"""The batches of each step: each set is shuffled anew in each of its epochs."""

from __future__ import annotations

import torch

from expunge.core.model import Batch
from expunge.core.request import Example, Request
from expunge.primitives.shuffle import shuffle_forever
from expunge.prune._kinds import Pruner
from expunge.train.passes import Passes


class Batches:
    """Every example of a set is read once before any is read again; no last batch is dropped.

    Where stand-ins have the ids of the forget set, each is in the same step as its forget example. With a pruner each
    pass through the retain set (where there is none, the forget set) reads what the pruner keeps of it.
    """

    passes: Passes | None = None
    """The passes that are pruned."""

    def __init__(
        self, request: Request, batch: int, retain_batch: int, seed: int, prune: tuple[Pruner, int] | None = None
    ) -> None:
        """`prune`: by what, and the steps of a run that reads every record."""
        generator = torch.Generator().manual_seed(seed)
        sets = {"forget": request.forget, "retain": request.retain, "stand_in": request.stand_in}
        self.pairs = _pairs(request)
        independent = [name for name, examples in sets.items() if examples and not (self.pairs and name == "stand_in")]
        self.streams = {name: shuffle_forever(sets[name], generator) for name in independent}
        wanted = {"forget": batch, "retain": retain_batch, "stand_in": batch}
        self.counts = {name: min(wanted[name], len(sets[name])) for name in self.streams}
        if prune:
            name = "retain" if request.retain else "forget"
            epochs = max(1, round(prune[1] * self.counts[name] / len(sets[name])))
            self.passes = Passes(name, sets[name], prune[0], epochs, generator)

    def sets(self) -> dict[str, Batch]:
        """The next step's examples by set."""
        drawn: dict[str, Batch] = {
            name: self.passes.take(self.counts[name])
            if self.passes and self.passes.name == name
            else [next(stream) for _ in range(self.counts[name])]
            for name, stream in self.streams.items()
        }
        return drawn | ({"stand_in": [self.pairs[example.id] for example in drawn["forget"]]} if self.pairs else {})


def _pairs(request: Request) -> dict[str, Example]:
    """The stand-in of each forget example by id; none where the two sets do not have the same ids."""
    others = {example.id: example for example in request.stand_in}
    ids = {example.id for example in request.forget}
    return others if ids == set(others) and len(ids) == len(request.forget) == len(request.stand_in) else {}
