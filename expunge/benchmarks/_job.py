"""A model evaluated on a benchmark, from its files to a folder that holds the values and what they come to."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from expunge.benchmarks._data import Data, find_data
from expunge.benchmarks._kinds import Benchmark
from expunge.benchmarks._numbers import Number
from expunge.benchmarks._values import Values
from expunge.core.model import Model, Network
from expunge.errors import DataRefused, UsageRefused
from expunge.events import Note, OnEvent
from expunge.models.open import open_model
from expunge.notation.parse import parse, write
from expunge.notation.typed_json import MisfitError, from_json, to_json
from expunge.report.record import VERSION, now
from expunge.runtime.atomic_files import check_manifest, lock, whole_folder, write_manifest, write_text
from expunge.runtime.cached_model import CachedModel
from expunge.runtime.parallel_model import ask_together, shared_store
from expunge.runtime.processes import is_main, shared_folder

SCHEMA = 1
RESULT, VALUES = "bench.json", "values.parquet"
"""What a folder of a result holds; beside them a table for each reference, in `references/`."""
REFERENCES = "references"


@dataclass(frozen=True)
class Result:
    """What a benchmark said of a model; the format of `bench.json`."""

    schema: int
    expunge: str
    created: str
    command: str
    """What was typed."""
    benchmark: str
    """In the notation: its settings, and so the definition of every number."""
    model: str
    fingerprint: str
    """SHA-256 of the model's weights."""
    references: tuple[tuple[str, str], ...]
    """Name and origin of each."""
    numbers: tuple[Number, ...]
    seconds: dict[str, float] = field(default_factory=dict)
    method: str = ""
    """What made the model forget, in the notation; empty where the model was measured as it is."""

    @staticmethod
    def read(folder: Path) -> Result:
        """The result in a folder, compared with its manifest. Raises `DataRefused`."""
        if not (folder / RESULT).is_file():
            raise DataRefused(f"{folder}: holds no {RESULT}. Give a folder that `expunge bench` wrote.")
        check_manifest(folder)
        try:
            return from_json(Result, json.loads((folder / RESULT).read_text(encoding="utf-8")))
        except (MisfitError, ValueError, RecursionError) as error:
            raise DataRefused(f"{folder / RESULT}: not a result of this version. Evaluate the model anew.") from error


@dataclass(frozen=True)
class Job:
    """A model, by its files, on a benchmark."""

    benchmark: Benchmark
    model: str
    out: Path
    data: str | None = None
    references: tuple[str, ...] = ()
    """Models, logs, or folders of other results."""
    adapter: Path | None = None
    device: str = "cpu"
    line: str = ""

    def names(self) -> dict[str, str]:
        """Each reference by its name: what stands before `=`, or the last part of its path."""
        pairs = [name_reference(text) for text in self.references]
        if len(dict(pairs)) < len(pairs):
            raise UsageRefused("Two references have one name. Tell them apart: --reference NAME=PLACE.")
        return dict(pairs)


def name_reference(text: str) -> tuple[str, str]:
    """The name and the place of a reference that is written NAME=PLACE, or PLACE alone."""
    named = re.fullmatch(r"([A-Za-z][\w-]*)=(.+)", text)
    if named and not Path(text).exists():
        return named[1], named[2]
    return Path(text.partition("@")[0]).name.removesuffix(".gz").removesuffix(".json"), text


def evaluate(job: Job, on_event: OnEvent) -> Result:
    """Evaluate, and write `job.out`, all of it or nothing."""
    data, names = find_data(job.data, job.benchmark.home), job.names()
    seconds: dict[str, float] = {}
    with lock(job.out) if is_main() else nullcontext():
        with time_part(seconds, "model"):
            on_event(Note(f"Loading {job.model}"))
            model = open_model(job.model, job.device, adapter=job.adapter)
            values = _measure(job.benchmark, model, data, on_event)
            fingerprint = model.fingerprint()
        del model
        with time_part(seconds, "references"):
            references = {name: _refer(job, text, data, on_event) for name, text in names.items()}
        return Measured(values, references, fingerprint, names, seconds).write(job, job.out)


@dataclass(frozen=True)
class Measured:
    """What was measured of a model, and of the references beside it."""

    values: Values
    references: Mapping[str, Values]
    fingerprint: str
    names: Mapping[str, str]
    """Where each reference is from."""
    seconds: dict[str, float]
    method: str = ""
    """What made the model forget, in the notation; empty where nothing did here."""

    def write(self, job: Job, out: Path) -> Result:
        """The folder of a result, all of it or nothing."""
        numbers = job.benchmark.numbers(self.values, self.references)
        result = Result(
            SCHEMA, VERSION, now(), job.line, write(job.benchmark), job.model, self.fingerprint,
            tuple(self.names.items()), tuple(numbers), self.seconds, self.method,
        )  # fmt: skip
        with shared_folder(whole_folder(out)) as folder:
            if is_main():
                _write(job.benchmark, result, self.values, self.references, folder)
        return result


def _measure(benchmark: Benchmark, model: Model, data: Data, on_event: OnEvent) -> Values:
    together = ask_together(model) if isinstance(model, Network) else model
    return benchmark.measure(model, data, CachedModel(together, shared_store()), on_event)


def _refer(job: Job, text: str, data: Data, on_event: OnEvent) -> Values:
    """The values of a reference: from a log, from the folder of another result, or of a model that is evaluated too."""
    path = Path(text)
    if (path / RESULT).is_file():
        Result.read(path)
        return Values.read(path / VALUES)
    if path.is_file() and path.suffix != ".gguf":
        form = job.benchmark.form
        if form is None:
            name = type(job.benchmark).__name__
            raise DataRefused(f"{path}: logs of {name} are not read. Give a model, or a folder of an earlier result.")
        return form.read(path)
    on_event(Note(f"Loading the reference {text}"))
    return _measure(job.benchmark, open_model(text, job.device), data, on_event)


def _write(
    benchmark: Benchmark, result: Result, values: Values, references: Mapping[str, Values], folder: Path
) -> None:
    values.save(folder / VALUES)
    (folder / REFERENCES).mkdir()
    for place, reference in enumerate(references.values()):
        reference.save(folder / REFERENCES / f"{place}.parquet")
    if benchmark.form is not None:
        write_text(folder / benchmark.form.file, benchmark.form.write(values, result.numbers))
    write_text(folder / RESULT, json.dumps(to_json(result), indent=1, allow_nan=False))
    write_manifest(folder, kind="benchmark")


def recompute(folder: Path) -> tuple[Result, list[Number]]:
    """A result, and its numbers made anew from the values in its folder."""
    result = Result.read(folder)
    benchmark = parse(result.benchmark)
    if not isinstance(benchmark, Benchmark):
        raise DataRefused(f"{folder / RESULT}: its benchmark is none. Evaluate the model anew.")
    named = enumerate(name for name, _ in result.references)
    references = {name: Values.read(folder / REFERENCES / f"{place}.parquet") for place, name in named}
    return result, benchmark.numbers(Values.read(folder / VALUES), references)


@contextmanager
def time_part(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note how long a part takes."""
    start = time.monotonic()
    yield
    seconds[name] = time.monotonic() - start
