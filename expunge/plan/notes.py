"""What a method or an audit asks of a network, noted while it is rehearsed on a narrow one.

The narrow network is asked about a few tokens of each example, and answers for all of its rows; what is noted is the
whole example. Beside passes, the notes hold what the rehearsal shows of memory: tensors as large as the network's
weights or as the parameters that move (copies, gradients, moments, importances), and class scores alive at one time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from expunge.core.model import Batch, Network
from expunge.core.question import HiddenStates, Question, Reply, Routes, Scores, Text
from expunge.internals.allocations import Allocations
from expunge.internals.examples import Tokenized
from expunge.models.sketch import lengthen, shorten
from expunge.plan.paper import Paper
from expunge.primitives.rehearsal import Rehearsal


@dataclass(frozen=True)
class Note:
    """One pass, or one set of prompts that are continued."""

    kind: Literal["gradients", "original", "adapted", "text"]
    """With gradients; without, of the original or of a network that may move; or continued."""
    examples: Batch
    depth: float
    """The share of the blocks that is gone through."""
    times: float
    """Passes of the run that it stands for."""
    group: int
    """Passes between the same two backward passes have the same number."""
    shared: bool
    """Whether each of several processes reads a share."""
    new: int = 0
    """Tokens that are written."""

    @property
    def rows(self) -> int:
        """Labelled rows."""
        return sum(example.rows for example in self.examples)


class Notes(Allocations):
    """The notes of one rehearsal; taken within `with notes:`."""

    def __init__(self, paper: Paper) -> None:
        narrow, full = (dict(net.module.named_parameters()) for net in (paper.narrow, paper.network))
        super().__init__(narrow.values())
        self.paper, self.rehearsal = paper, Rehearsal()
        self.passes: list[Note] = []
        self.peaks = [self.peak]
        """The most bytes before the first pass, from each pass to the next, and after the last: of tensors as large as
        the full-size network's weights (`network`), of narrow ones as large as what moves (`moving`), of `scores`."""
        self.head = 0.0
        """Rows of the run that meet the output matrix, there or back."""
        self.moving: dict[str, Tensor] = {}
        """The parameters that move, by name."""
        self.spent = 0.0
        """Seconds within passes."""
        matched = {tuple(p.shape): full[name].numel() for name, p in narrow.items() if name in full}
        scale = paper.parameters / sum(full[name].numel() for name in narrow if name in full)
        self._shapes = {shape: numbers * scale for shape, numbers in matched.items() if len(shape) > 1}
        self._inside = self._returned = False
        head: Any = paper.narrow.module.get_output_embeddings() if paper.classes[0] else None
        self.matrix: tuple[int, ...] = tuple(head.weight.shape) if head else ()

    def network(self) -> Network:
        """The narrow network, forks of it included, whose passes are noted and whose batches are those of the run."""
        notes = self

        class Noting(type(self.paper.narrow)):  # type: ignore[misc]
            def ask(self, question: Question[Reply], batch: Batch) -> Reply:
                return cast(Reply, notes.ask(self, question, batch, super().ask))

            def batches(self, examples: Batch) -> Iterator[list[int]]:
                return notes.paper.network.batches(examples)

        Noting.__name__ = type(self.paper.narrow).__name__  # refusals name it
        return Noting(**vars(self.paper.narrow))

    def ask(self, network: Network, question: Question[Reply], batch: Batch, ask: Callable[..., Any]) -> Any:
        """The narrow network's answer about all rows of the examples; notes that it was asked."""
        if self._inside or not isinstance(question, Scores | HiddenStates | Routes | Text):
            return ask(question, batch)  # a part of a pass, or a question that asks others
        self._note(network, question, batch)
        if isinstance(question, Text):
            return [example.answer for example in cast(Sequence[Tokenized], batch)]
        self._inside, start = True, time.perf_counter()
        try:
            reply = ask(question, [shorten(example) for example in batch])
        finally:
            self._inside = False
            self.spent += time.perf_counter() - start
        if reply.states.requires_grad:
            reply.states.register_hook(self._return)
        return reply if self.paper.shape else lengthen(reply, batch, (self.matrix or (1 << 62,))[0])

    def _note(self, network: Network, question: Question[Any], batch: Batch) -> None:
        moves = network.trainable()
        kind = "original" if not moves else "gradients" if torch.is_grad_enabled() else "adapted"
        if kind == "gradients" and not self.moving:
            self.moving = {name: p.detach() for name, p in moves.items()}
            for p in moves.values():
                self.add(p)
        depth, new = 1.0, question.max_new_tokens if isinstance(question, Text) else 0
        if isinstance(question, HiddenStates | Routes) and question.layer is not None:
            number = question.block(self.paper.blocks) if isinstance(question, HiddenStates) else question.layer
            depth = (number + 1) / self.paper.blocks
        group, self._returned = (self.passes[-1].group if self.passes else 0) + self._returned, False
        times = self.rehearsal.before if kind == "original" else self.rehearsal.times
        self.mark()
        kind = "text" if new else kind
        self.passes.append(Note(kind, tuple(batch), depth, times, group, self.rehearsal.shared, new))  # type: ignore[arg-type]

    def mark(self) -> None:
        """Peaks are taken anew from here."""
        self.peak = dict(self.alive)
        self.peaks.append(self.peak)

    def _return(self, _gradient: Tensor) -> None:
        self._returned = True

    def look(self, name: str, given: Any, made: Any) -> None:
        if not self.matrix or name not in ("mm", "addmm", "linear") or made.dim() != 2:
            return
        inner = [tensor for tensor in given if isinstance(tensor, Tensor) and tensor.dim() == 2][-2].shape[1]
        sides = [*made.shape, inner]
        if all(side in sides for side in self.matrix):
            self.head += math.prod(sides) / math.prod(self.matrix) * self.rehearsal.times

    def weigh(self, tensor: Tensor) -> tuple[str, float]:
        shape, size = tuple(tensor.shape), float(tensor.untyped_storage().nbytes())
        if self.matrix and len(shape) == 2 and shape[1] == self.matrix[0]:
            return "scores", size
        if shape in self._shapes:
            return "network", self._shapes[shape] * tensor.element_size()
        return "moving" if any(shape == p.shape for p in self.moving.values()) else "", size
