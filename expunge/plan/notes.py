"""What a method or an audit asks of a network, noted while it is rehearsed on a narrow one.

The narrow network is asked about a few tokens of each example, and answers for all of its rows; what is noted is the
whole example. Beside passes, the notes hold what the rehearsal shows of memory: tensors as large as the network's weights
or as the parameters that move (copies, gradients, moments, importances), and class scores that exist at one time.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from expunge.core.model import Batch, Network
from expunge.core.predictions import Rows
from expunge.core.question import HiddenStates, Question, Reply, Routes, Scores, Text
from expunge.plan.paper import Paper
from expunge.primitives.rehearsal import Rehearsal

TOKENS, ROWS = 5, 3
"""Tokens of each example that the narrow network reads, and how many of them are labelled."""
MOST = 250
"""Tokens are taken modulo this: what the narrow vocabulary has."""
Kind = Literal["gradients", "original", "adapted", "text"]


@dataclass(frozen=True)
class Note:
    """One pass, or one set of prompts that are continued."""

    kind: Kind
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


@dataclass
class Notes(TorchDispatchMode):
    """The notes of one rehearsal; taken within `with notes:`."""

    paper: Paper
    rehearsal: Rehearsal
    passes: list[Note] = field(default_factory=list)
    peaks: list[dict[str, float]] = field(default_factory=lambda: [{}])
    """The most bytes before the first pass, from each pass to the next, and after the last: of tensors as large as the
    full-size network's weights (`network`), of narrow ones as large as what moves (`moving`), of `scores`."""
    alive: dict[str, float] = field(default_factory=lambda: {"network": 0.0, "moving": 0.0, "scores": 0.0})
    head: dict[str, float] = field(default_factory=dict)
    """Rows of the run that meet the output matrix, there or back, by the kind of the pass before."""
    moving: dict[str, tuple[tuple[int, ...], torch.dtype]] = field(default_factory=dict)
    """Shape and precision of the parameters that move, by name."""
    spent: float = 0.0
    """Seconds within passes."""
    inside: bool = False
    returned: bool = False

    def __post_init__(self) -> None:
        super().__init__()
        narrow, full = (dict(net.module.named_parameters()) for net in (self.paper.narrow, self.paper.network))
        matched = {name: (tuple(p.shape), full[name].numel()) for name, p in narrow.items() if name in full}
        scale = self.paper.parameters / sum(numbers for _, numbers in matched.values())
        self.shapes = {shape: numbers * scale for shape, numbers in matched.values() if len(shape) > 1}
        self.known = {p.untyped_storage()._cdata for p in narrow.values()}
        self.classes = self.paper.classes[0] and tuple(self.paper.narrow.module.get_output_embeddings().weight.shape)

    def note(self, network: Network, question: Question[Any], batch: Batch) -> None:
        """Write down that `network` is asked."""
        moves = {n: p for n, p in network.module.named_parameters() if p.requires_grad}
        gradients = bool(moves) and torch.is_grad_enabled()
        kind: Kind = "gradients" if gradients else "adapted" if moves else "original"
        if gradients and not self.moving:
            self.moving = {name: (tuple(p.shape), p.dtype) for name, p in moves.items()}
            for p in moves.values():
                self._born(p)
        depth = 1.0
        if isinstance(question, HiddenStates | Routes) and question.layer is not None:
            number = question.block(self.paper.blocks) if isinstance(question, HiddenStates) else question.layer
            depth = (number + 1) / self.paper.blocks
        group, self.returned = (self.passes[-1].group if self.passes else 0) + self.returned, False
        times = self.rehearsal.before if kind == "original" else self.rehearsal.times
        new = question.max_new_tokens if isinstance(question, Text) else 0
        self.peaks.append(dict(self.alive))
        self.passes.append(
            Note("text" if new else kind, tuple(batch), depth, times, group, self.rehearsal.shared, new)
        )

    def ask(self, network: Network, question: Question[Reply], batch: Batch, ask: Callable[..., Reply]) -> Reply:
        """The narrow network's answer about all rows of the examples; notes that it was asked."""
        if self.inside or not isinstance(question, Scores | HiddenStates | Routes | Text):
            return ask(question, batch)  # a part of a pass, or a question that asks others
        self.note(network, question, batch)
        if isinstance(question, Text):
            return [str(getattr(example, "answer", "")) for example in batch]  # type: ignore[return-value]
        self.inside, start = True, time.perf_counter()
        try:
            reply: Any = ask(question, [_short(example) for example in batch])
        finally:
            self.inside = False
            self.spent += time.perf_counter() - start
        if reply.states.requires_grad:
            reply.states.register_hook(self._return)
        return self._whole(reply, batch, isinstance(question, Routes))  # type: ignore[return-value]

    def _return(self, _gradient: Tensor) -> None:
        self.returned = True

    def _whole(self, reply: Rows, batch: Batch, every: bool) -> Rows:
        if not all(hasattr(example, "tokens") for example in batch):
            return reply
        each, many = len(reply.labels) // len(batch), self.classes[0] if self.classes else 1 << 62
        labels = [e.tokens[1 if every else e.first :] for e in batch]  # type: ignore[attr-defined]
        index = torch.tensor([k * each + row % each for k, own in enumerate(labels) for row in range(len(own))])
        owner = torch.tensor([k for k, own in enumerate(labels) for _ in own])
        tensors = {name: tensor[index] for name, tensor in reply.tensors().items()}
        tensors["labels"] = torch.tensor([token % many for own in labels for token in own])
        tensors["states"] = tensors["states"] + 0.01 * torch.randn_like(tensors["states"])  # no two rows are equal
        return replace(reply, example=owner, **tensors)

    def __torch_dispatch__(
        self, run: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = run(*args, **(kwargs or {}))
        if self.classes and run.__name__.partition(".")[0] in ("mm", "addmm", "linear") and made.dim() == 2:
            sides = [*made.shape, [a for a in args if isinstance(a, Tensor) and a.dim() == 2][-2].shape[1]]
            if all(side in sides for side in self.classes):
                for side in self.classes:
                    sides.remove(side)
                kind = self.passes[-1].kind
                self.head[kind] = self.head.get(kind, 0.0) + sides[0] * self.rehearsal.times
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._born(tensor)
        return made

    def _born(self, tensor: Tensor) -> None:
        storage, shape = tensor.untyped_storage(), tuple(tensor.shape)
        if storage._cdata in self.known:
            return
        kind, value = "", float(storage.nbytes())
        if self.classes and len(shape) == 2 and shape[1] == self.classes[0]:
            kind = "scores"
        elif shape in self.shapes:
            kind, value = "network", self.shapes[shape] * tensor.element_size()
        elif any(shape == moving for moving, _ in self.moving.values()):
            kind = "moving"
        if kind:
            self.known.add(storage._cdata)
            self.alive[kind] += value
            peak = self.peaks[-1]
            peak[kind] = max(peak.get(kind, 0.0), self.alive[kind])
            weakref.finalize(storage, self._gone, storage._cdata, kind, value)

    def _gone(self, key: int, kind: str, value: float) -> None:
        self.known.discard(key)
        self.alive[kind] -= value


def _short(example: Any) -> Any:
    """The example with few tokens, all of them in the narrow vocabulary; an image as it is."""
    if not hasattr(example, "tokens"):
        return example
    return replace(example, tokens=tuple(token % MOST for token in example.tokens * TOKENS)[-TOKENS:], first=TOKENS - ROWS)


def noting(network: Network, ask: Callable[..., Any], batches: Callable[[Batch], Any]) -> Network:
    """A network of the same family, forks of it included, whose passes go through `ask` and its batches too."""

    class Noting(type(network)):  # type: ignore[misc]
        def ask(self, question: Question[Reply], batch: Batch) -> Reply:
            answer: Reply = ask(self, question, batch, super().ask)
            return answer

        def batches(self, examples: Batch) -> Any:
            return batches(examples)

    Noting.__name__ = type(network).__name__  # refusals name it
    return Noting(**vars(network))  # type: ignore[no-any-return]


