"""What a run will cost, before anything of it runs: tokens, FLOPs, memory, disk, time; and whether it can be done."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from expunge.core.request import Request
from expunge.errors import EnvironmentRefused, ModelRefused, UsageRefused
from expunge.models.language import LanguageModel
from expunge.notation.parse import write
from expunge.plan.cost import Call, Flops, Widths, widths
from expunge.plan.course import Course, course_of
from expunge.plan.edits import edit_reads, met
from expunge.plan.images import Pictures, pictures
from expunge.plan.machine import DTYPES, Machine, held, remedy, room_of
from expunge.plan.memory import Memory, disk, memory
from expunge.plan.pace import Pace, matmul, pace, statistics_of
from expunge.plan.paper import Paper, opened
from expunge.plan.reads import Reads, Writing, ask, reads
from expunge.run.choose import audits_of, method_of
from expunge.run.families import family_name
from expunge.run.files import check_out

if TYPE_CHECKING:
    from expunge.core.audit import Audit
    from expunge.core.method import Method
    from expunge.plan.paper import Readable
    from expunge.run.job import Job

HEADROOM = 1.1
"""A disk must have this many times what is written, as the run itself asks for."""


@dataclass(frozen=True)
class Plan:
    """The answer."""

    paper: Paper
    course: Course
    machine: Machine
    widths: Widths | Pictures
    read: Reads
    flops: Flops
    memory: Memory
    room: float
    """Bytes that each device has."""
    disk: dict[str, float]
    free: float
    """Bytes that the disk has."""
    seconds: dict[str, float]
    """By the parts of a run; empty where no rate is known."""
    pace: Pace | None

    @property
    def short(self) -> str:
        """What there is too little of, or an empty text."""
        if self.memory.peak > self.room:
            return "memory"
        return "disk" if HEADROOM * sum(self.disk.values()) > self.free else ""

    def facts(self) -> dict[str, Any]:
        """The plan as JSON has it."""
        asked = self.read.asked
        return {
            "schema": 1,
            "model": {"name": self.paper.name, "parameters": self.paper.parameters, "blocks": self.paper.blocks},
            "method": write(self.course.method),
            "machine": asdict(self.machine) | {"dtype": str(self.paper.dtype).removeprefix("torch.")},
            "reads": {
                "now": list(asked.now),
                "before": list(asked.before),
                "steps": self.course.steps,
                "trees": isinstance(self.paper.network, LanguageModel) and bool(self.paper.network.trees),
                "images": bool(self.paper.shape),
            },
            "trainable": self.widths.trainable,
            "tokens": tokens(self.read),
            "flops": {**asdict(self.flops), "total": self.flops.total},
            "memory": {**asdict(self.memory), "peak": self.memory.peak, "available": self.room},
            "disk": {**self.disk, "total": sum(self.disk.values()), "free": self.free},
            "seconds": self.seconds,
            "pace": None if self.pace is None else asdict(self.pace),
            "fits": not self.short,
        }


def plan(job: Job, machine: Machine) -> Plan:
    """What `job` will cost on `machine`. Nothing of it is run, and no weight is read.

    Raises `EnvironmentRefused` where it cannot fit; the message names the settings with which it would.
    """
    method = method_of(job.method, job.seed)
    course = course_of(method)
    asked_for = audits_of(job.audits, "") if job.audits else None
    check_out(job.out, job.model)
    if machine.hold == "cut" and course.trained is not method:
        raise UsageRefused(f"--hold cut: {type(method).__name__} works on the whole model. Plan it with --hold whole.")
    records = job.inputs.read()
    paper = opened(job.model, machine.device, DTYPES[machine.dtype] if machine.dtype else None)
    request = records.request(paper.network)
    audits = asked_for or audits_of(None, family_name(paper.network))
    if not isinstance(paper.network, LanguageModel):
        paper = replace(paper, shape=tuple(request.forget[0].pixels.shape))  # type: ignore[attr-defined]
    if paper.small is None:
        raise ModelRefused(f"{job.model}: no small network of this architecture could be made to count with.")
    base = rehearsed(paper.small, course, request, audits) if machine.device == "cpu" else 0.0

    def again(method: Method, machine: Machine) -> Plan:
        same = machine.dtype == asked.dtype
        return counted(
            paper if same else paper.at(DTYPES[str(machine.dtype)]), method, request, audits, machine, base, job.out
        )

    asked = machine
    found = again(method, machine)
    if found.short:
        raise EnvironmentRefused(_refused(found, again, job.out))
    return _timed(found, request, audits, job.out)


def rehearsed(small: Readable, course: Course, request: Request, audits: list[Audit]) -> float:
    """What this process holds once it has done each thing of a run in little: a library comes when it is needed.

    The small network is not counted, since a run has none.
    """
    few = {name: examples[:2] for name, examples in request.sets().items()}
    own = {name: few.pop(name) for name in ("forget", "retain", "holdout", "stand_in") if name in few}
    statistics_of(Request(**own, probes=few), audits)
    if course.trained:
        ask(small, course.trained, request)
    else:
        met(small, course.method, request)
    return held() - sum(p.numel() * p.element_size() for p in small.module.parameters())


def tokens(read: Reads) -> dict[str, float]:
    """Positions read, by what for; those that only fill up a tree included."""
    trained = read.times * sum(part.tokens for step in read.steps for part in step)
    before = read.times * sum(call.tokens for step in read.steps for part in step for call in part.before)
    checks = sum(c.tokens for c in read.level) + read.checks * sum(c.tokens for c in read.check)
    return {
        "of the examples": read.tokens,
        "training": trained,
        "reference": before,
        "checks": checks,
        "audits": 2 * sum(c.tokens for c in read.audit),
        "written": 2 * sum(w.prompts * w.new for w in read.writing),
    }


def flops(widths: Widths | Pictures, read: Reads, course: Course) -> Flops:
    """Matrix products of one process, by what they are for."""
    total = Flops()
    for step in read.steps:
        for part in step:
            total += _of_part(widths, part, course.recomputed)
    total = total * read.times
    norms = course.norms * widths.norms()
    checks = sum(_reading(widths, c) for c in read.level)
    checks += read.checks * sum(_reading(widths, c) + widths.silent(c) for c in read.check)
    audits = 2 * sum(_reading(widths, c) for c in read.audit) + 2 * sum(written(widths, w) for w in read.writing)
    audits += 4 * _reading(widths, read.merge)
    return total + Flops(adapter=norms, checks=checks, audits=audits)


def written(widths: Widths | Pictures, writing: Writing) -> float:
    """A prompt's reading, and one row for each further token, with attention to all before it."""
    width = sum(a.width for a in widths.attention)
    linear = sum(2 * layer.share * layer.size for layer in widths.linears)
    each = writing.prompts * (linear + 4 * width * (writing.width + writing.new / 2))
    read = widths.forward(Call(writing.prompts, writing.width, 0))
    return read + (writing.new - 1) * each + writing.new * widths.scores(writing.prompts)


def _of_part(widths: Widths | Pictures, part: Any, recomputed: bool) -> Flops:
    made = Flops(reference=sum(widths.forward(c) for c in part.before), head=widths.scores(part.head))
    passes = [(c, 1.0) for c in part.now] + [(c, depth) for view, c, depth in part.hidden if view == "now"]
    for call, depth in passes:
        each = Flops(widths.forward(call), widths.backward(call), widths.adapter(call))
        again = Flops(backward=widths.again(call)) if recomputed else Flops()
        made += (each + again) * depth
    before = sum(depth * widths.forward(c) for view, c, depth in part.hidden if view == "before")
    return made + Flops(reference=before)


def _reading(widths: Widths | Pictures, call: Call) -> float:
    return widths.forward(call) + widths.scores(call.rows)


def counted(
    paper: Paper, method: Method, request: Request, audits: list[Audit], machine: Machine, base: float, out: Path
) -> Plan:
    """The plan without its time; `base` is what a process holds before it has loaded anything."""
    assert paper.small is not None
    course = course_of(method)
    sizes: Widths | Pictures
    if isinstance(paper.network, LanguageModel):
        sizes, _ = widths(paper.network, course.opened)
    else:
        sizes, _ = pictures(paper.network, course.opened, paper.shape, course.recomputed)
    where = (request, audits, machine.device, machine.processes)
    if course.trained:
        read, gathered = reads(paper.network, paper.small, course.trained, *where), (0, 0)
    else:
        read, gathered = edit_reads(paper.network, paper.small, method, *where), course.gathered(request)
    parent = next(p for p in out.absolute().parents if p.exists())
    return Plan(
        paper=paper,
        course=course,
        machine=machine,
        widths=sizes,
        read=read,
        flops=flops(sizes, read, course),
        memory=memory(paper, course, sizes, read, machine, base, gathered),
        room=machine.memory or room_of(machine.device, machine.processes),
        disk=disk(paper, sizes, course),
        free=float(shutil.disk_usage(parent).free),
        seconds={},
        pace=None,
    )


# Time


def _timed(found: Plan, request: Request, audits: list[Audit], out: Path) -> Plan:
    machine, read, sizes = found.machine, found.read, found.widths
    if machine.rate is not None:
        return replace(found, seconds={"all matrix products": found.flops.total / machine.rate})
    here = machine.device == "cpu" or torch.cuda.is_available()
    if not here or machine.memory is not None or machine.processes > 1:
        return found  # another machine's pace cannot be taken here
    parent = next(p for p in out.absolute().parents if p.exists())
    made = pace(found.paper, found.course, sizes, read, request, machine.device, found.room, str(parent))
    if made is None:
        rate = matmul(found.paper.dtype, machine.device)
        return replace(found, seconds={"matrix products at this machine's best": found.flops.total / rate})
    weights = found.paper.parameters * torch.empty((), dtype=found.paper.dtype).element_size()
    reading = sum(_reading(sizes, c) for c in read.audit) * made.read
    for w in read.writing:
        reading += sizes.forward(Call(w.prompts, w.width, 0)) * made.first + (w.new - 1) * made.token
    reading += statistics_of(request, audits)
    checks = sum(_reading(sizes, c) for c in read.level)
    checks += read.checks * sum(_reading(sizes, c) + sizes.silent(c) for c in read.check)
    merge = 4 * _reading(sizes, read.merge)
    disk, packed = sum(found.disk.values()), found.paper.packed
    seconds = {
        "load": found.paper.took + weights * made.hashed + (packed.seconds() if packed else 0.0),
        "audit before": reading + weights * made.hashed,
        "forget": (found.course.steps or 1) * made.step + made.edit + checks * made.read,
        "merge and save": merge * made.read + disk * made.written + weights * made.hashed,
        "read back": (0.0 if packed else found.paper.took) + weights * made.hashed,
        "audit after": reading + weights * made.hashed,
    }
    return replace(found, seconds=seconds, pace=made)


def _refused(found: Plan, again: Callable[[Method, Machine], Plan], out: Path) -> str:
    if found.short == "disk":
        need = HEADROOM * sum(found.disk.values())
        return (
            f"The result needs {need / 1e9:.3g} GB of disk; {out.absolute().parent} has {found.free / 1e9:.3g} GB "
            f"free. Give an --out on a disk that has it."
        )
    phases = found.memory.phases
    worst = max(phases, key=phases.__getitem__)
    said = (
        f"The run needs {found.memory.peak / 1e9:.3g} GB of memory on each device (most in: {worst}); "
        f"there are {found.room / 1e9:.3g} GB."
    )

    def fits(method: Method, machine: Machine) -> bool:
        try:
            return again(method, machine).short != "memory"
        except ModelRefused:  # a setting that this architecture does not take
            return False

    other = remedy(found.course.method, found.machine, fits)
    if not other:
        return f"{said} No setting of the run would make it fit: give a machine with more, or a smaller model."
    return f"{said} It would fit with {', '.join(other)}."
