"""What a run will cost, before anything of it runs: tokens, FLOPs, memory, disk, time; and whether it can be done.

The method and the audits are done in little, on a narrow random network that notes each pass; each pass is then counted
by its shape on the full-size network, whose tensors have sizes and no contents. No method is known by name.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import torch

from expunge.core.adapter import Adapted
from expunge.core.model import Model, Network
from expunge.core.request import Request
from expunge.errors import EnvironmentRefused, Refusal, UsageRefused
from expunge.events import OnEvent, ignore_event
from expunge.internals.examples import Tokenized
from expunge.models.decoding import WRITES, cache_bytes
from expunge.models.prefix_tree import Layout
from expunge.plan.count import Line, Opened, costs, measure_pass
from expunge.plan.machine import DTYPES, Machine, remedy
from expunge.plan.notes import Note, Notes
from expunge.plan.paper import Paper, open_paper
from expunge.primitives.class_scores import CHUNK
from expunge.primitives.rehearsal import Rehearsal
from expunge.report.record import networks
from expunge.run.added import add_probes
from expunge.run.checks import check_out
from expunge.run.choose import audits_of
from expunge.run.families import family_name
from expunge.run.own_answers import expect_plain_answers
from expunge.run.unlearn import Task, examine
from expunge.runtime.cached_model import MOST, CachedModel
from expunge.runtime.memory import resident_memory
from expunge.runtime.sharding import bytes_at_work

if TYPE_CHECKING:
    from expunge.core.audit import Audit
    from expunge.core.method import Method
    from expunge.run.job import Job

FLOAT = 4
HEADROOM = 1.1
"""A disk must have this many times what is written, as the run itself asks for."""
MAPPED = 32 << 20
"""glibc takes larger blocks from the system and gives them back; smaller ones come to lie on a heap."""
FRAGMENTS = 0.5
"""What the heap grew by beyond the tensors alive in it, over those: 0.47 to 0.62 for Llamas of 3 to 70 million
parameters, where every allocation of a step was added up, and next to nothing with MALLOC_MMAP_THRESHOLD_=1000000."""
PURPOSE = {"gradients": "training", "original": "reference", "adapted": "checks", "text": "checks"}
Pass = tuple[Note, Layout]


@dataclass(frozen=True)
class Plan:
    """The answer; each part is worked out when it is first asked for."""

    paper: Paper
    method: Method
    request: Request
    audits: tuple[Audit, ...]
    machine: Machine
    out: Path

    # What is done

    @cached_property
    def trial(self) -> tuple[Notes, float, bool]:
        """The method's passes; the bytes of its result; whether an adapter is written beside that."""
        with torch.random.fork_rng(devices=()), Notes(self.paper) as notes:
            result = self.method.rehearse(notes.network(), self.request, notes.rehearsal)
            notes.mark()
            with TemporaryDirectory() as folder:
                if isinstance(result, Adapted):
                    result.save_adapter(Path(folder))
                saved = any(Path(folder).iterdir())
            ratio = _bytes(result.plain()) / _bytes(self.paper.narrow)
        return notes, ratio * self.paper.weights, saved

    @property
    def notes(self) -> Notes:
        """The method's passes; after the last, its result is written."""
        return self.trial[0]

    @property
    def rehearsal(self) -> Rehearsal:
        """What the method said of its run."""
        return self.notes.rehearsal

    @cached_property
    def audit(self) -> tuple[Notes, float]:
        """The passes of one audit, and the seconds of what is worked out from the answers."""
        with torch.random.fork_rng(devices=()), Notes(self.paper) as notes:
            start, network = time.perf_counter(), notes.network()
            if self.audits:
                examine(CachedModel(network), Task(network, self.request, self.audits), "before")
        return notes, time.perf_counter() - start - notes.spent

    @cached_property
    def base(self) -> float:
        """Bytes that the process holds beside models, once all of a run has been done in little: libraries, mostly."""
        _ = self.trial, self.audit
        return resident_memory() - _bytes(self.paper.narrow) if self.machine.device == "cpu" else 0.0

    @cached_property
    def opener(self) -> Opened:
        """The network as the method takes gradients of it."""
        made, moving = self.rehearsal.opened, self.notes.moving
        if made is not None:
            return lambda network: made(network, self.request)

        def same(network: Network) -> Any:
            fork = network.fork()
            for name, parameter in fork.module.named_parameters():
                parameter.requires_grad_(name in moving)
            return nullcontext(fork.fork(fork.module.to(next((p.dtype for p in moving.values()), self.paper.dtype))))

        return same

    @cached_property
    def costs(self) -> tuple[dict[str, Line], int]:
        """FLOPs of a pass by its kind, and how many numbers move."""
        return costs(self.paper, self.opener)

    @cached_property
    def calls(self) -> list[Pass]:
        """The method's passes, with the shape that they have in one process."""
        many = self.machine.processes
        own = [replace(n, examples=n.examples[::many]) if n.shared else n for n in self.notes.passes]
        return [(note, self.paper.network.layout(note.examples, self.machine.device)) for note in own]

    @cached_property
    def reads(self) -> list[Pass]:
        """The passes of one audit in one process, and the prompts that it continues: both are dealt out."""
        made, many = [], self.machine.processes
        for note in [note for note in self.audit[0].passes if not note.new][::many]:
            made.append((note, self.paper.network.layout(note.examples, self.machine.device)))
        for note in (note for note in self.audit[0].passes if note.new):
            widths = sorted(len(e.prompt_tokens) for e in cast(Sequence[Tokenized], note.examples))[::many]
            groups = (widths[start : start + WRITES] for start in range(0, len(widths), WRITES))
            made += [(note, Layout(len(group), group[-1])) for group in groups]
        return made

    # What it costs

    @cached_property
    def tokens(self) -> dict[str, float]:
        """Positions (or images) read, by what for; those that only fill up a tree included."""
        made = {"of the examples": self.rehearsal.size} | dict.fromkeys(PURPOSE.values(), 0.0)
        for note, call in self.calls:
            made[PURPOSE[note.kind]] += note.times * call.tokens
        made["audits"] = 2.0 * sum(call.tokens for note, call in self.reads if not note.new)
        return made | {"written": 2.0 * sum(call.trees * note.new for note, call in self.reads)}

    @cached_property
    def flops(self) -> dict[str, float]:
        """Matrix products of one process, by what they are for."""
        made, (lines, _) = dict.fromkeys(PURPOSE.values(), 0.0), self.costs
        for note, call in self.calls:
            made[PURPOSE[note.kind]] += note.times * note.depth * lines[note.kind].at(call)
        matrix = 2.0 * self.paper.classes[0] * self.paper.classes[1]
        share = sum(note.rows for note, _ in self.calls) / max(1, sum(note.rows for note in self.notes.passes))
        made["output matrix"] = share * self.notes.head * matrix
        made["audits"] = self.audit_flops
        return made | {"total": sum(made.values())}

    @cached_property
    def audit_flops(self) -> float:
        """Those of both audits."""
        head = self.audit[0].head / self.machine.processes * 2.0 * self.paper.classes[0] * self.paper.classes[1]
        return 2 * (head + sum(self._reading(note, call) for note, call in self.reads))

    def _reading(self, note: Note, call: Layout) -> float:
        """A pass without gradients; of prompts that are continued, what is written too."""
        line, (classes, width) = self.costs[0]["original"], self.paper.classes
        token = call.trees * (line.token + line.pair * (call.nodes + note.new / 2))
        return note.depth * line.at(call) + max(0, note.new - 1) * token + 2.0 * note.new * call.trees * classes * width

    @cached_property
    def disk(self) -> dict[str, float]:
        """Bytes that a run writes; tokenizer and report are small."""
        written = float(self.paper.parameters * (self.paper.written or self.paper.stored).itemsize)
        return {"model": written, "adapter": float(self.trial[2] * self.costs[1] * FLOAT)}

    @cached_property
    def phases(self) -> dict[str, dict[str, float]]:
        """Bytes on one device in each phase, by what they are for."""
        weights, many, cpu = self.paper.weights, self.machine.processes, self.machine.device == "cpu"
        cut = many if self.rehearsal.shared else 1
        ratio = self.costs[1] / max(1, sum(p.numel() for p in self.notes.moving.values()))
        *states, merging = (p.get("network", 0.0) + ratio * p.get("moving", 0.0) for p in self.notes.peaks)
        passes = [each for each in self.calls if each[0].kind == "gradients"]
        steps = [list(group) for _, group in groupby(passes, key=lambda each: each[0].group)]
        passing = self._open(steps, self.opener, self.notes)
        reading = self._open([[each] for each in self.reads if not each[0].new], None, self.audit[0])
        longest = max((call.trees * (call.nodes + note.new) for note, call in self.reads if note.new), default=0)
        writing = {"keys and values": longest * float(cache_bytes(self.paper.network.module))} if longest else {}
        asked = max(reading, writing, key=lambda parts: sum(parts.values()))
        working = bytes_at_work(self.paper.network.module) if cut > 1 else 0.0
        kept = [note for note in self.notes.passes if note.kind == "original" and note.shared]  # by each process
        rows = {id(example): example.rows * note.times for note in kept for example in note.examples}
        states_before = min(MOST, sum(rows.values()) * self.paper.classes[1] * self.paper.dtype.itemsize)
        base, left = {"libraries": self.base}, sum(passing.values()) if cpu else 0.0  # a heap is not given back
        own = weights / cut + working + (weights if cut > 1 and cpu else 0.0)  # the whole stays beside its parts
        part = (0.0 if cut > 1 and not cpu else 1.0) + 1 / many + working / weights  # of a model that is cut
        share = 1.0 if self.machine.hold == "whole" or many == 1 else part
        after = share * self.trial[1] + (weights if share == 1 else weights * (part - 1 / many - working / weights))
        made = {
            "audit before": base | {"weights": share * weights, **asked},
            "forget": base | {"weights": own, "state": max(states) / cut, **passing, "reference": states_before},
            "merge": base | {"weights": (weights + merging) * (cpu or cut == 1), "left": left},
            "audit after": base | {"weights": after, "left": max(left, sum(asked.values()))},
        }
        packed = self.paper.packed
        return ({"load": base | {"weights": weights, "file": packed.beside}} if packed and cpu else {}) | made

    def _open(self, groups: list[list[Pass]], opened: Opened | None, notes: Notes) -> dict[str, float]:
        """Bytes of the passes that are open at one time, where those are most; and of class scores beside them."""
        calls = max(groups, key=lambda group: sum(call.tokens for _, call in group), default=[])
        if not calls:
            return {}
        found = [measure_pass(self.paper, call, opened) for _, call in calls]
        passing = sum(kept for kept, _, _ in found) + max(peak - kept for kept, peak, _ in found)
        rows = max(note.rows for note in notes.passes) * (notes.matrix or (1,))[0]
        many = min(max(note.rows for note, _ in calls) * self.paper.classes[0], CHUNK[self.machine.device])
        scores = max(peak.get("scores", 0.0) for peak in notes.peaks) / rows * many
        share = FRAGMENTS if self.machine.device == "cpu" and max(largest for _, _, largest in found) < MAPPED else 0.0
        return {"activations": passing, "class scores": scores, "allocator": share * (passing + scores)}

    @cached_property
    def host(self) -> float:
        """Bytes that the first process holds on a GPU's host: to merge, or to widen a GGUF file."""
        merging = self.paper.weights + self.trial[1] if self.machine.processes > 1 else 0.0
        packed = self.paper.packed
        wide = self.paper.parameters * self.paper.stored.itemsize + packed.beside if packed else 0.0
        return 0.0 if self.machine.device == "cpu" else max(merging, wide)

    # Whether it can be done

    @cached_property
    def peak(self) -> float:
        """The most bytes that any phase holds."""
        return max(sum(phase.values()) for phase in self.phases.values())

    @cached_property
    def free(self) -> float:
        """Bytes that the disk has."""
        return float(shutil.disk_usage(next(p for p in self.out.absolute().parents if p.exists())).free)

    @cached_property
    def short(self) -> str:
        """What there is too little of, or an empty text."""
        if self.peak > self.machine.room:
            return "memory"
        return "disk" if HEADROOM * sum(self.disk.values()) > self.free else ""


def plan(job: Job, machine: Machine, on_event: OnEvent = ignore_event) -> Plan:
    """What `job` will cost on `machine`. Nothing of it is run, and no weight is read.

    Raises `EnvironmentRefused` where it cannot fit; the message names the settings with which it would.
    """
    chosen, audits, _ = job.check_names()
    check_out(job.out, job.model)
    records = job.inputs.read()
    paper = open_paper(job.model, machine.device, DTYPES[machine.dtype] if machine.dtype else None)
    request = expect_plain_answers(paper.network, records.request(paper.network), chosen.method.minimises)
    method = chosen.method.fit(paper.network, request, on_event)
    request = add_probes(paper.network, request)[0] if job.added_probes else request
    found = make_plan(paper, method, request, audits or audits_of(None, family_name(paper.network)), machine, job.out)
    if machine.hold == "cut" and not found.rehearsal.shared:
        raise UsageRefused(f"--hold cut: {method.name} works on the whole model. Plan it with --hold whole.")
    if found.short:
        raise EnvironmentRefused(say_misfit(found))
    return found


def make_plan(
    paper: Paper,
    method: Method,
    request: Request,
    audits: tuple[Audit, ...],
    machine: Machine,
    out: Path = Path("expunged"),
) -> Plan:
    """The plan of a model on paper."""
    shape = tuple(getattr(request.forget[0], "pixels", torch.empty(0)).shape)
    return Plan(replace(paper, shape=() if shape == (0,) else shape), method, request, audits, machine, out)


def say_misfit(found: Plan) -> str:
    """What there is too little of, and with which settings there would be enough."""
    if found.short == "disk":
        need, place = HEADROOM * sum(found.disk.values()), found.out.absolute().parent
        said = f"The result needs {need / 1e9:.3g} GB of disk; {place} has {found.free / 1e9:.3g} GB free."
        return f"{said} Give an --out on a disk that has it."
    worst = max(found.phases, key=lambda phase: sum(found.phases[phase].values()))
    need, room = found.peak / 1e9, found.machine.room / 1e9
    said = f"The run needs {need:.3g} GB of memory on each device (most in: {worst}); there are {room:.3g} GB."

    def fits(method: Method, machine: Machine) -> bool:
        same = machine.dtype == found.machine.dtype
        number = found.paper.dtype if same else DTYPES[str(machine.dtype)]
        if found.paper.parameters * number.itemsize / machine.processes > machine.room:
            return False  # a share of the weights alone is too much: nothing has to be rehearsed to say so
        paper = found.paper if same else found.paper.at(number)
        other = replace(found, paper=paper, method=method, machine=machine)
        shared = ("audit", "trial", "costs") if method is found.method else ("audit",)
        vars(other).update({name: vars(found)[name] for name in shared if same})  # what asks nothing of the machine
        try:
            return other.short != "memory"
        except Refusal:  # a setting that this architecture does not take
            return False

    other = remedy(found.method, found.machine, found.rehearsal.shared, fits)
    if not other:
        return f"{said} No setting of the run would make it fit: give a machine with more, or a smaller model."
    return f"{said} It would fit with {', '.join(other)}."


def _bytes(model: Model) -> float:
    return float(sum(p.numel() * p.element_size() for each in networks(model) for p in each.module.parameters()))
