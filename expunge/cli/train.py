"""`expunge train`: a model learns records, by the same loop, checkpoints and processes as it forgets by."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from expunge.cli.benchmarks import Named
from expunge.cli.ending import check_room_for_torch
from expunge.cli.jobs import at_work, machine_of, starting
from expunge.cli.options import (
    Adapter,
    Benchmark,
    Config,
    Device,
    Devices,
    DryRun,
    Keeping,
    Model,
    Output,
    Records,
    Seed,
    Split,
    Texts,
    Without,
    check_device,
    present,
    spread_options,
)
from expunge.errors import UsageRefused

if TYPE_CHECKING:
    from expunge.data.text import Reading
    from expunge.run.train import TrainJob

EXAMPLES = (
    "Examples: learn everything, and once more without what will be forgotten:\n\n"
    "expunge train ./my-model --data records.jsonl --out trained --method 'Train(learning_rate=1e-5, epochs=5)'\n\n"
    "expunge train ./my-model --data records.jsonl --without forget.jsonl --out retrained\n\n"
    "`expunge list Train` shows the settings of --method."
)


@dataclass(frozen=True)
class Taught:
    """What is learnt, and how."""

    data: Records = None
    without: Without = None
    benchmark: Benchmark = None
    split: Split = None
    method: Annotated[str, Option("--method", help="Such as 'Train(adapter=LoRA(rank=16), learning_rate=1e-4)'.")] = (
        "Train()"
    )
    seed: Seed = None

    def with_files(self) -> Taught:
        """With the files of the split of the benchmark. Raises a `Refusal` where there is nothing to learn."""
        if self.benchmark is None and self.split is None:
            if not self.data:
                raise UsageRefused("There is nothing to learn. Give --data FILE, or --benchmark NAME --split SPLIT.")
            return self
        if self.data:
            raise UsageRefused("Give --data FILE, or --benchmark NAME --split SPLIT, not both.")
        whole, without = Named.read(self.benchmark, self.split).to_learn()
        return replace(self, data=[whole], without=[*(self.without or ()), *without])


@dataclass(frozen=True)
class Lesson:
    """What `train` was asked to do, all of it looked at before torch is loaded."""

    model: str
    taught: Taught
    texts: Texts
    keeping: Keeping
    adapter: Path | None
    out: Path

    def check(self) -> Lesson:
        """With the files of the split of the benchmark. Refuses a wrong name, file or column."""
        from expunge.notation.parse import check_names
        from expunge.notation.settings import check_settings
        from expunge.run.checks import check_model, check_out, check_texts, check_viewer

        taught, keeping = self.taught, self.keeping
        check_names(taught.method)
        check_settings(taught.method)
        keeping.check()
        if keeping.log_to is not None:
            check_viewer(keeping.log_to)
        present("--adapter", self.adapter)
        if not keeping.resume:
            check_out(self.out, self.model, self.adapter)
        taught = taught.with_files()
        files = {"--data": taught.data or (), "--without": taught.without or ()}
        for option, paths in files.items():
            for path in paths:
                present(option, path)
        check_texts([path for paths in files.values() for path in paths], self.reading())
        check_model(self.model)
        return replace(self, taught=taught)

    def reading(self) -> Reading:
        """How texts are read where their file does not say it."""
        from expunge.data.text import Reading

        texts = self.texts
        return Reading(texts.system, texts.template(), texts.block_size, texts.read_columns())

    def job(self, device: str = "cpu") -> TrainJob:
        """The job. Loads torch."""
        from expunge.run.train import Material, TrainJob

        taught, keeping = self.taught, self.keeping
        data, without = tuple(taught.data or ()), tuple(taught.without or ())
        return TrainJob(
            model=self.model,
            material=Material(data, without, self.reading(), self.texts.keep_duplicates),
            out=self.out,
            method=taught.method,
            seed=taught.seed,
            device=device,
            dtype=keeping.dtype,
            adapter=self.adapter,
            checkpoint_every=keeping.checkpoint_every,
            resume=keeping.resume,
            log_to=keeping.log_to,
            line=shlex.join(["expunge", *sys.argv[1:]]),
        )


@spread_options
def train(
    model: Model,
    taught: Taught,
    texts: Texts,
    keeping: Keeping,
    output: Output,
    adapter: Adapter = None,
    out: Annotated[Path, Option("--out", help="New folder for the result.")] = Path("trained"),
    device: Device = "cpu",
    dry_run: DryRun = False,
    config: Config = None,
) -> None:
    """Train MODEL on records, and write model, adapter, steps and what was learnt to a new folder."""
    check_device(device)
    lesson = Lesson(model, taught, texts, keeping, adapter, out).check()
    if dry_run:
        plan_lesson(lesson, Devices(device=device.partition(":")[0], dtype=keeping.dtype), output.json)
        return
    check_room_for_torch()
    starting(model)
    from expunge.cli.summary import print_json
    from expunge.notation.typed_json import to_json
    from expunge.run.train import train as do
    from expunge.runtime.processes import is_main

    with at_work(device, output, "Training") as (own, progress):
        made, shows = do(lesson.job(own), progress), is_main()
    if shows and output.json:
        print_json(to_json(made))
    elif shows and not output.quiet:
        first, last = made.losses[0], made.losses[-1]
        typer.echo(f"{made.data.records} records in {made.steps} steps: loss {first:.3f} before, {last:.3f} after.")
        typer.echo(f"Model:  {out / 'model'}")


def plan_lesson(lesson: Lesson, devices: Devices, as_json: bool) -> None:
    """Print what a training will cost on some devices."""
    check_room_for_torch()
    starting(lesson.model)
    from expunge.cli.plan_table import say_training

    say_training(lesson.job(), machine_of(devices), as_json)
