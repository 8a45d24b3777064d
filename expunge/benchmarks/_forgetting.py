"""Methods tried on the requests that a benchmark draws: each makes a model forget, and the result is measured."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from expunge.benchmarks._data import find_data
from expunge.benchmarks._job import RESULT, Job, Measured
from expunge.benchmarks._kinds import RequestBenchmark, Stage
from expunge.benchmarks._values import Column, Values
from expunge.core.method import Method
from expunge.core.model import Model, network_of
from expunge.errors import DataRefused, Refusal, UsageRefused
from expunge.events import Note, OnEvent
from expunge.models.open import open_model
from expunge.notation.parse import write
from expunge.report.training import TRAINING, Training
from expunge.runtime.atomic_files import lock
from expunge.runtime.cached_model import CachedModel
from expunge.runtime.parallel_model import ask_together, shared_store
from expunge.runtime.processes import is_main, world_size

ORIGINAL, BEFORE = "original", "before"


@dataclass(frozen=True)
class Forgetting:
    """Several methods, each with several seeds, on the requests of one benchmark."""

    job: Job
    methods: Mapping[str, Method]
    seeds: tuple[int, ...] = ()
    """Empty: each method with its own."""

    def run(self, on_event: OnEvent) -> tuple[list[Path], list[str]]:
        """Write a folder for each method (and request, and seed) below `job.out`, and one of the original and of each
        reference; those folders, and what each method that failed said."""
        job, benchmark = self.job, self.job.benchmark
        if not isinstance(benchmark, RequestBenchmark):
            name = type(benchmark).__name__
            raise UsageRefused(f"--method: {name} measures a model. Let `expunge forget` make one, and measure that.")
        names = [ORIGINAL, BEFORE, *job.names(), *self.methods]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise UsageRefused(
                f"'{twice}' is the name of two models; {ORIGINAL} and {BEFORE} are those that a method begins with. "
                f"Name references and methods otherwise, NAME=..."
            )
        data = find_data(job.data, benchmark.home)
        with lock(job.out) if is_main() else nullcontext():
            on_event(Note(f"Loading {job.model}"))
            model = open_model(job.model, job.device, adapter=job.adapter)
            stages = benchmark.stages(data, network_of(model, "bench"))
            originals = [_examine(benchmark, model, stage, None) for stage in stages]
            bench = _Bench(job, benchmark, stages, model, originals, _references(job, benchmark, stages, on_event))
            made, failed = list(bench.write_yardsticks()), []
            for name, method in self.methods.items():
                for ending, own in self._with_seeds(method):
                    on_event(Note(f"{name}{ending}: {write(own)}"))
                    try:
                        for out in bench.forget(name, ending, own, on_event):
                            made.append(out)
                    except Refusal as error:
                        if world_size() > 1:
                            raise  # the others wait in the middle of a step
                        failed.append(f"{name}{ending}: {error}")
                        on_event(Note(f"Warning: {failed[-1]}"))
        return made, failed

    def _with_seeds(self, method: Method) -> Iterator[tuple[str, Method]]:
        """The method with each seed, and where its folder is below the method's; one that draws nothing, once."""
        for seed in self.seeds:
            try:
                yield f"/seed-{seed}", method.with_seed(seed)
            except UsageRefused:
                yield f"/seed-{seed}", method
                return
        if not self.seeds:
            yield "", method


def _references(
    job: Job, benchmark: RequestBenchmark, stages: list[Stage], on_event: OnEvent
) -> list[dict[str, Values]]:
    """The values of each reference after each stage."""
    found: list[dict[str, Values]] = [{} for _ in stages]
    for name, place in job.names().items():
        if (Path(place) / RESULT).is_file():
            raise DataRefused(
                f"--reference {place}: with --method a reference is a model, not a result. Give the model."
            )
        on_event(Note(f"Loading the reference {place}"))
        model = open_model(place, job.device)
        for stage, values in zip(stages, found, strict=True):
            values[name] = _examine(benchmark, model, stage, _training_time(Path(place)))
    return found


def _training_time(place: Path) -> float | None:
    """Seconds that a model which `expunge train` wrote was trained for."""
    return Training.read(place).cost.seconds.get("train") if (place / TRAINING).is_file() else None


def _examine(benchmark: RequestBenchmark, model: Model, stage: Stage, seconds: float | None) -> Values:
    together = ask_together(network_of(model, "bench"))
    found = benchmark.examine(model, stage, CachedModel(together, shared_store()))
    return found if seconds is None else found.join(Values({Column("run", "seconds"): {0: seconds}}))


@dataclass(frozen=True)
class _Bench:
    """What all methods have in common."""

    job: Job
    benchmark: RequestBenchmark
    stages: list[Stage]
    model: Model
    originals: list[Values]
    """Of the model before everything, by stage, as are those of each reference."""
    references: list[dict[str, Values]]

    def write_yardsticks(self) -> Iterator[Path]:
        """The folders of the model before everything and of each reference, after the last stage."""
        original, others, names = self.originals[-1], self.references[-1], self.job.names()
        yield self._write(ORIGINAL, Measured(original, others, self.model.fingerprint(), names, {}))
        for name, values in others.items():
            yield self._write(name, Measured(values, {ORIGINAL: original}, "", {ORIGINAL: self.job.model}, {}))

    def forget(self, name: str, ending: str, method: Method, on_event: OnEvent) -> Iterator[Path]:
        """Let a method do one request after the other, and write a folder of each."""
        model = self.model
        for k, stage in enumerate(self.stages):
            known, names = {ORIGINAL: self.originals[k]}, {ORIGINAL: self.job.model}
            if k:
                known[BEFORE] = _examine(self.benchmark, model, stage, None)
                names[BEFORE] = f"after {k} requests"
            start = time.monotonic()
            model = method.fit(model, stage.request, on_event)(model, stage.request, on_event).plain()
            seconds = time.monotonic() - start
            values, references = _examine(self.benchmark, model, stage, seconds), {**known, **self.references[k]}
            names |= self.job.names()
            made = Measured(values, references, model.fingerprint(), names, {"forget": seconds}, write(method))
            yield self._write(f"{name}-{k + 1}{ending}" if len(self.stages) > 1 else f"{name}{ending}", made)

    def _write(self, name: str, measured: Measured) -> Path:
        out = self.job.out / name
        measured.write(self.job, out)
        return out
