"""What a pass through the full-size network costs, by running it on tensors that have sizes and no contents.

FLOPs are those of matrix products and convolutions, as torch counts them on the meta device. A pass reads T tokens (or
images), and attention works out p pairs of a token and one that it may look at, so three small passes tell all others:

    cost = a + b T + c p

Memory is added up from every allocation of a pass of the largest shape, through one block and through two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from expunge.core.model import Batch, Network
from expunge.core.question import Scores
from expunge.errors import Refusal
from expunge.internals.allocations import AllAllocations, without_contents
from expunge.models import tree_attention as attention
from expunge.models.prefix_tree import Piece, pairs, pieces
from expunge.models.sketch import sketch
from expunge.plan.paper import Paper

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


def costs(paper: Paper, opened: Opened) -> tuple[dict[str, Line], int]:
    """FLOPs of a pass by its kind (see `Note`), and how many numbers move."""
    with torch.device("meta"), opened(paper.network) as adapted:
        moving = sum(p.numel() for p in adapted.trainable().values())
        # Fake tensors, on the meta device too: of those no model looks into a mask.
        with FakeTensorMode(allow_non_fake_inputs=True):
            found = {"original": _line(paper, paper.network, False), "adapted": _line(paper, adapted, False)}
            return found | ({"gradients": _line(paper, adapted, True)} if moving else {}), moving


def _line(paper: Paper, network: Network, back: bool) -> Line:
    calls = [Call(n, 1, 0) for n in (1, 2)] if paper.shape else [Call(1, n, 0) for n in (4, 8, 12)]
    counted = []
    for call in calls:
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(back):
            states = _states(paper, network, call)
            if back:
                states.backward(torch.empty_like(states))
        network.module.zero_grad(set_to_none=True)
        counted.append(counter.get_total_flops())
    terms = [[1, call.tokens, call.pairs][: len(calls)] for call in calls]
    return Line(*np.linalg.solve(terms, counted).round(3).tolist())


def _states(paper: Paper, network: Any, call: Call) -> Tensor:
    """What a pass makes: class scores, or what the output matrix reads."""
    weights = next(network.module.parameters())
    if paper.shape:
        pixels = torch.zeros(call.trees, *paper.shape, dtype=weights.dtype, device=weights.device)
        return network.module(pixel_values=pixels).logits  # type: ignore[no-any-return]
    given: dict[str, Tensor] = {"input_ids": torch.zeros(call.trees, call.nodes, dtype=torch.long)}
    if call.cut:
        ends = torch.zeros(1, 1, 1, call.nodes, dtype=torch.long)
        attention.known(ends, call.cut)
        given |= {"position_ids": torch.zeros_like(given["input_ids"]), "attention_mask": ends}
    return network.states(**given)[0]  # type: ignore[no-any-return]


def shape(paper: Paper, examples: Batch, device: str) -> Call:
    """The pass that reads `examples` in one call: the network's own code lays texts out, and is stopped there."""
    if paper.shape:
        return Call(len(examples), 1, len(examples))
    try:
        replace(paper.network, module=_Stop(), headed=False).ask(Scores(), examples)
    except _Laid as laid:
        cut = pieces(laid.ends, attention.most_on(device)) if laid.ends else []
        return Call(*laid.shape, sum(example.rows for example in examples), tuple(cut))
    raise AssertionError("A pass that reads nothing.")


class _Laid(Exception):  # noqa: N818 (it is no error: it ends a pass)
    def __init__(self, shape: torch.Size, ends: list[int]) -> None:
        self.shape, self.ends = shape, ends


class _Stop(nn.Module):
    """Stands where a network would, and says what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> None:
        raise _Laid(input_ids.shape, attention_mask.flatten().tolist() if attention_mask.dim() == 4 else [])


Bytes = tuple[float, float, float]
"""Kept by a pass for backward, the most that exist at any time of it, and those of its largest tensor."""


def bytes_of(paper: Paper, calls: Sequence[Call], opened: Opened | None) -> tuple[float, float]:
    """Bytes that exist beside the network in passes that are open at one time, with gradients where it is opened; and
    those of the largest tensor."""
    found = [held(paper, call, opened) for call in calls]
    kept, work = sum(kept for kept, _, _ in found), max(peak - kept for kept, peak, _ in found)
    return kept + work, max(largest for _, _, largest in found)


def held(paper: Paper, call: Call, opened: Opened | None) -> Bytes:
    """What one pass holds."""
    if paper.shape or paper.blocks < 2:
        return _pass(paper, call, opened, None)
    try:
        one, two = (_pass(paper, call, opened, count) for count in (1, 2))
    except Refusal:  # an adapter of certain blocks, which a network cut short does not have
        return _pass(paper, call, opened, None)
    kept, peak = (a + (paper.blocks - 1) * max(0.0, b - a) for a, b in zip(one[:2], two[:2], strict=True))
    return kept, peak, two[2]


def _pass(paper: Paper, call: Call, opened: Opened | None, count: int | None) -> Bytes:
    base = replace(paper.network, module=sketch(paper.config, paper.dtype, count))
    with torch.device("meta"), opened(base) if opened else nullcontext(base) as adapted:
        with torch.device("cpu"), FakeTensorMode(), torch.set_grad_enabled(opened is not None):
            known = without_contents([*adapted.module.modules(), *base.module.modules()])
            with AllAllocations(known) as live:
                states = _states(paper, adapted, call)
                kept = live.alive.get("all", 0.0)
                if opened:
                    states.backward(torch.empty_like(states))
            return kept, live.peak.get("all", 0.0), live.largest
