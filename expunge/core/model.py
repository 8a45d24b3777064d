"""Models: whatever answers a batch with predictions; and views, which ask a model only when they are read."""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import torch
from torch import nn

from expunge.core.errors import DataRefused
from expunge.core.predictions import Answers, Predictions, Share
from expunge.core.request import Example

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
            for group in self.batches(examples):
                parts.append(self.predict([examples[k] for k in group]).answers())
                order += group
        return Answers.join(parts, order)


class Speaker(Model):
    """A model that can also write."""

    @abstractmethod
    def generate(self, prompts: Batch, max_new_tokens: int) -> list[str]:
        """The greedy continuation of each example's prompt, in their order."""


@dataclass
class Remembered(Speaker):
    """A model that is asked each question once: every audit of a text reads the same pass.

    Only for a model that does not change meanwhile. Answers are kept by example, generations by example and length.
    """

    model: Model
    known: dict[int, tuple[Example, Answers]] = field(default_factory=dict)
    said: dict[tuple[int, int], tuple[Example, str]] = field(default_factory=dict)

    def predict(self, batch: Batch) -> Predictions:
        return self.model.predict(batch)

    def batches(self, examples: Batch) -> Iterator[list[int]]:
        return self.model.batches(examples)

    def answers(self, examples: Batch) -> Answers:
        new = list({id(e): e for e in examples if id(e) not in self.known}.values())
        if new:
            said = self.model.answers(new)
            # The example is kept beside its answer so that its id() cannot be given to another one.
            self.known |= {id(e): (e, part) for e, part in zip(new, said.parts(), strict=True)}
        return Answers.join([self.known[id(e)][1] for e in examples], list(range(len(examples))))

    def generate(self, prompts: Batch, max_new_tokens: int) -> list[str]:
        assert isinstance(self.model, Speaker)
        new = [e for e in prompts if (id(e), max_new_tokens) not in self.said]
        if new:
            texts = self.model.generate(new, max_new_tokens)
            self.said |= {(id(e), max_new_tokens): (e, text) for e, text in zip(new, texts, strict=True)}
        return [self.said[id(e), max_new_tokens][1] for e in prompts]

    @property
    def speaks(self) -> bool:
        """Whether the model asked can generate."""
        return isinstance(self.model, Speaker)


@dataclass(frozen=True)
class Network(Model):
    """A model whose weights we hold."""

    module: nn.Module

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write a folder that the family's own library loads without expunge."""

    def fork(self, module: nn.Module | None = None) -> Self:
        """A second network over the same weights: its modules are new, its storage is shared.

        Adapters may be put into the fork while this network goes on answering as before. Nothing is copied.
        """
        if module is None:
            memo: dict[int, object] = {id(b): b for b in self.module.buffers()}
            memo |= {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in self.module.parameters()}
            module = copy.deepcopy(self.module, memo)
        return replace(self, module=module)

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
            names = [name, *(other for other in self.together if other != name and other not in self.said)]
            names = sorted(names) if name in self.together else [name]
            if not self.sets.get(name):
                raise DataRefused(f"The objective reads the {name} set, but the request has none. Give one.")
            with torch.set_grad_enabled(self.gradients):
                said = self.model.predict([example for each in names for example in self.sets[each]])
            said = said if self.gradients else said.detach()
            parts = [said] if len(names) == 1 else said.cut([len(self.sets[each]) for each in names])
            for each, part in zip(names, parts, strict=True):
                self.said[each] = part.part_of(self.shares[each]) if each in self.shares else part
        return self.said[name]


Watch = Callable[[dict[str, object]], None]
"""What a method tells while it works: one dictionary for each event."""
