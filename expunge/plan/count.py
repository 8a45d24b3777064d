"""What a pass through the full-size network costs, by running it on tensors that have sizes and no contents.

FLOPs are those of matrix products and convolutions, as torch counts them on the meta device. A pass reads T tokens (or
images), and attention works out p pairs of a token and one that it may look at, so three small passes tell all others:

    cost = a + b T + c p

Memory is added up from every allocation of a pass of the largest shape, through one block and through two.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from expunge.core.model import Batch, Network
from expunge.errors import Refusal
from expunge.internals.allocations import AllAllocations, without_contents
from expunge.models import tree_attention as attention
from expunge.models.language import LanguageModel
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
    terms = [(1, call.tokens, call.pairs)[: len(calls)] for call in calls]
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
    """The pass that reads `examples` in one call; of images, side by side, each is a tree of one node."""
    if not isinstance(paper.network, LanguageModel):
        return Call(len(examples), 1, len(examples))
    trees, nodes, ends = paper.network.layout(examples)
    cut = tuple(pieces(ends, attention.most_on(device))) if ends else ()
    return Call(trees, nodes, sum(example.rows for example in examples), cut)


Bytes = tuple[float, float, float]
"""Kept by a pass for backward, the most that exist at any time of it, and those of its largest tensor."""


def held(paper: Paper, call: Call, opened: Opened | None) -> Bytes:
    """What one pass holds beside the network, with gradients where it is opened."""
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
    with ExitStack() as within:
        within.enter_context(torch.device("meta"))
        adapted = within.enter_context(opened(base)) if opened else base
        for context in (torch.device("cpu"), FakeTensorMode(), torch.set_grad_enabled(opened is not None)):
            within.enter_context(context)
        known = without_contents([*adapted.module.modules(), *base.module.modules()])
        live = within.enter_context(AllAllocations(known))
        states = _states(paper, adapted, call)
        kept = live.alive["all"]
        if opened:
            states.backward(torch.empty_like(states))
        return kept, live.peak["all"], live.largest
