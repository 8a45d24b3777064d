"""What a pass through the full-size network costs, by running it on tensors that have sizes and no contents.

FLOPs are those of matrix products and convolutions, as torch counts them on the meta device. A pass reads T tokens (or
images), and attention works out p pairs of a token and one that it may look at, so three small passes tell all others:

    cost = a + b T + c p

Memory is added up from every allocation of a pass of the largest shape, through one block and through two.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from expunge.core.model import Batch, Network
from expunge.core.question import Scores
from expunge.errors import Refusal
from expunge.models import tree_attention as attention
from expunge.models.language import LanguageModel
from expunge.models.prefix_tree import Piece, pairs, pieces
from expunge.plan.paper import Paper, sketch

Opened = Callable[[Network], AbstractContextManager[Network]]
"""The network as a method takes gradients of it."""


@dataclass(frozen=True)
class Call:
    """The shape of one pass."""

    trees: int
    nodes: int
    rows: int
    """Labelled rows."""
    cut: tuple[Piece, ...] = ()
    """The pieces of a tree, whose attention is worked out one after the other."""

    @property
    def tokens(self) -> int:
        """Positions read, those that only fill up a tree included; or images."""
        return self.trees * self.nodes

    @property
    def pairs(self) -> int:
        """Pairs of a position and one that it may look at, as attention works them out."""
        return pairs(self.cut) if self.cut else self.trees * self.nodes**2


@dataclass(frozen=True)
class Line:
    """A cost by the shape of a pass."""

    base: float = 0.0
    token: float = 0.0
    pair: float = 0.0

    def at(self, call: Call) -> float:
        """Of one pass."""
        return self.base + self.token * call.tokens + self.pair * call.pairs


@dataclass(frozen=True)
class Costs:
    """FLOPs of passes."""

    original: Line
    """Of the original, without gradients."""
    adapted: Line
    """Of the network that moves, without gradients."""
    gradients: Line
    """Of the network that moves, there and back."""
    trainable: int
    """Numbers that move."""


def costs(paper: Paper, opened: Opened) -> Costs:
    """What passes through a network and what is made of it cost."""
    with torch.device("meta"), opened(paper.network) as adapted:
        moving = sum(p.numel() for p in adapted.trainable().values())
        # Fake tensors, on the meta device too: of those no model looks into a mask.
        with FakeTensorMode(allow_non_fake_inputs=True):
            passes = ((paper.network, 0), (adapted, 0), (adapted, int(moving > 0)))
            lines = [_line(paper, network, back) for network, back in passes]
    return Costs(*lines, moving)


def _line(paper: Paper, network: Network, back: int) -> Line:
    calls = [Call(n, 1, 0) for n in (1, 2)] if paper.shape else [Call(1, n, 0) for n in (4, 8, 12)]
    counted = []
    for call in calls:
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(bool(back)):
            states = _states(paper, network, call)
            if back:
                states.backward(torch.empty_like(states))
        for parameter in network.module.parameters():
            parameter.grad = None
        counted.append(float(counter.get_total_flops()))
    terms = np.array([[1.0, call.tokens, call.pairs][: len(calls)] for call in calls])
    return Line(*np.linalg.solve(terms, counted).round(3))


def _states(paper: Paper, network: Any, call: Call) -> Tensor:
    """What a pass makes: class scores, or what the output matrix reads."""
    weights = next(network.module.parameters())
    if paper.shape:
        pixels = torch.zeros(call.trees, *paper.shape, dtype=weights.dtype, device=weights.device)
        scores: Tensor = network.module(pixel_values=pixels).logits
        return scores
    given: dict[str, Tensor] = {"input_ids": torch.zeros(call.trees, call.nodes, dtype=torch.long)}
    if call.cut:
        ends = torch.zeros(1, 1, 1, call.nodes, dtype=torch.long)
        attention.known(ends, call.cut)
        given |= {"position_ids": torch.zeros_like(given["input_ids"]), "attention_mask": ends}
    states: Tensor = network.states(**given)[0]
    return states


# Shapes


def shape(paper: Paper, examples: Batch, device: str) -> Call:
    """The pass that reads `examples` in one call: the network's own code lays them out, and is stopped there.

    Images are read side by side, each a tree of one node.
    """
    network = paper.network
    if not isinstance(network, LanguageModel):
        return Call(len(examples), 1, len(examples))
    try:
        replace(network, module=_Watched(), headed=False).ask(Scores(), examples)
    except _Laid as laid:
        cut = pieces(laid.ends, attention.most_on(device)) if laid.ends else []
        return Call(*laid.shape, sum(example.rows for example in examples), tuple(cut))
    raise AssertionError("A pass that reads nothing.")


class _Laid(Exception):  # noqa: N818 (it is no error: it ends a pass)
    def __init__(self, shape: torch.Size, ends: list[int]) -> None:
        self.shape, self.ends = shape, ends


class _Watched(nn.Module):
    """Stands where a network would, and says what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> None:
        raise _Laid(input_ids.shape, attention_mask.flatten().tolist() if attention_mask.dim() == 4 else [])


# Memory


Bytes = tuple[float, float, float]
"""Kept by a pass for backward, the most that exist at any time of it, and those of its largest tensor."""


def bytes_of(paper: Paper, calls: Sequence[Call], opened: Opened | None) -> tuple[float, float]:
    """Bytes that exist beside the network in passes that are open at one time, with gradients where it is opened; and
    those of the largest tensor."""
    found = [_grown(paper, opened, call) for call in calls]
    kept, work = sum(kept for kept, _, _ in found), max(peak - kept for kept, peak, _ in found)
    return kept + work, max(largest for _, _, largest in found)


def _grown(paper: Paper, opened: Opened | None, call: Call) -> Bytes:
    if paper.shape or paper.blocks < 2:
        return _pass(paper, opened, call, None)
    try:
        one, two = (_pass(paper, opened, call, count) for count in (1, 2))
    except Refusal:  # an adapter of certain blocks, which a network cut short does not have
        return _pass(paper, opened, call, None)
    kept, peak = (a + (paper.blocks - 1) * max(0.0, b - a) for a, b in zip(one[:2], two[:2], strict=True))
    return kept, peak, two[2]


def _pass(paper: Paper, opened: Opened | None, call: Call, count: int | None) -> Bytes:
    base = replace(paper.network, module=sketch(paper.config, paper.dtype, count))
    with torch.device("meta"), opened(base) if opened else nullcontext(base) as adapted:
        with torch.device("cpu"), FakeTensorMode(), torch.set_grad_enabled(opened is not None):
            _without_contents([*adapted.module.modules(), *base.module.modules()])
            tensors = [*adapted.module.parameters(), *adapted.module.buffers(), *base.module.parameters()]
            known = [t for each in tensors for t in (each, each.grad) if t is not None]
            with _Live({t.untyped_storage()._cdata for t in known}) as live:
                states = _states(paper, adapted, call)
                kept = live.alive
                if opened:
                    states.backward(torch.empty_like(states))
            return float(kept), float(live.peak), float(live.largest)


def _without_contents(modules: list[nn.Module]) -> None:
    """Meta tensors become tensors that claim to lie on a CPU; gradients are there, as from the second part on."""
    made: dict[int, tuple[Tensor, Tensor]] = {}  # the old one is kept beside, so that its id() is not given away
    for module in modules:
        for table in (module._parameters, module._buffers):
            for name, was in table.items():
                if was is None:
                    continue
                if id(was) not in made:
                    new = torch.empty(was.shape, dtype=was.dtype, device="cpu")
                    if isinstance(was, nn.Parameter):
                        new = nn.Parameter(new, was.requires_grad)
                        new.grad = torch.empty_like(new) if was.requires_grad else None
                    made |= {id(was): (was, new), id(new): (new, new)}
                table[name] = made[id(was)][1]  # type: ignore[assignment]


@dataclass
class _Live(TorchDispatchMode):
    """Adds up the storages that are alive."""

    known: set[int]
    alive: int = 0
    peak: int = 0
    largest: int = 0
    sizes: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self, run: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = run(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
            if storage is not None and storage._cdata not in self.known and storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                self.alive += storage.nbytes()
                self.peak = max(self.peak, self.alive)
                self.largest = max(self.largest, storage.nbytes())
                weakref.finalize(storage, self._gone, storage._cdata)
        return made

    def _gone(self, key: int) -> None:
        self.alive -= self.sizes.pop(key)
