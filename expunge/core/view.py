"""Views: a model's lazy answers about the examples of one step; and the state of a run between steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch

from expunge.core.model import Batch, Model
from expunge.core.predictions import Hidden, Predictions, RouterScores, Share, weights_of
from expunge.core.question import HiddenStates, Question, Routes, RowsReply, Scores
from expunge.errors import DataRefused


@dataclass
class Run:
    """State between steps, shared by the views of the model in training and of the original."""

    level: float | None = None
    """Target loss of the forget set, in nats per row; None where the run has none."""
    step: int = 0
    """Number of the step, from 1, the same for all micro-batches of an accumulated step. 0 outside of a run."""
    whole: Mapping[str, Batch] = field(default_factory=dict)
    """All examples of each set, from which batches are drawn; what is computed once per run is computed on these."""
    memory: dict[str, object] = field(default_factory=dict)
    """State of objectives, by their `repr`. Dictionaries of numbers are saved in checkpoints; anything else must be
    recomputable from `whole`. An objective updates its state at the first call of a step, from the steps before, so
    that all micro-batches of an accumulated step see the same."""


@dataclass
class View:
    """A model's answers about this step's examples. Each is computed when it is first read, and only once."""

    model: Model
    sets: Mapping[str, Batch]
    shares: Mapping[str, Share] = field(default_factory=dict)
    gradients: bool = True
    run: Run = field(default_factory=Run)
    """State between steps."""
    together: tuple[str, ...] = ()
    """Sets that share one forward pass: reading the scores of one of them computes those of all."""
    absent: frozenset[str] = frozenset()
    """Sets of which this process has no example in this step. It still runs a forward pass on one, since FSDP needs
    every rank to take part, and the result counts for nothing."""
    replies: dict[tuple[str, Question[Any]], Any] = field(default_factory=dict)
    """Replies so far, by set and question."""
    passes: list[tuple[str, Question[Any]]] = field(default_factory=list)
    """The set and the question of each forward pass so far."""

    @property
    def forget(self) -> Predictions:
        """Class scores on the forget set."""
        return self.scores("forget")

    @property
    def retain(self) -> Predictions:
        """Class scores on the retain set."""
        return self.scores("retain")

    @property
    def stand_in(self) -> Predictions:
        """Class scores on the stand-in set: the forget prompts with other answers."""
        return self.scores("stand_in")

    @property
    def scores_so_far(self) -> dict[str, Predictions]:
        """Class scores that were computed so far, by set."""
        return {name: reply for (name, question), reply in self.replies.items() if question == Scores()}

    def scores(self, name: str) -> Predictions:
        """Class scores on the set `name`; without gradients where this is a view of the original model."""
        if (name, Scores()) not in self.replies:
            beside = (other for other in self.together if other != name and other in self.sets)
            names = [name, *(other for other in beside if (other, Scores()) not in self.replies)]
            names = sorted(names) if name in self.together else [name]
            predictions = self._pass(Scores(), name, [example for each in names for example in self.batch(each)])
            parts = [predictions] if len(names) == 1 else predictions.cut([len(self.sets[each]) for each in names])
            for each, part in zip(names, parts, strict=True):
                self.replies[each, Scores()] = self._count_as_part(each, part)
        return cast(Predictions, self.replies[name, Scores()])

    def instead(self, name: str, examples: Batch) -> Predictions:
        """Class scores on `examples`, each of which replaces one example of the set `name`."""
        key = (f"{name}, instead", Scores())
        if key not in self.replies:
            reply = replace(self._pass(Scores(), key[0], examples), weights=weights_of(self.batch(name)))
            self.replies[key] = self._count_as_part(name, reply)
        return cast(Predictions, self.replies[key])

    def hidden_states(self, name: str, layer: int | float) -> Hidden:
        """Hidden states of the set `name` after a block; `layer` as in `HiddenStates`."""
        return self._ask_once(HiddenStates(layer), name)

    def router_scores(self, name: str, layer: int) -> RouterScores:
        """Router probabilities of block `layer` on the set `name`."""
        return self._ask_once(Routes(layer), name)

    def every(self, question: Question[RowsReply], name: str, examples: Batch | None = None) -> Iterator[RowsReply]:
        """Replies about all of the run's set `name` (or about `examples`), batch by batch, without gradients."""
        examples = examples or self.run.whole.get(name) or self.batch(name)
        for group in self.model.batches(examples):
            with torch.no_grad():
                reply = self.model.ask(question, [examples[k] for k in group]).detach()
            self.passes.append((name, question))
            yield reply

    def batch(self, name: str) -> Batch:
        """The step's examples of the set `name`."""
        if not self.sets.get(name):
            raise DataRefused(f"The objective reads the {name} set, but the request has none. Give one.")
        return self.sets[name]

    def fraction(self, name: str) -> float:
        """The share of the step's examples of `name`, by weight, that this view holds: 1 but for a micro-batch."""
        if name in self.absent:
            return 0.0
        return Share.of(self.sets[name]).examples / self.shares[name].examples if name in self.shares else 1.0

    def _ask_once(self, question: Question[RowsReply], name: str) -> RowsReply:
        if (name, question) not in self.replies:
            self.replies[name, question] = self._count_as_part(name, self._pass(question, name, self.batch(name)))
        return cast(RowsReply, self.replies[name, question])

    def _pass(self, question: Question[RowsReply], name: str, examples: Batch) -> RowsReply:
        self.passes.append((name, question))
        with torch.set_grad_enabled(self.gradients):
            reply = self.model.ask(question, examples)
        return reply if self.gradients else reply.detach()

    def _count_as_part(self, name: str, reply: RowsReply) -> RowsReply:
        """The reply with its means taken over the whole step, of which this view may hold a part."""
        reply = reply.none() if name in self.absent else reply
        return reply.part_of(self.shares.get(name))
