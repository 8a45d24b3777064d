"""Models: whatever answers a batch with predictions; and views, which ask a model only when they are read."""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Self, TypeVar

import torch
from torch import nn

from expunge.core.errors import DataRefused, ModelRefused
from expunge.core.experts import Routes, routed, tour
from expunge.core.predictions import Answers, Hidden, Predictions, Share
from expunge.core.request import Example
from expunge.core.room import fitted
from expunge.core.rows import Head

Batch = Sequence[Example]


class Model(ABC):
    """Anything that answers a batch: a network, a guarded network, an ensemble of shards."""

    @abstractmethod
    def predict(self, batch: Batch) -> Predictions:
        """A row for each thing asked, in the order of the batch and, within an example, of its rows."""

    @abstractmethod
    def batches(self, examples: Batch) -> Iterator[list[int]]:
        """Indices of `examples` in groups that fit one call of `predict`."""

    def answers(self, examples: Batch) -> Answers:
        """What an audit sees of `examples`: read in batches, without gradients, returned in their order."""
        parts: list[Answers] = []
        order: list[int] = []
        with torch.inference_mode():
            read = fitted(self, examples, self.batches(examples), lambda part: self.predict(part).answers())
            for group, said in read:
                parts.append(said)
                order += group
        return Answers.join(parts, order)


class Speaker(Model):
    """A model that can also write."""

    @abstractmethod
    def generate(self, prompts: Batch, max_new_tokens: int, sure: Sequence[int] = ()) -> list[str]:
        """The greedy continuation of each example's prompt, in their order.

        `sure`: how many of the first rows of each example's own answer the model is known to write anyway.
        """


@dataclass(frozen=True)
class Network(Model):
    """A model whose weights we hold."""

    module: nn.Module

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write a folder that the family's own library loads without expunge."""

    @abstractmethod
    def hidden(self, batch: Batch, layer: int | None = None) -> Hidden:
        """The state after block `layer` (from 0; None: the first quarter's last) of each row; nothing above it runs."""

    def fork(self, module: nn.Module | None = None) -> Self:
        """A second network over the same weights: its modules are new, its storage is shared.

        Adapters may be put into the fork while this network goes on answering as before. Nothing is copied.
        """
        if module is None:
            memo: dict[int, object] = {id(b): b for b in self.module.buffers()}
            memo |= {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in self.module.parameters()}
            module = copy.deepcopy(self.module, memo)
        return replace(self, module=module)

    @abstractmethod
    def head(self) -> Head | None:
        """The output matrix that reads the states of `predict`; None where those are the class scores."""

    @abstractmethod
    def settings(self) -> str:
        """All beside the weights that its answers depend on: configuration, tokenizer, how batches are read."""

    def identity(self) -> bytes:
        """SHA-256 of everything that its answers depend on but the question: weights, settings, device, code."""
        parts = (self.fingerprint(), self.settings(), self.device.type, code())
        return hashlib.sha256("\n".join(parts).encode()).digest()

    def fingerprint(self) -> str:
        """SHA-256 over names, types, shapes and bytes of all weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.module.state_dict().items()):
            digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.module.parameters()).device

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that may move, by name."""
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}


@cache
def code() -> str:
    """SHA-256 of the code that turns weights and examples into answers, ours and the libraries' versions."""
    package = Path(__file__).parent.parent
    files = sorted(path for folder in ("core", "models", "adapters") for path in (package / folder).glob("*.py"))
    digest = hashlib.sha256(f"{torch.__version__} {version('transformers')}".encode())
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()


@dataclass
class View:
    """What a model says of this step's examples. A set is run the first time it is read and never again."""

    model: Model
    sets: Mapping[str, Batch]
    shares: Mapping[str, Share] = field(default_factory=dict)
    gradients: bool = True
    level: float | None = None
    """The loss, in nats for each row, that the run wants the forget set to reach, where it wants one."""
    together: tuple[str, ...] = ()
    """Sets that one call reads, as soon as one of them is asked for."""
    said: dict[str, Predictions] = field(default_factory=dict)
    """What was asked so far, by set."""
    felt: dict[tuple[str, int | None], Hidden] = field(default_factory=dict)
    """The hidden states that were asked for so far, by set and layer."""
    heard: dict[tuple[str, int], Routes] = field(default_factory=dict)
    """What routers of a mixture of experts said so far, by set and block."""
    step: int = 0
    """Number of the step, from 1; the parts of an accumulated step have the same. 0 outside of a run."""
    whole: Mapping[str, Batch] = field(default_factory=dict)
    """Every example of each set, of which the step's are drawn; what is worked out once, is worked out on these."""
    swept: list[str] = field(default_factory=list)
    """The set of each pass that `sweep` made."""
    memory: dict[str, object] = field(default_factory=dict)
    """What objectives keep from step to step, under their `repr`; lives as long as the run. Numbers in dictionaries, or
    what can be worked out anew from `whole`. An objective changes them at the first call of a step, from the steps
    before it, so that all parts of an accumulated step see the same."""
    absent: frozenset[str] = frozenset()
    """Sets of which this process has no example in this step: it reads one to keep pace with the others, to no effect.
    """

    @property
    def forget(self) -> Predictions:
        """The examples to be forgotten."""
        return self.ask("forget")

    @property
    def retain(self) -> Predictions:
        """The examples to be kept."""
        return self.ask("retain")

    @property
    def stand_in(self) -> Predictions:
        """What to say instead: the forget prompts with other answers."""
        return self.ask("stand_in")

    def ask(self, name: str) -> Predictions:
        """Predictions on the set `name`; without gradients where this view is of the model before."""
        if name not in self.said:
            beside = (other for other in self.together if other != name and other in self.sets)
            names = [name, *(other for other in beside if other not in self.said)]
            names = sorted(names) if name in self.together else [name]
            with torch.set_grad_enabled(self.gradients):
                said = self.model.predict([example for each in names for example in self.batch(each)])
            said = said if self.gradients else said.detach()
            parts = [said] if len(names) == 1 else said.cut([len(self.sets[each]) for each in names])
            for each, part in zip(names, parts, strict=True):
                part = _none(part) if each in self.absent else part
                self.said[each] = part.part_of(self.shares[each]) if each in self.shares else part
        return self.said[name]

    def instead(self, name: str, examples: Batch) -> Predictions:
        """Predictions on `examples`, one in place of each of the set `name`, counted alone (see `fraction`)."""
        key = f"{name}, instead"
        if key not in self.said:
            with torch.set_grad_enabled(self.gradients):
                said = self.model.predict(examples)
            self.said[key] = said if self.gradients else said.detach()
        return self.said[key]

    def hidden(self, name: str, layer: int | None = None) -> Hidden:
        """Hidden states of the set `name` after block `layer`; without gradients where this view is of before."""
        if (name, layer) not in self.felt:
            read = getattr(self.model, "hidden", None)
            if read is None:
                raise ModelRefused(f"{type(self.model).__name__} has no hidden states that can be read.")
            with torch.set_grad_enabled(self.gradients):
                felt = read(self.batch(name), layer)
            felt = _none(felt) if name in self.absent else felt
            self.felt[name, layer] = replace(felt, share=self.shares.get(name))
        return self.felt[name, layer]

    def routes(self, name: str, layer: int) -> Routes:
        """What block `layer`'s router says of the set `name`; without gradients where this view is of before."""
        if (name, layer) not in self.heard:
            with torch.set_grad_enabled(self.gradients):
                routes = routed(self.model, self.batch(name), layer)
            routes = routes.none() if name in self.absent else routes
            self.heard[name, layer] = replace(routes, share=self.shares.get(name))
        return self.heard[name, layer]

    def tour(self, name: str, tokens: int | None = None) -> Iterator[Routes]:
        """What all routers say of the run's set `name`, or of its first `tokens`: a batch at a time, no gradients."""
        for routes in tour(self.model, self.whole.get(name) or self.batch(name), tokens):
            self.swept.append(name)
            yield routes

    def sweep(self, name: str) -> Iterator[Predictions]:
        """Predictions on every example of the run's set `name`, a batch at a time, without gradients."""
        examples = self.whole.get(name) or self.batch(name)
        read = torch.no_grad()(lambda part: self.model.predict(part).detach())
        for _, said in fitted(self.model, examples, self.model.batches(examples), read):
            self.swept.append(name)
            yield said

    def batch(self, name: str) -> Batch:
        """The step's examples of the set `name`."""
        if not self.sets.get(name):
            raise DataRefused(f"The objective reads the {name} set, but the request has none. Give one.")
        return self.sets[name]

    def fraction(self, name: str) -> float:
        """The part of the whole step's examples of `name` that this view holds: 1, but for an accumulated step."""
        if name in self.absent:
            return 0.0
        return len(self.sets[name]) / self.shares[name].examples if name in self.shares else 1.0


Read = TypeVar("Read", Predictions, Hidden)


def _none(said: Read) -> Read:
    """No row of what was said; gradients flow back through all of it, as zeros."""
    return replace(said, labels=said.labels[:0], example=said.example[:0], examples=0, states=said.states[:0])


Watch = Callable[[dict[str, object]], None]
"""What a method tells while it works: one dictionary for each event."""
