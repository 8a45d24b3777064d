"""The job of `expunge train`: from files of records to a folder with a model that has learnt them, or to nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from expunge.core.method import Method
from expunge.core.model import Model, Network, network_of
from expunge.core.request import Example, Request
from expunge.data import near, text
from expunge.data.kinds import kind_of
from expunge.data.records import Record
from expunge.data.text import Reading
from expunge.errors import DataRefused, UsageRefused
from expunge.events import Checked, Event, Note, OnEvent, Step
from expunge.internals.examples import Tokenized
from expunge.models.open import open_model
from expunge.notation.parse import parse, write
from expunge.report import record
from expunge.report.report import STEPS
from expunge.report.training import SCHEMA, Learnt, Training, digest_of
from expunge.run.checks import check_out
from expunge.run.config import CONFIG, write_toml
from expunge.run.families import family_name, reader_of
from expunge.run.files import save
from expunge.run.prepare import Records
from expunge.run.recorder import Recorder
from expunge.run.resumable import Resumable, checkpoints_beside
from expunge.run.tokenizer_facts import tokenizer_facts
from expunge.run.unlearn import Clock, refuse_broken
from expunge.run.viewers import log_events
from expunge.runtime.atomic_files import check_room, lock, whole_folder, write_manifest, write_text
from expunge.runtime.processes import broadcast, is_main, shared_folder, world_size
from expunge.runtime.sharding import kept_on_host


@dataclass(frozen=True)
class Material:
    """The files of the records to learn, and of those to leave out."""

    data: tuple[Path, ...]
    without: tuple[Path, ...] = ()
    reading: Reading = field(default_factory=Reading)
    """Texts: how they are read where their file does not say it."""
    keep_duplicates: bool = False
    """Whether a record that equals an earlier one is learnt too."""

    def read(self) -> Sheets:
        """What the files hold. Raises `DataRefused` for the first that cannot be used."""
        kind = kind_of(self.data[0])
        if kind != "text" and self.reading != Reading():
            raise UsageRefused(
                "--system, --chat-template-kwargs, --block-size and --columns are for texts. Leave them out."
            )
        load = (lambda path: text.drop_blank(self.reading.load(path))) if kind == "text" else reader_of(kind).load
        return Sheets(self, {path: load(path) for path in (*self.data, *self.without)}, kind)


@dataclass(frozen=True)
class Sheets:
    """Records of several files, not yet encoded for a model."""

    of: Material
    records: dict[Path, list[Any]]
    kind: str

    def encode_left_out(self, network: Network) -> tuple[Example, ...]:
        """What is left out, as the network reads it."""
        return self._encode(network, self.of.without)

    def examples(self, network: Network) -> tuple[tuple[Example, ...], Learnt]:
        """What is learnt, as the network reads it, and what a report says of it. Raises `DataRefused`."""
        every, gone = self._encode(network, self.of.data), self.encode_left_out(network)
        known = {example.fact_digest() for example in every}
        out = {example.fact_digest() for example in gone}
        kept = tuple(example for example in every if example.fact_digest() not in out)
        names = " and ".join(path.name for path in self.of.without)
        if gone and len(kept) == len(every):
            raise DataRefused(
                f"--without {names}: none of its {len(gone)} records is among the {len(every)} of the data, so nothing "
                f"would be left out. A record is known by its question and answer, as the data has them."
            )
        if not kept:
            raise DataRefused(f"--without {names}: it leaves out every record of the data, so nothing can be learnt.")
        data = Learnt(
            records=len(kept),
            rows=sum(example.rows for example in kept),
            digest=digest_of(kept),
            sources=tuple(path.name for path in self.of.data),
            without=tuple(path.name for path in self.of.without),
            left_out=len(every) - len(kept),
            not_found=sum(example.fact_digest() not in known for example in gone),
            near=len(near.likes(_as_read(kept), _as_read(gone))) if gone else 0,
        )
        return kept, data

    def _encode(self, network: Network, paths: tuple[Path, ...]) -> tuple[Example, ...]:
        """The examples of some files, each once unless duplicates are kept."""
        keep = self.of.keep_duplicates
        sheets = (Records({"forget": self.records[p]}, {"forget": p}, self.kind, keep) for p in paths)
        examples = chain.from_iterable(sheet.request(network).forget for sheet in sheets)
        return tuple(examples) if keep else tuple({e.record_digest(): e for e in examples}.values())


def _as_read(examples: Sequence[Example]) -> list[Record]:
    """Texts as records again, to be compared word by word; images are none."""
    texts = (example for example in examples if isinstance(example, Tokenized))
    return [Record(line, {"question": e.question, "answer": e.answer}) for line, e in enumerate(texts, start=1)]


def say_left_out(data: Learnt) -> Iterator[str]:
    """What became of the records that were to be left out."""
    if not data.without:
        return
    yield f"{data.left_out} records are left out, as --without says; {data.records} are learnt"
    if data.not_found:
        yield f"Warning: {data.not_found} records of --without are not among the data"
    if data.near:
        yield f"Warning: {data.near} records that are learnt nearly repeat one that is left out"


@dataclass(frozen=True)
class TrainJob:
    """A model to be trained further, by its files."""

    model: str
    material: Material
    out: Path
    method: str = "Train()"
    """In the notation."""
    seed: int | None = None
    device: str = "cpu"
    dtype: str | None = None
    """Precision that the result is written in; None: that of the model's file."""
    adapter: Path | None = None
    """A folder with an adapter of peft that is merged into the model first."""
    checkpoint_every: int = 20
    resume: bool = False
    log_to: str | None = None
    line: str = ""
    """What was typed."""

    def plan(self) -> Method:
        """How it is trained. Raises `UsageRefused` where the method learns nothing."""
        made = parse(self.method)
        terms = made.minimises.terms() if isinstance(made, Method) and made.minimises is not None else ()
        if not isinstance(made, Method) or not any(
            weight < 0 and term.intention == "removal" for weight, term in terms
        ):
            raise UsageRefused(
                f"--method '{self.method[:200]}' does not learn the records. `train` takes Train(...), such as "
                f"Train(adapter=LoRA(rank=16), learning_rate=1e-4); `expunge list Train` shows its settings."
            )
        return made if self.seed is None else made.with_seed(self.seed)

    def options(self) -> dict[str, Any]:
        """The options of the command that repeat the run, as `--config` reads them."""
        own = {
            "model": self.model,
            "data": [str(path) for path in self.material.data],
            "without": [str(path) for path in self.material.without],
            "method": write(self.plan()),
            **self.material.reading.options(),
            "keep-duplicates": self.material.keep_duplicates,
            "adapter": self.adapter,
            "dtype": self.dtype,
            "device": None if self.device == "cpu" else self.device.partition(":")[0],
            "log-to": self.log_to,
            "checkpoint-every": None if self.checkpoint_every == 20 else self.checkpoint_every,
        }
        return {name.replace("_", "-"): v for name, v in own.items() if v not in (None, "", [], False) and v != ()}


def train(job: TrainJob, on_event: OnEvent) -> Training:
    """Train, and write `job.out`, all of it or nothing."""
    plan, clock, host = job.plan(), Clock(), "cpu" if world_size() > 1 else None
    check_out(job.out, job.model, job.adapter)
    saved = checkpoints_beside(job.out, job.checkpoint_every, job.resume)
    with lock(job.out) if is_main() else nullcontext():
        if saved:
            broadcast(saved.check)
        with clock.part("load"):
            sheets = job.material.read()
            on_event(Note(f"Loading {job.model}"))
            network = network_of(open_model(job.model, job.device, host, job.dtype, job.adapter), "train")
            examples, data = sheets.examples(network)
            network = network.without(sheets.encode_left_out(network))
            for line in say_left_out(data):
                on_event(Note(line))
        request = Request(examples)
        plan = plan.fit(network, request, on_event)
        check_room(network.module.state_dict().values(), job.out)
        with Resumable(job.out, saved).finishing(on_event), shared_folder(whole_folder(job.out)) as folder:
            return _Lesson(job, plan, network, request, data, clock).learn(Resumable(job.out, saved), folder, on_event)


@dataclass
class _Lesson:
    """A training run whose files are read."""

    job: TrainJob
    plan: Method
    network: Network
    request: Request
    data: Learnt
    clock: Clock
    losses: list[float] = field(default_factory=list)

    def learn(self, run: Resumable, folder: Path, on_event: OnEvent) -> Training:
        """Take the steps, and write model, adapter, steps and what a report says of them into a folder."""
        job, clock = self.job, self.clock
        with log_events(job.log_to, folder, job.out.name, on_event) as log, kept_on_host(self.network):
            recorder = Recorder(log, folder / STEPS)
            with clock.part("train"):
                tell = partial(self.hear, recorder)
                changed = run.change(self.plan, self.network, self.request, tell, recorder.path)
            with clock.part("merge and save"):
                on_event(Note("Merging and saving"))
                broadcast(lambda: self.save(changed, folder))  # noqa: F821
                del changed
        with clock.part("read back"):
            result = open_model(folder / "model").fingerprint()
        made = self.describe(result, recorder)
        if is_main():
            made.write(folder)
            write_text(folder / CONFIG, write_toml(job.options()))
            write_manifest(folder, kind="training", base=made.base.fingerprint, data=made.data.digest)
        return made

    def hear(self, recorder: Recorder, event: Event) -> None:
        """Hand a run's event on, without the names of sets that only forgetting has."""
        match event:
            case Checked():
                self.losses.append(event.forget)
                recorder(Note(f"step {event.step}: loss {event.forget:.3f}"))
            case Step():
                recorder(replace(event, forget=None))  # it is the loss itself
            case _:
                recorder(event)

    def save(self, changed: Model, folder: Path) -> None:
        """Write `model/`, and `adapter/` where it has a form of its own."""
        plain = changed.plain()
        refuse_broken(plain)
        save(changed, plain, self.network.fingerprint(), folder)

    def describe(self, result: str, recorder: Recorder) -> Training:
        """What was done, for the file."""
        return Training(
            schema=SCHEMA,
            expunge=record.VERSION,
            created=record.now(),
            command=self.job.line,
            base=replace(
                record.describe_model(self.network, self.job.model, family_name(self.network)),
                tokenizer=tokenizer_facts(self.network),
            ),
            result=result,
            data=self.data,
            method=write(self.plan),
            steps=recorder.ended.steps if recorder.ended else 0,
            losses=tuple(self.losses),
            cost=record.cost(self.clock.seconds, recorder.size),
            environment=record.describe_environment(self.network),
        )
