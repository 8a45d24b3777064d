"""What a run will cost, before anything of it runs: tokens, FLOPs, memory, disk, time; and whether it can be done."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from expunge.core.adapter import Adapted
from expunge.core.model import Model, Network
from expunge.core.question import LogProbabilities
from expunge.core.request import Request
from expunge.errors import DataRefused, EnvironmentRefused, Refusal, UsageRefused
from expunge.internals.blocks import blocks
from expunge.models.decoding import WRITES
from expunge.notation.parse import write
from expunge.plan.count import Call, Costs, Opened, bytes_of, costs, shape
from expunge.plan.machine import DTYPES, Machine, remedy, resident
from expunge.plan.notes import Note, Notes, noting
from expunge.plan.paper import Paper, opened
from expunge.primitives.class_scores import CHUNK
from expunge.primitives.rehearsal import Rehearsal
from expunge.run.unlearn import AUDITS, audits_of, check_out, family_name, method_of
from expunge.runtime.cached_model import MOST, CachedModel

if TYPE_CHECKING:
    from expunge.core.audit import Audit
    from expunge.core.method import Method
    from expunge.run.unlearn import Job

FLOAT = 4
HEADROOM = 1.1
"""A disk must have this many times what is written, as the run itself asks for."""
MAPPED = 32 << 20
"""glibc takes larger blocks from the system and gives them back; smaller ones come to lie on a heap."""
FRAGMENTS = 0.5
"""What the heap grew by beyond the tensors alive in it, over those: 0.47 to 0.62 for Llamas of 3 to 70 million
parameters, where every allocation of a step was added up, and next to nothing with MALLOC_MMAP_THRESHOLD_=1000000."""


@dataclass(frozen=True)
class Asked:
    """What is asked for."""

    method: Method
    request: Request
    audits: list[Audit]
    machine: Machine
    out: Path


@dataclass(frozen=True)
class Plan:
    """The answer."""

    paper: Paper
    asked: Asked
    base: float
    """Bytes that the process holds beside models and what is done with them."""

    # What is done

    @cached_property
    def rehearsal(self) -> Rehearsal:
        """What the method said of itself."""
        return self.method.rehearsal

    @cached_property
    def method(self) -> Notes:
        """The method's passes, on a narrow network; after the last, its result is written."""
        return self._method[0]

    @cached_property
    def _method(self) -> tuple[Notes, float, bool]:
        notes = Notes(self.paper, Rehearsal())
        with self._narrow(notes) as network:
            result = self.asked.method.rehearse(network, self.asked.request, notes.rehearsal)
            notes.peaks.append(dict(notes.alive))
            with TemporaryDirectory() as folder:
                if isinstance(result, Adapted):
                    result.save_adapter(Path(folder))
                saved = any(Path(folder).iterdir())
            plain: Any = result.plain()
            ratio = _bytes(plain) / _bytes(self.paper.narrow)
        return notes, ratio * self.paper.weights, saved

    @cached_property
    def audit(self) -> tuple[Notes, float]:
        """The passes of one audit, and the seconds of what is worked out from the answers."""
        notes, request = Notes(self.paper, Rehearsal()), self.asked.request
        with self._narrow(notes) as network:
            start, model = time.perf_counter(), CachedModel(network)
            model.ask(LogProbabilities(), [t for e in request.sets().values() for one in e for t in texts(one)])
            if not any([list(audit(model, request)) for audit in self.asked.audits]):
                raise DataRefused("No audit could be asked of these records. Choice needs options, membership a holdout set.")
        return notes, time.perf_counter() - start - notes.spent

    @contextmanager
    def _narrow(self, notes: Notes) -> Iterator[Network]:
        with torch.random.fork_rng(devices=()), notes:
            yield noting(self.paper.narrow, notes.ask, self.paper.network.batches)

    @cached_property
    def opened(self) -> Opened:
        """The network as the method takes gradients of it."""
        made, moving = self.rehearsal.opened, self.method.moving
        if made is not None:
            return lambda network: made(network, self.asked.request)

        @contextmanager
        def same(network: Network) -> Iterator[Network]:
            fork = network.fork()
            for name, parameter in fork.module.named_parameters():
                parameter.requires_grad_(name in moving)
            dtype = next((dtype for _, dtype in moving.values()), self.paper.dtype)
            yield fork.fork(fork.module.to(dtype)) if dtype != self.paper.dtype else fork

        return same

    @cached_property
    def costs(self) -> Costs:
        """What passes cost."""
        return costs(self.paper, self.opened)

    @cached_property
    def calls(self) -> list[tuple[Note, Call]]:
        """The method's passes, with the shape that they have in one process."""
        processes = self.asked.machine.processes
        every = [(n, n.examples[:: processes if n.shared else 1]) for n in self.method.passes]
        return [(note, shape(self.paper, examples, self.asked.machine.device)) for note, examples in every]

    @cached_property
    def read(self) -> list[tuple[Note, Call]]:
        """The passes of one audit in one process: those are dealt out."""
        machine = self.asked.machine
        passes = [note for note in self.audit[0].passes if note.kind != "text"][:: machine.processes]
        found = [(note, shape(self.paper, note.examples, machine.device)) for note in passes]
        for note in (note for note in self.audit[0].passes if note.kind == "text"):
            widths = sorted(len(e.asked) for e in note.examples)[:: machine.processes]  # type: ignore[attr-defined]
            for group in (widths[start : start + WRITES] for start in range(0, len(widths), WRITES)):
                found.append((note, Call(len(group), group[-1], 0)))
        return found

    # What it costs

    @cached_property
    def tokens(self) -> dict[str, float]:
        """Positions (or images) read, by what for; those that only fill up a tree included."""
        made = {"of the examples": self.rehearsal.size, "training": 0.0, "reference": 0.0, "checks": 0.0}
        for note, call in self.calls:
            name = {"gradients": "training", "original": "reference", "adapted": "checks", "text": "checks"}[note.kind]
            made[name] += note.times * call.tokens
        made["audits"] = 2.0 * sum(call.tokens for note, call in self.read if note.kind != "text")
        return made | {"written": 2.0 * sum(call.trees * note.new for note, call in self.read)}

    @cached_property
    def flops(self) -> dict[str, float]:
        """Matrix products of one process, by what they are for."""
        made = {"training": 0.0, "reference": 0.0, "checks": 0.0}
        for note, call in self.calls:
            if note.kind == "gradients":
                made["training"] += note.times * note.depth * self.costs.gradients.at(call)
            elif note.kind == "original":
                made["reference"] += note.times * note.depth * self.costs.original.at(call)
            else:
                made["checks"] += note.times * note.depth * self.costs.adapted.at(call)
        matrix, share = 2.0 * self.paper.classes[0] * self.paper.classes[1], 1.0
        if self.rehearsal.shared:
            share = sum(call.rows for _, call in self.calls) / max(1, sum(_rows(note) for note in self.method.passes))
        made["output matrix"] = share * sum(self.method.head.values()) * matrix
        rows = sum(self.audit[0].head.values()) / self.asked.machine.processes
        made["audits"] = 2 * (rows * matrix + sum(self.reading(note, call) for note, call in self.read))
        return made | {"total": sum(made.values())}

    def reading(self, note: Note, call: Call) -> float:
        """A pass without gradients; of prompts that are continued, what is written too."""
        line, (classes, width) = self.costs.original, self.paper.classes
        token = call.trees * (line.token + line.pair * (call.nodes + note.new / 2))
        written = max(0, note.new - 1) * token + 2.0 * note.new * call.trees * classes * width
        return note.depth * line.at(call) + written

    @cached_property
    def disk(self) -> dict[str, float]:
        """Bytes that a run writes; tokenizer and report are small."""
        return {"model": self._method[1], "adapter": self._method[2] * float(self.costs.trainable * FLOAT)}

    @cached_property
    def phases(self) -> dict[str, dict[str, float]]:
        """Bytes on one device in each phase, by what they are for."""
        paper, machine, cpu = self.paper, self.asked.machine, self.asked.machine.device == "cpu"
        parts = machine.processes if self.rehearsal.shared else 1
        ratio = self.costs.trainable / max(1, sum(torch.Size(s).numel() for s, _ in self.method.moving.values()))
        *states, merging = (p.get("network", 0.0) + ratio * p.get("moving", 0.0) for p in self.method.peaks)
        reads = self._largest([[c] for n, c in self.read if n.kind != "text"], None, self.audit[0])
        asked = max([reads, *(self._writing(n, c) for n, c in self.read if n.kind == "text")], key=lambda p: sum(p.values()))
        groups: dict[int, list[Call]] = {}
        for note, call in self.calls:
            if note.kind == "gradients":
                groups.setdefault(note.group, []).append(call)
        passing = self._largest(list(groups.values()), self.opened, self.method) if groups else {}
        # Gradients and moments are largest in other moments than what a pass holds, but memory is not given back.
        working = self._gathered() if parts > 1 else 0.0
        held = {"weights": paper.weights / parts + working + (paper.weights if parts > 1 and cpu else 0.0)}
        held |= {"state": max(states) / parts, **passing, "reference": self._reference(), "libraries": self.base}
        left = sum(passing.values()) if cpu else 0.0
        cut, beside = machine.processes > 1 and machine.hold == "cut", parts > 1 and not cpu
        mapped = 0.0 if beside else 1.0
        model = {name: size for name, size in (("before", paper.weights), ("after", self.disk["model"]))}
        if cut:
            model = {n: s * (mapped + 1 / machine.processes) + working * s / paper.weights for n, s in model.items()}
        made = {
            "audit before": {"libraries": self.base, "weights": model["before"], **asked},
            "forget": held,
            "merge": {"libraries": self.base, "left": left, "weights": 0.0 if beside else paper.weights + merging},
            "audit after": {
                "libraries": self.base,
                "weights": (paper.weights * mapped if cut else paper.weights) + model["after"],
                "left": max(left, sum(asked.values())),
            },
        }
        if paper.packed and cpu:
            made = {"load": {"libraries": self.base, "weights": paper.weights, "file": paper.packed.beside}} | made
        return made

    def _largest(self, open_: list[list[Call]], opened: Opened | None, notes: Notes) -> dict[str, float]:
        """Bytes of the passes that are open at one time, where those are most; and of class scores beside them."""
        device = self.asked.machine.device
        calls = max(open_, key=lambda group: sum(call.tokens for call in group))
        held, largest = bytes_of(self.paper, calls, opened)
        share = FRAGMENTS if device == "cpu" and largest < MAPPED else 0.0
        rows = max((_rows(note) for note in notes.passes), default=0)
        peak = max(peak.get("scores", 0.0) for peak in notes.peaks)
        classes = notes.classes[0] if notes.classes else 0
        each = peak / (rows * classes) if rows and classes else 0.0
        scores = each * min(max(c.rows for c in calls) * self.paper.classes[0], CHUNK[device])
        return {"activations": held, "class scores": scores, "allocator": share * (held + scores)}

    def _writing(self, note: Note, call: Call) -> dict[str, float]:
        """Keys and values of every position of every block, and the scores of the last."""
        text = self.paper.config.get_text_config()
        each = int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
        heads = int(getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
        cache = 2 * self.paper.blocks * heads * each * call.trees * (call.nodes + note.new) * self.paper.size
        return {"keys and values": float(cache + 2 * call.trees * self.paper.classes[0] * FLOAT)}

    def _reference(self) -> float:
        """Last hidden states of the original, which each process keeps of what all have read."""
        read = {id(e): (e.rows, note.times) for note, _ in self.calls if note.kind == "original" for e in note.examples}
        every = sum(e.rows for examples in self.asked.request.sets().values() for e in examples)
        rows = min(every, sum(rows * times for rows, times in read.values()))
        return float(min(MOST, rows * self.paper.classes[1] * self.paper.size))

    def _gathered(self) -> float:
        """Two blocks (one at work, the next under way) and what stands outside of blocks."""
        inside = [sum(p.numel() for p in block.parameters()) for block in blocks(self.paper.network.module).values()]
        return float((self.paper.parameters - sum(inside) + 2 * max(inside, default=0)) * self.paper.size)

    @cached_property
    def host(self) -> float:
        """Bytes that the first process holds on the host, where that is no device: to merge, or to widen a GGUF file."""
        merging = self.paper.weights + self.disk["model"] if self.asked.machine.processes > 1 else 0.0
        packed, size = self.paper.packed, torch.empty((), dtype=self.paper.stored).element_size()
        wide = self.paper.parameters * size + packed.beside if packed else 0.0
        return 0.0 if self.asked.machine.device == "cpu" else max(merging, wide)

    # Whether it can be done

    @cached_property
    def peak(self) -> float:
        """The most bytes that any phase holds."""
        return max(sum(phase.values()) for phase in self.phases.values())

    @cached_property
    def free(self) -> float:
        """Bytes that the disk has."""
        return float(shutil.disk_usage(next(p for p in self.asked.out.absolute().parents if p.exists())).free)

    @cached_property
    def short(self) -> str:
        """What there is too little of, or an empty text."""
        if self.peak > self.asked.machine.room:
            return "memory"
        return "disk" if HEADROOM * sum(self.disk.values()) > self.free else ""


def facts(plan: Plan, seconds: dict[str, float]) -> dict[str, Any]:
    """The plan as JSON has it."""
    paper, machine = plan.paper, plan.asked.machine
    return {
        "schema": 2,
        "model": {"name": paper.name, "parameters": paper.parameters, "blocks": paper.blocks},
        "method": write(plan.asked.method),
        "machine": asdict(machine) | {"dtype": str(paper.dtype).removeprefix("torch.")},
        "steps": plan.rehearsal.steps,
        "trainable": plan.costs.trainable,
        "tokens": plan.tokens,
        "flops": plan.flops,
        "memory": {"phases": plan.phases, "peak": plan.peak, "host": plan.host, "available": machine.room},
        "disk": {**plan.disk, "total": sum(plan.disk.values()), "free": plan.free},
        "seconds": seconds,
        "fits": not plan.short,
    }


def plan(job: Job, machine: Machine) -> Plan:
    """What `job` will cost on `machine`. Nothing of it is run, and no weight is read.

    Raises `EnvironmentRefused` where it cannot fit; the message names the settings with which it would.
    """
    method = method_of(job)
    audits = audits_of(job.audits) if job.audits else None
    check_out(job)
    records = job.inputs.read()
    paper = opened(job.model, machine.device, DTYPES[machine.dtype] if machine.dtype else None)
    request = records.request(paper.network)
    audits = audits or audits_of(AUDITS[family_name(paper.network)])
    found = planned(paper, Asked(method, request, audits, machine, job.out))
    if machine.hold == "cut" and not found.rehearsal.shared:
        raise UsageRefused(f"--hold cut: {method.name} works on the whole model. Plan it with --hold whole.")
    if found.short:
        raise EnvironmentRefused(_refused(found))
    return found


def planned(paper: Paper, asked: Asked) -> Plan:
    """The plan; the libraries that a run needs are loaded by then, since all of it has been done in little."""
    first: Any = asked.request.forget[0]
    if not hasattr(first, "tokens"):
        paper = replace(paper, shape=tuple(first.pixels.shape))
    found = Plan(paper, asked, 0.0)
    _ = found.method, found.audit
    base = resident() - _bytes(paper.narrow) if asked.machine.device == "cpu" else 0.0
    object.__setattr__(found, "base", base)
    return found


def _refused(found: Plan) -> str:
    if found.short == "disk":
        return (
            f"The result needs {HEADROOM * sum(found.disk.values()) / 1e9:.3g} GB of disk; "
            f"{found.asked.out.absolute().parent} has {found.free / 1e9:.3g} GB free. Give an --out on a disk that has it."
        )
    worst = max(found.phases, key=lambda phase: sum(found.phases[phase].values()))
    said = (
        f"The run needs {found.peak / 1e9:.3g} GB of memory on each device (most in: {worst}); there are "
        f"{found.asked.machine.room / 1e9:.3g} GB."
    )

    def fits(method: Method, machine: Machine) -> bool:
        same = machine.dtype == found.asked.machine.dtype
        paper = found.paper if same else found.paper.at(DTYPES[str(machine.dtype)])
        try:
            return planned(paper, replace(found.asked, method=method, machine=machine)).short != "memory"
        except Refusal:  # a setting that this architecture does not take
            return False

    other = remedy(found.asked.method, found.asked.machine, found.rehearsal.shared, fits)
    if not other:
        return f"{said} No setting of the run would make it fit: give a machine with more, or a smaller model."
    return f"{said} It would fit with {', '.join(other)}."


def texts(example: Any) -> Iterable[Any]:
    """The example, and the same prompt with other answers."""
    return (example, *getattr(example, "alternatives", ()))


def _rows(note: Note) -> int:
    return sum(example.rows for example in note.examples)


def _bytes(network: Model) -> float:
    return float(sum(p.numel() * p.element_size() for p in network.module.parameters()))  # type: ignore[attr-defined]
