"""The job of a command: from files to a folder that holds model, adapter, steps and report, or to nothing at all."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from expunge.core.audit import Audit
from expunge.core.method import Method
from expunge.core.model import Model, Network
from expunge.core.objective import Objective
from expunge.errors import UsageRefused
from expunge.events import Note, OnEvent
from expunge.models.open import open_model
from expunge.models.source import say_left_out
from expunge.notation.parse import write
from expunge.notation.typed_json import from_json, to_json
from expunge.report.record import networks
from expunge.report.report import STEPS, Report
from expunge.report.required import Rule
from expunge.report.run import Saved
from expunge.report.sealed import write_sealed
from expunge.run import unlearn
from expunge.run.checks import check_out
from expunge.run.choose import Chosen, audits_of, choose_method, default_method
from expunge.run.compare import Compared, compare
from expunge.run.config import CONFIG, write_toml
from expunge.run.earlier import trace
from expunge.run.families import family_name, family_reading
from expunge.run.files import form_of, save
from expunge.run.prepare import Inputs
from expunge.run.recorder import Recorder
from expunge.run.resumable import Resumable, checkpoints_beside
from expunge.run.unlearn import Clock, Result, Task
from expunge.run.viewers import log_events
from expunge.runtime.atomic_files import check_room, lock, whole_folder, write_text
from expunge.runtime.cached_model import CachedModel
from expunge.runtime.parallel_model import Hold, ask_together, shared_store
from expunge.runtime.processes import broadcast, is_main, shared_folder, world_size
from expunge.runtime.sharding import kept_on_host
from expunge.train.checkpoint import Checkpoints

DTYPES = ("float32", "bfloat16", "float16")
ALIKE = ("reference", "audits", "adapter", "require", "show_text", "hold")
"""Fields of a job that are options of the same name."""
TRAINING = ("added_probes", "checkpoint_every", "dtype", "log_to")
"""The same, of `forget` alone."""


@dataclass(frozen=True)
class Job:
    """One request to one model, by their files."""

    model: str
    inputs: Inputs
    out: Path
    method: str | None = None
    """In the notation; None: what suits the files."""
    audits: str | None = None
    reference: str | None = None
    seed: int | None = None
    device: str = "cpu"
    show_text: bool = False
    require: tuple[str, ...] = ()
    checkpoint_every: int = 20
    """Steps between two checkpoints of the run; 0 for none."""
    resume: bool = False
    """Whether to go on from the newest checkpoint."""
    dtype: str | None = None
    """Precision that the result is written in; None: that of the model's file."""
    hold: Hold = "whole"
    """Of several processes, what each holds of a model that is audited: the whole on its device, or cut, a part."""
    added_probes: bool = True
    """Whether a language model is asked general knowledge and plain texts where no probe says what should stay."""
    adapter: Path | None = None
    """A folder with an adapter of peft that is merged into the model first."""
    log_to: str | None = None
    """A viewer that the steps are written for too, such as tensorboard."""
    line: str = ""
    """What was typed, for the report."""

    def __post_init__(self) -> None:
        if self.hold not in ("whole", "cut"):
            raise UsageRefused(f"--hold '{self.hold}' is not known. Allowed: whole, cut.")
        if self.dtype not in (None, *DTYPES):
            raise UsageRefused(f"--dtype '{self.dtype}' is not known. Allowed: {', '.join(DTYPES)}.")

    def check_names(self) -> tuple[Chosen, tuple[Audit, ...] | None, tuple[Rule, ...]]:
        """What is named, before anything is read: the method, the audits, if any are, and the rules."""
        audits = audits_of(self.audits, "") if self.audits else None
        family = family_reading(self.inputs.kind).name
        named = default_method(family, self.inputs.holdout is not None) if self.method is None else self.method
        chosen = choose_method(named, family, self.seed)
        return chosen, audits, tuple(Rule.parse(text) for text in self.require)

    def options(self, method: str) -> dict[str, Any]:
        """The options of the command that are not the default; `method` is written out, empty for an audit.

        Left out is what belongs to the one run: where its result lies, and whether it went on from a checkpoint.
        """
        default = {each.name: each.default for each in fields(self)}
        own = {name: getattr(self, name) for name in (*ALIKE, *(TRAINING if method else ()))}
        device = None if self.device == "cpu" else self.device.partition(":")[0]
        given = {"model": self.model, **self.inputs.options(), "method": method, "device": device}
        made = {name: value for name, value in given.items() if value not in (None, "", [], 0)}
        made |= {name: value for name, value in own.items() if value != default[name]}
        return {name.replace("_", "-"): value for name, value in made.items()}

    def checkpoints(self) -> Checkpoints | None:
        """Where the run's checkpoints lie: beside the result."""
        return checkpoints_beside(self.out, self.checkpoint_every, self.resume)

    def open(self, model: str) -> Model:
        """A model on the job's device; on the host where the processes will hold a part each."""
        return open_model(model, self.device, self._storage())

    def _storage(self) -> str | None:
        return "cpu" if self.hold == "cut" and world_size() > 1 else None

    def ask(self, model: Model) -> CachedModel:
        """A model, to be asked by all processes, of which each answer is kept."""
        return CachedModel(ask_together(model, self.hold) if isinstance(model, Network) else model, shared_store())

    def task(self, objective: Objective | None, audits: tuple[Audit, ...] | None, on_event: OnEvent) -> Task:
        """Model and request; the files are checked before the model is loaded, by what `objective` reads too."""
        records = self.inputs.read()
        if objective is not None:
            self.inputs.supply(objective)
        clock, reference = Clock(), self.reference
        with clock.part("load"):
            on_event(Note(f"Loading {self.model}{f', into which {self.adapter} is merged' if self.adapter else ''}"))
            model = open_model(self.model, self.device, self._storage(), self.dtype, self.adapter)
            request = records.request(model)
        if left_out := say_left_out(self.model):
            on_event(Note(left_out))
        for note in records.notes:
            on_event(Note(note))
        for repeat in request.repeats:
            on_event(Note(f"Warning: {repeat}"))
        for name, intake in request.intakes.items():
            for line in intake.lines(name):
                on_event(Note(line))
        earlier = trace(self.inputs.earlier, model.fingerprint()) if self.inputs.earlier else ()
        for one in earlier:
            if not one.followed:
                on_event(
                    Note(f"Warning: the request after {one.name} did not begin with the model that {one.name} made")
                )
        return Task(
            earlier=earlier,
            model=model,
            request=request,
            audits=audits or audits_of(None, family_name(model)),
            rules=tuple(Rule.parse(text) for text in self.require),
            reference=None if reference is None else lambda: self.open(reference),
            ask=self.ask,
            on_event=on_event,
            clock=clock,
            command=self.line,
            name=self.model,
            sources={name: path.name for name, path in records.places.items()},
            show_text=self.show_text,
        )


def pose(job: Job, on_event: OnEvent) -> tuple[Task, Method]:
    """What the job asks, from its files, and the method fitted to it; nothing is run yet."""
    chosen, audits, _ = job.check_names()
    task = replace(job.task(chosen.method.minimises, audits, on_event), recipe=chosen.recipe)
    task = task.with_retain(chosen.method)
    asked = task.to_train(chosen.method)
    if task.earlier:
        on_event(Note(_say_held(len(asked.forget) - len(task.request.forget))))
    method = chosen.method.fit(task.model, asked, on_event)
    return task.with_probes() if job.added_probes else task, method


def forget(job: Job, on_event: OnEvent) -> Report:
    """Forget, and write `job.out`, all of it or nothing."""
    check_out(job.out, job.model, job.adapter)
    saved = job.checkpoints()
    with lock(job.out) if is_main() else nullcontext():
        if saved:
            broadcast(saved.check)
        task, method = pose(job, on_event)
        inside = list(networks(task.model))
        if saved and isinstance(task.to_change, Network):
            network = task.to_change
            broadcast(lambda: saved.compare(method, network, task.to_train(method)))
        check_room((tensor for each in inside for tensor in each.module.state_dict().values()), job.out)
        with Resumable(job.out, saved).finishing(on_event), shared_folder(whole_folder(job.out)) as folder:
            return _forget(job, task, method, folder)


def _say_held(count: int) -> str:
    if not count:
        return "What earlier requests forgot is asked again, and not held in training: the method aims at no level"
    return f"What earlier requests forgot is asked again, and held in training: {count} records"


def audit(job: Job, on_event: OnEvent) -> Report:
    """Audit a model as it is, and write `report.json` and `report.html` to `job.out`."""
    _, audits, _ = job.check_names()
    check_out(job.out, job.model, job.adapter)
    with lock(job.out) if is_main() else nullcontext():
        report = unlearn.audit(job.task(None, audits, on_event))
        with shared_folder(whole_folder(job.out)) as folder:
            _write(job, report, folder)
        return report


def _forget(job: Job, task: Task, method: Method, folder: Path) -> Report:
    with log_events(job.log_to, folder, job.out.name, task.on_event) as on_event:
        recorder = Recorder(on_event, folder / STEPS)
        report = unlearn.forget(task, method, lambda _: _result(job, task, method, recorder, folder), recorder)
    _write(job, report, folder)
    return report


def _result(job: Job, task: Task, method: Method, recorder: Recorder, folder: Path) -> Result:
    """Run the method, save what it made, and read it back: what is audited is what lies on the disk."""
    trains = method.minimises is not None
    with kept_on_host(task.to_change) if trains and isinstance(task.to_change, Network) else nullcontext():
        with task.clock.part("forget"):
            run = Resumable(job.out, job.checkpoints())
            changed = run.change(method, task.to_change, task.to_train(method), recorder, recorder.path)
        with task.clock.part("merge and save"):
            task.on_event(Note("Merging and saving"))
            said: list[Compared] = []  # by the process that writes
            broadcast(lambda: said.append(_save(task, changed, folder)))  # noqa: F821
            del changed
    with task.clock.part("read back"):
        model = job.open(str(folder / "model"))
        form = form_of(folder / "model")
        return Result(model, from_json(Saved, broadcast(lambda: to_json(said[0].read_back(model, form)))))


def _save(task: Task, changed: Model, folder: Path) -> Compared:
    plain = changed.plain()
    unlearn.refuse_broken(plain)
    said = compare(task.model, changed, plain, task.request)
    adapter = save(changed, plain, task.model.fingerprint(), folder)
    return replace(said, saved=replace(said.saved, adapter=adapter))


def _write(job: Job, report: Report, folder: Path) -> None:
    if is_main():
        report.write(folder)
        if report.texts.items and not report.samples.shown:
            write_sealed(report.texts, job.inputs.forget, folder)
        method = write(job.check_names()[0].method) if report.run else ""
        write_text(folder / CONFIG, write_toml(job.options(method)))
        report.sign(folder)
