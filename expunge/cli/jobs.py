"""From options to a job, and the job done: names, files and columns are looked at before torch is loaded."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from expunge.cli.ending import check_room_for_torch
from expunge.cli.options import (
    HOLDS,
    Devices,
    Images,
    Judging,
    Keeping,
    Output,
    Sets,
    Texts,
    Training,
    one_of,
    present,
)
from expunge.cli.signals import Interrupts
from expunge.errors import THRESHOLDS_MISSED

if TYPE_CHECKING:
    from expunge.cli.progress import Progress
    from expunge.plan.machine import Machine
    from expunge.report.report import Report
    from expunge.run.job import Job

STARTED = time.monotonic()
"""What a run's clock counts from: it includes the seconds in which torch is loaded."""


def make_job(
    model: str,
    sets: Sets,
    audits: str | None,
    out: Path,
    images: Images | None = None,
    texts: Texts | None = None,
    training: Training | None = None,
    judging: Judging | None = None,
    keeping: Keeping | None = None,
    hold: str = "whole",
    adapter: Path | None = None,
) -> Job:
    """The job that the options ask for; a wrong name, file or column is refused before torch is loaded."""
    from expunge.cli.benchmarks import fill
    from expunge.data.text import Reading
    from expunge.notation.parse import check_names
    from expunge.notation.recipes import check_method
    from expunge.notation.rules import split_rule
    from expunge.notation.settings import check_audits, check_settings
    from expunge.run.checks import check_model, check_out, check_sets, check_texts, check_viewer
    from expunge.run.earlier import find_sets

    images, training = images or Images(), training or Training()
    texts = texts or Texts()
    judging, keeping = judging or Judging(), keeping or Keeping()
    if training.method is not None:
        check_method(training.method)
    if audits:
        check_names(audits)
        check_settings(audits)
        check_audits(audits)
    for rule in judging.require or ():
        split_rule(rule)
    one_of("--hold", hold, HOLDS)
    sets = fill(sets)
    assert sets.forget is not None
    sets.check()
    keeping.check()
    if keeping.log_to is not None:
        check_viewer(keeping.log_to)
    present("--adapter", adapter)
    if not keeping.resume:  # several seeds go on in a folder that is there
        check_out(out, model, adapter)
    present("--stand-in", training.stand_in)
    present("--forget-ids", images.forget_ids)
    earlier, template = find_sets(sets.earlier or ()), texts.template()
    probes = {**earlier, **sets.probes()}
    check_sets(probes, sets.retain, images.forget_class, images.forget_ids)
    reading = Reading(texts.system, template, texts.block_size, texts.read_columns())
    files = {"forget": sets.forget, "retain": sets.retain, "holdout": sets.holdout, "stand_in": training.stand_in}
    if images.forget_class is None and images.forget_ids is None:
        check_texts([path for path in {**files, **probes}.values() if path is not None], reading)
    for named in filter(None, (model, judging.reference)):
        check_model(named)
    check_room_for_torch()
    starting(model)
    from expunge.run.job import Job
    from expunge.run.prepare import Inputs

    return Job(
        model=model,
        inputs=Inputs(
            forget=sets.forget,
            retain=sets.retain,
            holdout=sets.holdout,
            stand_in=training.stand_in,
            probes=probes,
            only_class=images.forget_class,
            only_ids=images.forget_ids,
            reading=reading,
            keep_duplicates=texts.keep_duplicates,
            earlier=tuple(sets.earlier or ()),
        ),
        out=out,
        adapter=adapter,
        method=training.method,
        audits=audits,
        reference=judging.reference,
        seed=training.seed,
        added_probes=training.added_probes,
        require=tuple(judging.require or ()),
        checkpoint_every=keeping.checkpoint_every,
        resume=keeping.resume,
        dtype=keeping.dtype,
        log_to=keeping.log_to,
        hold=cast(Any, hold),  # it refuses others
        show_text=judging.show_text,
        line=shlex.join(["expunge", *sys.argv[1:]]),
    )


def starting(model: str) -> None:
    """Tell who waits at a terminal what is going on before anything can show its progress."""
    if sys.stderr.isatty() and os.environ.get("RANK", "0") == "0":
        typer.secho("Starting torch and transformers ...", dim=True, err=True)
        if not Path(model).exists() and not model.startswith((".", "/", "~")):
            typer.echo(f"No folder here is called {model}: it will be looked up on the hub.", err=True)


@contextmanager
def at_work(device: str, output: Output, doing: str = "Forgetting") -> Iterator[tuple[str, Progress]]:
    """All processes of a command and what they show meanwhile; yields this one's device and its progress."""
    from rich.console import Console

    from expunge.cli.progress import Progress
    from expunge.primitives.out_of_memory import report_smaller_batches
    from expunge.runtime.answer_store import PLACE, default_folder
    from expunge.runtime.processes import is_main, processes

    os.environ.setdefault(PLACE, default_folder())
    with processes(device) as own:
        quiet = Console(quiet=True) if output.quiet or not is_main() else None
        with Progress(quiet, STARTED, doing) as progress, report_smaller_batches(progress.say):
            yield own, progress


def do_one(verb: str, job: Job, progress: Progress) -> Report:
    """Do a job; the report of it."""
    from expunge.run import job as jobs

    do = {"forget": jobs.forget, "audit": jobs.audit}[verb]
    try:
        return do(job, progress)
    finally:
        if (job.out / "MANIFEST.json").is_file():
            Interrupts.left = f"the result is in {job.out}"


def do_job(verb: str, job: Job, device: str, output: Output) -> int:
    """Do a job and show what came of it; its exit code."""
    from expunge.cli.summary import print_json, summarise
    from expunge.runtime.processes import is_main

    with at_work(device, output) as (own, progress):
        made, shows = do_one(verb, replace(job, device=own), progress), is_main()  # afterwards there is but one process
    if shows and output.json:
        print_json(summarise(made, job.out))
    elif shows and not output.quiet:
        progress.summary(made, job.out)
    return 0 if made.is_met else THRESHOLDS_MISSED


def show_plan(job: Job, devices: Devices, as_json: bool) -> None:
    """Print what a job will cost on some devices."""
    from expunge.cli.plan_table import say

    say(job, machine_of(devices), as_json)


def machine_of(devices: Devices) -> Machine:
    """The machine that a run is planned for."""
    from expunge.plan.machine import Machine

    memory = None if devices.device_memory is None else 1e9 * devices.device_memory
    rate = None if devices.rate is None else 1e12 * devices.rate
    return Machine(devices.device, devices.processes, memory, devices.dtype, rate, devices.hold)
