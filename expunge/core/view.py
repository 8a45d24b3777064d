"""What a model says in a step, asked only when it is read; and what lasts from step to step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch

from expunge.core.errors import DataRefused, ModelRefused
from expunge.core.model import Batch, Model
from expunge.core.predictions import Hidden, Predictions, Share
from expunge.internals.mixtures import Routes, routed, tour
from expunge.runtime.out_of_memory import in_fitting_batches


@dataclass
class Run:
    """What lasts from step to step, and is the same for the model now and before."""

    level: float | None = None
    """The loss, in nats for each row, that the run wants the forget set to reach, where it wants one."""
    step: int = 0
    """Number of the step, from 1; the parts of an accumulated step have the same. 0 outside of a run."""
    whole: Mapping[str, Batch] = field(default_factory=dict)
    """Every example of each set, of which the step's are drawn; what is worked out once, is worked out on these."""
    memory: dict[str, object] = field(default_factory=dict)
    """What objectives keep from step to step, under their `repr`; lives as long as the run. Numbers in dictionaries, or
    what can be worked out anew from `whole`. An objective changes them at the first call of a step, from the steps
    before it, so that all parts of an accumulated step see the same."""


@dataclass
class View:
    """What a model says of this step's examples. A set is run the first time it is read and never again."""

    model: Model
    sets: Mapping[str, Batch]
    shares: Mapping[str, Share] = field(default_factory=dict)
    gradients: bool = True
    run: Run = field(default_factory=Run)
    """What lasts from step to step."""
    together: tuple[str, ...] = ()
    """Sets that one call reads, as soon as one of them is asked for."""
    said: dict[str, Predictions] = field(default_factory=dict)
    """What was asked so far, by set."""
    felt: dict[tuple[str, int | None], Hidden] = field(default_factory=dict)
    """The hidden states that were asked for so far, by set and layer."""
    heard: dict[tuple[str, int], Routes] = field(default_factory=dict)
    """What routers of a mixture of experts said so far, by set and block."""
    swept: list[str] = field(default_factory=list)
    """The set of each pass that `sweep` made."""
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
        for routes in tour(self.model, self.run.whole.get(name) or self.batch(name), tokens):
            self.swept.append(name)
            yield routes

    def sweep(self, name: str) -> Iterator[Predictions]:
        """Predictions on every example of the run's set `name`, a batch at a time, without gradients."""
        examples = self.run.whole.get(name) or self.batch(name)
        read = torch.no_grad()(lambda part: self.model.predict(part).detach())
        for _, said in in_fitting_batches(self.model, examples, self.model.batches(examples), read):
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
