"""How fast this machine does a run's own work: some seconds of it, on random weights.

The method itself is rehearsed on a network that is not narrow, with one example of each set and with more, and so are
reading and writing. What grows with the examples goes by FLOPs; the rest (optimizer, merging, what an edit does to each
number) is what one example takes.
"""

from __future__ import annotations

import hashlib
import os
import time
import timeit
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from statistics import median
from tempfile import TemporaryFile
from typing import IO, Any

import torch

from expunge.core.model import Network
from expunge.core.question import LogProbabilities, Text
from expunge.core.request import Request
from expunge.errors import DataRefused
from expunge.internals.examples import Tokenized
from expunge.models.sketch import sketch
from expunge.plan.plan import Plan
from expunge.primitives.rehearsal import Clock
from expunge.run.unlearn import every_text

MOST = 2e9
"""Numbers of a network that is timed at the most."""
SECONDS = 2.0
"""What one timed piece of work may take, before a larger one is left out."""
SIZES = (1, 1, 4, 16, 64)
"""Examples of each set in successive pieces; the first warms up."""
NEW = (2, 10)
"""Tokens that are written in the two timed continuations."""


def seconds(plan: Plan) -> dict[str, float]:
    """Seconds of each part of a run; none for another machine, or a large network, where no rate is given."""
    machine, paper = plan.machine, plan.paper
    if machine.rate is not None:
        return {"all matrix products": plan.flops["total"] / machine.rate}
    if not machine.here or paper.parameters > MOST or 4 * paper.weights > machine.room:
        return {}
    network, parts = _random(plan), {size: replace(plan, request=_cut(plan.request, size)) for size in SIZES}
    for part in parts.values():
        vars(part)["costs"] = plan.costs
    forget = _pace(plan, parts, partial(_method, network), lambda made: made.flops["total"] - made.flops["audits"])
    reading = _pace(plan, parts, partial(_read, network), lambda made: made.audit_flops)
    prompts = [
        example for example in plan.request.forget[:16] if isinstance(example, Tokenized) and example.prompt_tokens
    ]
    few, more = (_seconds(partial(network.ask, Text(new), prompts), 1) if prompts else 0.0 for new in NEW)
    data = os.urandom(1 << 24)
    hashed = paper.weights * _seconds(lambda: hashlib.sha256(data)) / len(data)
    with TemporaryFile(dir=next(p for p in plan.out.absolute().parents if p.exists())) as file:
        written = _seconds(partial(_write, file, data)) / len(data)
    token = max(0.0, more - few) / (NEW[1] - NEW[0]) * sum(note.new for note, _ in plan.reads)
    audit = plan.audit[1] + hashed + reading + token
    load = (0.0 if paper.packed else paper.took) + hashed
    return {
        "load": load + (paper.packed.seconds() + paper.took if paper.packed else 0.0),
        "audit before": audit,
        "forget": forget,
        "merge and save": sum(plan.disk.values()) * written + hashed,
        "read back": load,
        "audit after": audit,
    }


def _write(file: IO[bytes], data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _pace(plan: Plan, parts: dict[int, Plan], work: Callable[[Plan], float], flops: Callable[[Plan], float]) -> float:
    """Seconds of the run, on a line through a small piece of its work and the largest that was timed."""
    took: list[tuple[int, float]] = []
    for size in SIZES:
        start = time.perf_counter()
        with suppress(DataRefused):  # fewer examples than the method takes
            took.append((size, work(parts[size])))
        if time.perf_counter() - start > SECONDS:
            break
    (less, little), (more, much) = took[len(took) > 2], took[-1]  # the first warms up
    small, large = flops(parts[less]), flops(parts[more])
    each = max(0.0, much - little) / (large - small) if large > small else 0.0
    return max(0.0, much + each * (flops(plan) - large))


def _method(network: Network, part: Plan) -> float:
    clock = Clock(most=2)
    part.method.rehearse(network, part.request, clock).plain()
    clock.stop()
    return clock.seconds


def _read(network: Network, part: Plan) -> float:
    every = every_text(part.request)
    return _seconds(lambda: network.ask(LogProbabilities(), every), 1)


def _cut(request: Request, size: int) -> Request:
    own = {name: examples[:size] for name, examples in request.sets().items()}
    named: dict[str, Any] = {name: own.pop(name) for name in ("forget", "retain", "holdout", "stand_in") if name in own}
    return Request(**named, probes=own)


def _random(plan: Plan) -> Network:
    """A network as large as the model's, with small random weights."""
    module: Any = sketch(plan.paper.config, plan.paper.dtype).to_empty(device=plan.machine.device)
    for p in module.parameters():
        p.detach().uniform_(-0.05, 0.05)
    for b in module.buffers():  # frequencies and positions: any that are finite and in range take the same time
        b.copy_(torch.full_like(b, 0.5) if b.is_floating_point() else torch.arange(b.numel()).view(b.shape))
    return plan.paper.network.fork(module)


def _seconds(run: Callable[[], Any], times: int = 3) -> float:
    return median(timeit.repeat(run, number=1, repeat=times))
