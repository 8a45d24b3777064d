"""What a pass through the full-size network costs, by running it on tensors that have sizes and no contents.

FLOPs are those of matrix products and convolutions, as torch counts them on the meta device. A pass reads T tokens (or
images), and attention works out p pairs of a token and one that it may look at, so three small passes tell all others:

    cost = a + b T + c p

Memory is added up from every allocation of a pass of the largest shape, through one block and through two.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from expunge.core.model import Network
from expunge.errors import Refusal
from expunge.internals.allocations import AllAllocations, without_contents
from expunge.models.prefix_tree import Layout, Piece
from expunge.models.sketch import read_blank, sketch
from expunge.plan.paper import Paper

Opened = Callable[[Network], AbstractContextManager[Network]]
"""The network as a method takes gradients of it."""


@dataclass(frozen=True)
class Line:
    """A cost by the shape of a pass."""

    base: float = 0.0
    token: float = 0.0
    pair: float = 0.0

    def at(self, call: Layout) -> float:
        """Of one pass."""
        return self.base + self.token * call.tokens + self.pair * call.pairs


def costs(paper: Paper, opened: Opened) -> tuple[dict[str, Line], int]:
    """FLOPs of a pass by its kind (see `Note`), and how many numbers move."""
    with torch.device("meta"), opened(paper.network) as adapted:
        moving = sum(p.numel() for p in adapted.trainable().values())
        # Fake tensors, where a model of its own attention would look into a mask.
        with FakeTensorMode(allow_non_fake_inputs=True) if not paper.shape and not paper.trees else nullcontext():
            found = {"original": _line(paper, paper.network, False), "adapted": _line(paper, adapted, False)}
            return found | ({"gradients": _line(paper, adapted, True)} if moving else {}), moving


def _line(paper: Paper, network: Network, back: bool) -> Line:
    calls = (
        [Layout(n, 1) for n in (1, 2)]
        if paper.shape
        else [Layout(1, n, (Piece(0, n),) if paper.trees else ()) for n in (4, 8, 12)]
    )
    counted = []
    for call in calls:
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(back):
            states = read_blank(network, call, paper.shape)
            if back and states.requires_grad:  # not where the output matrix alone moves
                states.backward(torch.empty_like(states))
        network.module.zero_grad(set_to_none=True)
        counted.append(counter.get_total_flops())
    terms = [(1, call.tokens, call.pairs)[: len(calls)] for call in calls]
    return Line(*np.linalg.solve(terms, counted).round(3).tolist())


Bytes = tuple[float, float, float]
"""Kept by a pass for backward, the most that exist at any time of it, and those of its largest tensor."""


def measure_pass(paper: Paper, call: Layout, opened: Opened | None) -> Bytes:
    """What one pass holds beside the network, with gradients where it is opened."""
    if paper.shape or paper.blocks < 2 or not paper.alike:
        return _pass(paper, call, opened, None)
    try:
        one, two = (_pass(paper, call, opened, count) for count in (1, 2))
    except Refusal:  # an adapter of certain blocks, which a network cut short does not have
        return _pass(paper, call, opened, None)
    kept, peak = (a + (paper.blocks - 1) * max(0.0, b - a) for a, b in zip(one[:2], two[:2], strict=True))
    return kept, peak, two[2]


def _pass(paper: Paper, call: Layout, opened: Opened | None, count: int | None) -> Bytes:
    base = replace(paper.network, module=sketch(paper.config, paper.dtype, count))
    with ExitStack() as within:
        within.enter_context(torch.device("meta"))
        adapted = within.enter_context(opened(base)) if opened else base
        for context in (torch.device("cpu"), FakeTensorMode(), torch.set_grad_enabled(opened is not None)):
            within.enter_context(context)
        known = without_contents([*adapted.module.modules(), *base.module.modules()])
        live = within.enter_context(AllAllocations(known))
        states = read_blank(adapted, call, paper.shape)
        kept = live.alive["all"]
        if states.requires_grad:
            states.backward(torch.empty_like(states))
        return kept, live.peak["all"], live.largest
