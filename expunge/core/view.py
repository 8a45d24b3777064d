"""What a model says in a step, asked only when it is read; and what lasts from step to step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from expunge.core.model import Batch, Model
from expunge.core.predictions import Hidden, Predictions, RouterScores, Share
from expunge.core.question import HiddenStates, Question, Routes, RowsReply, Scores
from expunge.errors import DataRefused

Passes = list[tuple[str, Question[Any]]]


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
    """What a model says of this step's examples. A question about a set is asked when its reply is first read, once."""

    model: Model
    sets: Mapping[str, Batch]
    shares: Mapping[str, Share] = field(default_factory=dict)
    gradients: bool = True
    run: Run = field(default_factory=Run)
    """What lasts from step to step."""
    together: tuple[str, ...] = ()
    """Sets whose scores one forward pass reads, as soon as those of one of them are asked for."""
    absent: frozenset[str] = frozenset()
    """Sets of which this process has no example in this step: it reads one to keep pace with the others, to no effect.
    """
    replies: dict[tuple[str, Question[Any]], Any] = field(default_factory=dict)
    """What was asked so far, by set and question."""
    passes: Passes = field(default_factory=list)
    """The set and the question of each forward pass that was made."""

    @property
    def forget(self) -> Predictions:
        """The examples to be forgotten."""
        return self.scores("forget")

    @property
    def retain(self) -> Predictions:
        """The examples to be kept."""
        return self.scores("retain")

    @property
    def stand_in(self) -> Predictions:
        """What to say instead: the forget prompts with other answers."""
        return self.scores("stand_in")

    @property
    def scored(self) -> dict[str, Predictions]:
        """Scores that were asked for so far, by set."""
        return {name: reply for (name, question), reply in self.replies.items() if question == Scores()}

    def scores(self, name: str) -> Predictions:
        """Class scores on the set `name`; without gradients where this view is of the model before."""
        if (name, Scores()) not in self.replies:
            beside = (other for other in self.together if other != name and other in self.sets)
            names = [name, *(other for other in beside if (other, Scores()) not in self.replies)]
            names = sorted(names) if name in self.together else [name]
            said = self._pass(Scores(), name, [example for each in names for example in self.batch(each)])
            parts = [said] if len(names) == 1 else said.cut([len(self.sets[each]) for each in names])
            for each, part in zip(names, parts, strict=True):
                self.replies[each, Scores()] = self._counted(each, part)
        reply: Predictions = self.replies[name, Scores()]
        return reply

    def instead(self, name: str, examples: Batch) -> Predictions:
        """Class scores on `examples`, one in the place of each of the set `name`."""
        key = (f"{name}, instead", Scores())
        if key not in self.replies:
            self.replies[key] = self._counted(name, self._pass(Scores(), key[0], examples))
        reply: Predictions = self.replies[key]
        return reply

    def hidden(self, name: str, layer: int | float) -> Hidden:
        """Hidden states of the set `name` after a block; `layer` as in `HiddenStates`."""
        return self._asked(HiddenStates(layer), name)

    def routes(self, name: str, layer: int) -> RouterScores:
        """What block `layer`'s router says of the set `name`."""
        return self._asked(Routes(layer), name)

    def every(self, question: Question[RowsReply], name: str, examples: Batch | None = None) -> Iterator[RowsReply]:
        """Replies about every example of the run's set `name` (or about `examples` of it), batch by batch, without
        gradients."""
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
        """The part of the whole step's examples of `name`, by weight, that this view holds: 1, but for a part."""
        if name in self.absent:
            return 0.0
        return Share.of(self.sets[name]).examples / self.shares[name].examples if name in self.shares else 1.0

    def _asked(self, question: Question[RowsReply], name: str) -> RowsReply:
        if (name, question) not in self.replies:
            self.replies[name, question] = self._counted(name, self._pass(question, name, self.batch(name)))
        reply: RowsReply = self.replies[name, question]
        return reply

    def _pass(self, question: Question[RowsReply], name: str, examples: Batch) -> RowsReply:
        self.passes.append((name, question))
        with torch.set_grad_enabled(self.gradients):
            reply = self.model.ask(question, examples)
        return reply if self.gradients else reply.detach()

    def _counted(self, name: str, reply: RowsReply) -> RowsReply:
        """A reply about this view's part of a set, counted as a part of the whole step."""
        reply = reply.none() if name in self.absent else reply
        return reply.part_of(self.shares.get(name))
