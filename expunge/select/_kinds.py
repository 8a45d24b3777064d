"""What all selectors are: from a network, a forget set and a pool of records to some of the pool."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, final

import numpy as np
import torch

from expunge.core.model import Batch, Network
from expunge.core.question import HiddenStates, LogProbabilities
from expunge.core.request import Request
from expunge.errors import DataRefused, UsageRefused
from expunge.events import Note, OnEvent, ignore_event
from expunge.primitives.out_of_memory import in_fitting_batches

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped
    from torch import Tensor

Item = TypeVar("Item")
Pool = Sequence[Batch]
"""Records, each as the examples that it is read as: one, but for a conversation or a long text."""
AT_ONCE = 256
"""Records of the forget set that are compared with the pool together."""


@dataclass(frozen=True)
class Selection:
    """The records of a pool that were chosen."""

    indices: tuple[int, ...]
    """Their places in the pool, in the selector's order."""
    weights: tuple[float, ...] = ()
    """How many records of the pool each stands for: they add up to about the size of the pool. Empty where each counts
    once."""
    note: str = ""
    """What is to be known of the choice, in a sentence."""


class Selector(ABC):
    """A function from a network, a forget set and a pool to some records of the pool. Nothing is changed."""

    order: ClassVar[str]
    """In which order they are chosen, in words."""

    @property
    @abstractmethod
    def reads_forget(self) -> bool:
        """Whether the choice depends on the forget set."""

    @property
    @abstractmethod
    def quota(self) -> int:
        """How many records it chooses."""

    @abstractmethod
    def choose(self, network: Network, forget: Batch, pool: Pool) -> Selection:
        """The selection from a pool that has enough records."""

    @final
    def __call__(self, network: Network, forget: Batch, pool: Pool) -> Selection:
        """The selection. Raises `DataRefused` where the pool has fewer records than are wanted."""
        if len(pool) < self.quota:
            raise DataRefused(
                f"{type(self).__name__} is to choose {self.quota} records, and the pool has {len(pool)} that it may "
                f"choose from. Give a larger pool, or ask for fewer."
            )
        return self.choose(network, forget, pool)

    @final
    def narrow(self, network: Network, request: Request, on_event: OnEvent = ignore_event) -> Request:
        """The request with the records of its retain set that are chosen, with their weights where they have any."""
        pool = request.retain
        made = self(network, request.forget, [[example] for example in pool])
        weights = [weight * len(made.indices) / len(pool) for weight in made.weights] or [1.0] * len(made.indices)
        chosen: list[Any] = [pool[k] for k in made.indices]
        retain = tuple(replace(e, weight=e.weight * w) for e, w in zip(chosen, weights, strict=True))
        by_weight = ", counted by their weights" if made.weights else ""
        on_event(Note(f"Training reads {len(retain)} of {len(pool)} retain records{by_weight}: {self!r}"))
        if made.note:
            on_event(Note(made.note))
        return replace(request, retain=retain)


class LikenessSelector(Selector):
    """Chooses by how much each record of the pool is like each forget record.

    The first of each is chosen, then the second of each, ...; within such a round the most alike come first. So no
    forget record goes without because another has many.
    """

    count: int

    @abstractmethod
    def likeness(self, network: Network, forget: Batch, pool: Pool) -> Iterator[Float[Tensor, "forget records"]]:
        """How much each record of the pool is like each forget record, some forget records at a time."""

    @property
    def reads_forget(self) -> bool:
        return True

    @property
    def quota(self) -> int:
        return self.count

    @final
    def choose(self, network: Network, forget: Batch, pool: Pool) -> Selection:
        return Selection(take_turns(self.likeness(network, forget, pool), self.count))


def flatten(pool: Sequence[Sequence[Item]]) -> list[Item]:
    """All examples of all records, in order."""
    return [example for record in pool for example in record]


def mean_by_record(values: Shaped[Tensor, " examples *rest"], pool: Pool) -> Shaped[Tensor, " records *rest"]:
    """The mean over the examples of each record."""
    return torch.stack([part.mean(0) for part in values.split([len(record) for record in pool])])


def losses_by_record(network: Network, pool: Pool) -> Float[Tensor, " records"]:
    """The loss of each record in nats, a mean over the rows of its examples."""
    said = network.ask(LogProbabilities(), flatten(pool))
    return mean_by_record(-said.mean(said.log_probs.double()).cpu(), pool)


def check_layer(plugin: object) -> None:
    """Refuse a `layer` that `HiddenStates` cannot mean."""
    layer = vars(plugin)["layer"]
    if not (isinstance(layer, int) and layer >= 0) and not 0 <= layer < 1:
        raise UsageRefused(
            f"The `layer` of {type(plugin).__name__} must be a block number, or a share of the depth below 1.0. "
            f"Got {layer!r}."
        )


def read_states(network: Network, examples: Batch, layer: int | float) -> Float[Tensor, "examples width"]:
    """The mean hidden state over each example's rows after a block, on the CPU."""

    def read(some: Batch) -> Tensor:
        hidden = network.ask(HiddenStates(layer), some)
        return torch.stack([rows.mean(0) for rows in hidden.split(hidden.states.float())]).cpu()

    with torch.no_grad():
        made = in_fitting_batches(network.module, examples, network.batches(examples), read)
        found = {place: mean for group, means in made for place, mean in zip(group, means, strict=True)}
    return torch.stack([found[k] for k in range(len(examples))])


def take_turns(blocks: Iterator[Tensor], count: int) -> tuple[int, ...]:
    """The `count` records with the best place on any forget record's list, those of one place by their likeness, of
    which each block holds some lines [forget, records]."""
    turn, alike = np.array([]), np.array([])
    for block in blocks:
        place = block.argsort(dim=1, descending=True, stable=True).argsort(dim=1).amin(0).numpy()
        best = block.amax(0).numpy()
        turn, alike = (place, best) if not len(turn) else (np.minimum(turn, place), np.maximum(alike, best))
    return tuple(np.lexsort((-alike, turn))[:count].tolist())


def cosines(
    forget: Float[Tensor, "forget width"], records: Float[Tensor, "records width"]
) -> Iterator[Float[Tensor, "some records"]]:
    """Cosines of each forget record with each record of the pool, some forget records at a time."""
    ours, theirs = (torch.nn.functional.normalize(each, dim=1) for each in (forget, records))
    for some in ours.split(AT_ONCE):
        yield some @ theirs.T
