"""How fast this machine does a run's own work: a few seconds of it, on random weights.

A training step, a reading and a writing are timed with the code and the examples of the run, on a network of the same
widths. Where the whole network would take too long, networks of one and of three blocks are timed, and the difference
is what a block costs; where even that is too long, fewer examples are read. Small shapes run far below a machine's
peak, and elementwise work, attention and the optimizer take their time: all of it is in what is timed.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from expunge.core.audit import WhiteBoxAudit
from expunge.core.model import Speaker
from expunge.core.predictions import Predictions, RowScores
from expunge.core.request import Request
from expunge.events import Event, Step
from expunge.internals.gradients import gradient, loss
from expunge.models.decoding import WRITES
from expunge.plan.cost import Call, Widths
from expunge.plan.paper import sketch
from expunge.plan.reads import Part, groups, part_of, shape
from expunge.runtime.cached_model import CachedModel

if TYPE_CHECKING:
    from expunge.core.audit import Audit
    from expunge.core.method import Method
    from expunge.core.model import Batch, Network
    from expunge.methods.finetune import Finetune
    from expunge.plan.course import Course
    from expunge.plan.images import Pictures
    from expunge.plan.paper import Paper
    from expunge.plan.reads import Reads

SECONDS = 10.0
"""What the measurement may take."""
NEW = (2, 10)
"""Tokens that are written in the two timed continuations."""


@dataclass(frozen=True)
class Pace:
    """Seconds of one unit of each kind of work, on this machine."""

    step: float
    """Of a training step of the size of the run's mean one, or of all of an edit's gradients."""
    edit: float
    """Of what an edit does beside, to every number."""
    read: float
    """For each FLOP of reading without gradients."""
    first: float
    """For each FLOP of reading prompts before they are continued."""
    token: float
    """For each further token of prompts continued side by side."""
    hashed: float
    """For each byte that is hashed."""
    written: float
    """For each byte that is written to disk."""
    blocks: tuple[int, ...]
    """Blocks of the networks that were timed."""
    examples: tuple[int, int]
    """Forget and retain examples of the timed step, or those of the gradient that was timed."""
    took: float
    """Seconds of the measurement."""


@dataclass(frozen=True)
class _Times:
    step: float
    edit: float
    read: float
    first: float
    token: float


def pace(
    paper: Paper,
    course: Course,
    widths: Widths | Pictures,
    read: Reads,
    request: Request,
    device: str,
    room: float,
    folder: str,
) -> Pace | None:
    """Time this machine; None where one block does not fit into half of `room` bytes, or into some seconds."""
    start = time.monotonic()
    rate = matmul(paper.dtype, device)
    blocks = _blocks(paper, widths, read, rate, room)
    if not blocks:
        return None
    fit = min(1.0, _allowed(rate) / max(1.0, _cost(paper, widths, read, blocks)))
    group = [request.forget[k] for k in groups(paper.network, request.forget, device)[0]]
    method = course.trained
    most = (method.batch, method.retain_batch) if method else (len(group), 0)
    if 3 * fit * min(each for each in most if each) < 1:  # even one record of each set would take too long
        return None
    few = max(1, int(most[0] * fit)), max(min(1, most[1]), int(most[1] * fit))
    small = _cut(request, *few)
    group = group[: max(1, int(len(group) * fit))]
    timed = [_timed(paper, course, small, few, group, count, device) for count in blocks]
    whole = _Times(*(_grown([getattr(t, f) for t in timed], blocks, paper.blocks) for f in _Times.__annotations__))
    part = (
        _flops_of(paper, read, small, widths, device)
        if method
        else _flops((_gradient(paper, read, group, device),), widths)
    )
    mean = sum(_flops(parts, widths) for parts in read.steps) / len(read.steps)
    prompts = [e for e in group if getattr(e, "prompt_tokens", ())][:WRITES]
    width = max((len(e.prompt_tokens) for e in prompts), default=1)  # type: ignore[attr-defined]
    called = shape(paper.network, group, device)
    return Pace(
        step=whole.step * mean / part,
        edit=whole.edit,
        read=whole.read / (widths.forward(called) + widths.scores(called.rows)),
        first=whole.first / max(1.0, widths.forward(Call(max(1, len(prompts)), width, 0))),
        token=whole.token,
        hashed=_seconds(lambda: hashlib.sha256(bytes(1 << 24))) / (1 << 24),
        written=_write(folder),
        blocks=blocks,
        examples=few,
        took=time.monotonic() - start,
    )


def matmul(dtype: torch.dtype, device: str) -> float:
    """FLOPs a second of a plain product."""
    a, b = (torch.ones(1024, 1024, dtype=dtype, device=device) for _ in range(2))
    return 2 * 1024**3 / _seconds(lambda: (a @ b)[0, 0].item())


def _seconds(run: Callable[[], Any], times: int = 3) -> float:
    took = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        took.append(time.perf_counter() - start)
    return statistics.median(took)


def _write(folder: str) -> float:
    data = os.urandom(1 << 24)
    with tempfile.TemporaryFile(dir=folder) as file:

        def run() -> None:
            file.seek(0)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

        return _seconds(run) / len(data)


def statistics_of(request: Request, audits: Sequence[Audit]) -> float:
    """Seconds of what one audit works out of the answers (intervals, overlaps of words), on answers drawn by chance."""
    remembered = CachedModel(_Nobody())
    texts = [t for examples in request.sets().values() for one in examples for t in (one, *one.alternatives)]
    draw = torch.Generator().manual_seed(0)
    for text in texts:
        rows = torch.zeros(text.rows, dtype=torch.long)
        chances = torch.rand(text.rows, generator=draw).log()
        remembered.known[id(text)] = (text, RowScores(rows, rows, 1, None, log_probs=chances, right=chances > -0.5))
        for audit in audits:
            remembered.said[id(text), int(getattr(audit, "max_new_tokens", 0))] = (text, getattr(text, "answer", ""))
    start = time.monotonic()
    for audit in audits:
        if not isinstance(audit, WhiteBoxAudit):
            audit(remembered, request)
    return time.monotonic() - start


class _Nobody(Speaker):
    """Has said everything already."""

    def predict(self, batch: Batch) -> Predictions:
        raise NotImplementedError

    def batches(self, examples: Batch) -> Iterator[list[int]]:
        raise NotImplementedError

    def generate(self, prompts: Batch, max_new_tokens: int) -> list[str]:
        raise NotImplementedError


# How much can be timed


def _allowed(rate: float) -> float:
    """FLOPs that fit, if small shapes run at a third of the plain product's rate."""
    return SECONDS * rate / 3


def _cost(paper: Paper, widths: Widths | Pictures, read: Reads, blocks: tuple[int, ...]) -> float:
    """FLOPs of the measurement on networks of `blocks` blocks: three steps, two readings and some writing."""
    step = read.steps[0] if read.tokens else read.steps[0][:1]  # of an edit one pass
    inside = 3 * _flops(step, widths)
    outside = 3 * sum(widths.scores(part.head) for part in step)
    for call in read.audit[:1]:
        inside += 3 * widths.forward(call)
        outside += 3 * widths.scores(call.rows)
    return sum((inside - outside) * count / paper.blocks + outside for count in blocks)


def _blocks(paper: Paper, widths: Widths | Pictures, read: Reads, rate: float, room: float) -> tuple[int, ...]:
    """How many blocks the timed networks have: all, or one and three, or one and two; none where that has no room.
    An image classifier is timed whole."""
    outside = 2 * widths.classes * widths.width
    block = max(0, paper.parameters - outside) / paper.blocks
    size = torch.empty((), dtype=paper.dtype).element_size()
    times = size + (24 if widths.head_moves else 0)
    if paper.shape:
        return (paper.blocks,) if paper.parameters * times < room / 2 else ()
    for blocks in ((paper.blocks,), (1, 3), (1, 2)):
        fits = (outside + max(blocks) * block) * times < room / 2
        if fits and max(blocks) <= paper.blocks:
            quick = _cost(paper, widths, read, blocks) < _allowed(rate)
            if quick or blocks == (1, 2) or paper.blocks == 1:
                return blocks
    return ()


def _cut(request: Request, batch: int, retain_batch: int) -> Request:
    retain = request.retain[: max(1, retain_batch)]
    return Request(forget=request.forget[:batch], retain=retain, stand_in=request.stand_in[:batch])


def _flops(parts: tuple[Part, ...], widths: Widths | Pictures) -> float:
    """A step's, as far as they tell how long it takes."""
    total = 0.0
    for part in parts:
        total += sum(widths.forward(c) + widths.backward(c) + widths.adapter(c) for c in part.now)
        total += sum(depth * 3 * widths.forward(c) for _, c, depth in part.hidden)
        total += sum(widths.forward(c) for c in part.before) + widths.scores(part.head)
    return total


def _gradient(paper: Paper, read: Reads, group: list[Any], device: str) -> Part:
    """The timed gradient of an edit."""
    call = shape(paper.network, group, device)
    return Part((call,), (), (), read.asked.head.get("forget", 0.0) * call.rows)


def _flops_of(paper: Paper, read: Reads, request: Request, widths: Widths | Pictures, device: str) -> float:
    """The timed step's."""
    sets = {n: getattr(request, n) for n in ("forget", "retain", "stand_in") if getattr(request, n)}
    known = {id(example) for examples in sets.values() for example in examples}
    return _flops((part_of(paper.network, read.asked, sets, known, device, 1),), widths)


# Timing


def _grown(values: list[float], blocks: tuple[int, ...], all_blocks: int) -> float:
    """The value of a network of all blocks."""
    if len(blocks) == 1:
        return values[0] * all_blocks / blocks[0] if blocks[0] != all_blocks else values[0]
    each = max(0.0, values[1] - values[0]) / (blocks[1] - blocks[0])
    return values[0] + (all_blocks - blocks[0]) * each


def _timed(
    paper: Paper, course: Course, request: Request, few: tuple[int, int], group: list[Any], count: int, device: str
) -> _Times:
    network = _random(paper, count, device)
    if course.trained:
        step, edit = _step(network, course.trained, request, few), 0.0
    else:
        step, edit = _edit(network, course.method, request, group)
    with torch.inference_mode():
        read = _seconds(lambda: network.predict(group).answers(), 2)
    prompts = [e for e in group if getattr(e, "prompt_tokens", ())][:WRITES]
    if not prompts or not isinstance(network, Speaker):
        return _Times(step, edit, read, 0.0, 0.0)
    network.generate(prompts[:1], 1)  # warms up
    few_tokens, more = (_seconds(lambda new=new: network.generate(prompts, new), 1) for new in NEW)
    token = max(0.0, more - few_tokens) / (NEW[1] - NEW[0])
    return _Times(step, edit, read, max(0.0, few_tokens - NEW[0] * token), token)


def _step(network: Network, method: Finetune, request: Request, few: tuple[int, int]) -> float:
    seconds: list[float] = []

    def on_event(event: Event) -> None:
        if isinstance(event, Step):
            seconds.append(event.seconds)

    stop = replace(method.stop, level=None, max_retain_increase=None, every=1 << 30)
    # The first step warms up, and asks the model before, which later steps only remember.
    trial = replace(method, steps=3, stop=stop, batch=few[0], retain_batch=few[1], accumulate=1)
    trial(network, request, on_event)
    return statistics.median(seconds[1:])


def _edit(network: Network, method: Method, request: Request, group: list[Any]) -> tuple[float, float]:
    """Of one gradient; and of an edit that reads two examples, less the gradients of those."""
    few = Request(request.forget[:1], request.retain[:1])
    sets = [few.forget, (*few.retain, *few.forget)]

    def slope(examples: Batch) -> float:
        def run() -> float:
            return next(iter(gradient(network, loss, (1.0, examples)).values())).sum().item()  # waits for a device

        return _seconds(run, 2)

    slope(few.forget)  # warms up
    whole = _seconds(lambda: method(network, few), 1)
    return slope(group), max(0.0, whole - sum(slope(examples) for examples in sets))


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
    module.requires_grad_(False).eval()
    return replace(paper.network, module=module)
