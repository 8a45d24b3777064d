"""How fast this machine does a run's own work: a few seconds of it, on random weights of the same widths.

The method itself is rehearsed on a network that is not narrow, with one example of each set and with more, and so are
reading and writing. What grows with the examples goes by FLOPs; the rest (optimizer, merging, what an edit does to every
number) is what one example takes. Where the whole network has no room or would take too long, networks of one and of two
blocks are timed, and the difference is what a block takes.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from expunge.core.model import Network
from expunge.core.question import LogProbabilities, Text
from expunge.core.request import Request
from expunge.errors import Refusal
from expunge.plan.paper import Paper, sketch
from expunge.plan.plan import Plan, planned, texts
from expunge.primitives.rehearsal import Rehearsal

SECONDS = 2.0
"""What one timed piece of work may take, before a larger one is left out."""
SIZES = (1, 1, 4, 16, 64)
"""Examples of each set in successive pieces; the first warms up."""
NEW = (2, 10)
"""Tokens that are written in the two timed continuations."""


@dataclass
class Clock(Rehearsal):
    """Adds up seconds, each as often as it stands for one of the run."""

    since: float = 0.0
    seconds: float = 0.0

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "times" and "seconds" in vars(self):
            now = time.perf_counter()
            self.seconds, self.since = self.seconds + self.times * (now - self.since), now
        super().__setattr__(name, value)


def seconds(plan: Plan) -> dict[str, float]:
    """Seconds of each part of a run; where this machine cannot be timed, of its FLOPs at the rate given, if any."""
    machine, paper = plan.asked.machine, plan.paper
    if machine.rate is not None:
        return {"all matrix products": plan.flops["total"] / machine.rate}
    if not machine.here:
        return {}  # another machine's pace cannot be taken here
    try:
        method, read, token = _timed(plan)
    except Refusal:  # of a network with few blocks, or of an example alone
        return {"matrix products at this machine's best": plan.flops["total"] / _matmul(paper.dtype, machine.device)}
    hashed = paper.weights * _seconds(lambda: hashlib.sha256(bytes(1 << 24))) / (1 << 24)
    audit = plan.audit[1] + hashed + read(_reading(plan)) + token * sum(note.new for note, _ in plan.read)
    return {
        "load": paper.took + hashed + (paper.packed.seconds() if paper.packed else 0.0),
        "audit before": audit,
        "forget": method(plan.flops["total"] - plan.flops["audits"]),
        "merge and save": sum(plan.disk.values()) * _written(plan.asked.out) + hashed,
        "read back": (0.0 if paper.packed else paper.took) + hashed,
        "audit after": audit,
    }


Pace = Callable[[float], float]
"""Seconds of so many FLOPs."""


def _timed(plan: Plan) -> tuple[Pace, Pace, float]:
    """The pace of the method and of reading, and the seconds of each further token of prompts continued together."""
    paper, asked, found = plan.paper, plan.asked, []
    parts = {size: planned(paper, replace(asked, request=_cut(asked.request, size))) for size in set(SIZES)}
    for part in parts.values():
        vars(part)["costs"] = plan.costs
    for count in _counts(plan):
        network = _random(paper, count, asked.machine.device)
        method, read = (_points(network, parts, work) for work in (_method, _read))
        prompts = [example for example in parts[16].asked.request.forget if getattr(example, "asked", ())]
        few, more = (_seconds(lambda new=new: network.ask(Text(new), prompts), 1) if prompts else 0.0 for new in NEW)
        found.append((method, read, [(0.0, max(0.0, more - few) / (NEW[1] - NEW[0]))]))
    method, read, token = ([_grown(same, paper.blocks) for same in zip(*work)] for work in zip(*found, strict=True))
    return _pace(method), _pace(read), token[0][1]


def _counts(plan: Plan) -> tuple[int, ...]:
    """Blocks of the networks that are timed."""
    paper = plan.paper
    fast = 6 * paper.parameters * 100 < SECONDS * _matmul(paper.dtype, plan.asked.machine.device)
    whole = fast and 8 * paper.weights < plan.asked.machine.room
    return (paper.blocks,) if whole or paper.shape or paper.blocks < 3 else (1, 2)


def _points(network: Network, parts: dict[int, Plan], work: Callable[[Network, Plan], float]) -> list[tuple[float, float]]:
    """FLOPs and seconds of growing pieces of work; FLOPs are those of the whole network."""
    points: list[tuple[float, float]] = []
    for size in SIZES:
        flops = _reading(parts[size]) if work is _read else parts[size].flops["total"] - parts[size].flops["audits"]
        start = time.perf_counter()
        points.append((flops, work(network, parts[size])))
        if time.perf_counter() - start > SECONDS:
            break
    return points


def _method(network: Network, part: Plan) -> float:
    clock = Clock(most=2, since=time.perf_counter())
    part.asked.method.rehearse(network, part.asked.request, clock).plain()
    clock.times = 1.0
    return clock.seconds


def _read(network: Network, part: Plan) -> float:
    every = [text for examples in part.asked.request.sets().values() for one in examples for text in texts(one)]
    return _seconds(lambda: network.ask(LogProbabilities(), every), 1)


def _reading(plan: Plan) -> float:
    """FLOPs of one audit."""
    return plan.flops["audits"] / 2


def _grown(same: tuple[tuple[float, float], ...], blocks: int) -> tuple[float, float]:
    """The point of a network of all blocks, from one, or from those of one and of two blocks."""
    if len(same) == 1:
        return same[0]
    (flops, one), (_, two) = same
    return flops, one + (blocks - 1) * max(0.0, two - one)


def _pace(points: list[tuple[float, float]]) -> Pace:
    """Through what the smallest and the largest piece took."""
    (few, short), (many, long) = points[min(1, len(points) - 1)], points[-1]
    each = max(0.0, long - short) / (many - few) if many > few else long / max(1.0, many)
    return lambda flops: max(0.0, short + each * (flops - few)) if many > few else each * flops or long


def _cut(request: Request, size: int) -> Request:
    own = {name: examples[:size] for name, examples in request.sets().items()}
    named = {name: own.pop(name) for name in ("forget", "retain", "holdout", "stand_in") if name in own}
    return Request(**named, probes=own)


def _random(paper: Paper, count: int, device: str) -> Network:
    """A network of the same widths with `count` blocks; its weights repeat a million random numbers."""
    module: Any = sketch(paper.config, paper.dtype, count).to_empty(device=device)
    tile = torch.empty(1 << 20).uniform_(-0.05, 0.05)
    for p in module.parameters():
        flat = p.detach().view(-1)
        for start in range(0, len(flat), len(tile)):
            flat[start : start + len(tile)] = tile[: len(flat) - start]
    for b in module.buffers():  # frequencies and positions: any that are finite and in range take the same time
        b.copy_(torch.full_like(b, 0.5) if b.is_floating_point() else torch.arange(b.numel()).view(b.shape))
    return replace(paper.network, module=module)


def _matmul(dtype: torch.dtype, device: str) -> float:
    """FLOPs a second of a plain product."""
    a, b = (torch.ones(1024, 1024, dtype=dtype, device=device) for _ in range(2))
    return 2 * 1024**3 / _seconds(lambda: (a @ b)[0, 0].item())


def _seconds(run: Callable[[], Any], times: int = 3) -> float:
    """The median of some runs."""
    took = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        took.append(time.perf_counter() - start)
    return sorted(took)[times // 2]


def _written(out: Path) -> float:
    """Seconds of each byte that is written to disk."""
    data = os.urandom(1 << 24)
    with tempfile.TemporaryFile(dir=next(p for p in out.absolute().parents if p.exists())) as file:

        def run() -> None:
            file.seek(0)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

        return _seconds(run) / len(data)
