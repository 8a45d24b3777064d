"""One job with several seeds, run after run, and a table of what they came to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from expunge.cli.jobs import at_work, do_one
from expunge.cli.options import Output
from expunge.cli.progress import Progress
from expunge.cli.summary import print_json
from expunge.errors import THRESHOLDS_MISSED, RunFailed, UsageRefused
from expunge.events import Note
from expunge.notation.parse import write
from expunge.notation.typed_json import to_json
from expunge.report.report import Report
from expunge.report.seeds import SEEDS, Seeds, gather
from expunge.report.words import number, visible
from expunge.run.checks import check_out
from expunge.run.config import CONFIG, write_toml
from expunge.run.job import Job
from expunge.runtime.atomic_files import MANIFEST, check_manifest, write_text
from expunge.runtime.processes import is_main, world_size

GRAVEST = (RunFailed.code, THRESHOLDS_MISSED, 0)
"""Exit codes of runs, the worst first."""


def do_seeds(job: Job, seeds: tuple[int, ...], device: str, output: Output) -> int:
    """Run the job with each seed into a folder of its own, show the table and write it; the worst exit code."""
    if not job.resume:
        check_out(job.out, job.model, job.adapter)
    runs: dict[int, Report | None] = {}
    exits: dict[int, int] = {}
    with at_work(device, output) as (own, progress):
        for seed in seeds:
            one = replace(job, seed=seed, out=job.out / f"seed-{seed}", device=own)
            runs[seed], exits[seed] = run_or_read(one, progress)
        told = gather(runs, exits)
        _refuse_others(runs)
        shows = is_main()  # afterwards there is but one process
        if shows:
            write_text(job.out / SEEDS, json.dumps(to_json(told), indent=1))
    if shows:
        show_seeds(told, job.out, output)
    return min(exits.values(), key=GRAVEST.index)


def run_or_read(job: Job, progress: Progress) -> tuple[Report | None, int]:
    """The report and the exit code of one run of several; one that is there already is read."""
    made = _read_finished(job) if job.resume else None
    if made is not None:
        progress(Note(f"{job.out} is complete"))
    else:
        progress(Note(f"Forgetting into {job.out}"))
        begun = job.checkpoints()
        job = replace(job, resume=job.resume and begun is not None and begun.folder.is_dir())
        try:
            made = do_one("forget", job, progress)
        except RunFailed as error:
            if world_size() > 1:
                raise  # the others wait in the middle of a step
            typer.echo(error.line(), err=True)
            return None, error.code
    return made, 0 if made.is_met else THRESHOLDS_MISSED


def _read_finished(job: Job) -> Report | None:
    """The report of a run that is complete; None where there is none. Refuses one of other options."""
    if not (job.out / MANIFEST).is_file():
        return None
    check_manifest(job.out)
    config = job.out / CONFIG
    chosen, _, _ = job.check_names()
    if not config.is_file() or config.read_text(encoding="utf-8") != write_toml(job.options(write(chosen.method))):
        raise UsageRefused(f"{job.out} is of a run with other options (its {CONFIG} says which). Give another --out.")
    return Report.read(job.out)


def _refuse_others(runs: dict[int, Report | None]) -> None:
    """Refuse to average over runs of another model or of other records."""
    facts = {(r.original.fingerprint, r.request.fingerprint) for r in runs.values() if r is not None}
    if len(facts) > 1:
        raise UsageRefused("The runs are not of one model and the same records: a file has changed. Give a new --out.")


def show_seeds(told: Seeds, out: Path, output: Output) -> None:
    """Print the table as a person or as a program reads it."""
    if output.json:
        print_json(to_json(told))
    elif not output.quiet:
        console = Console(highlight=False)
        if not console.is_terminal:
            console.width = max(console.width, 120)
        console.print(_table(told))
        for line in _verdicts(told, out):
            console.print(line, soft_wrap=True, markup=False)


def _table(told: Seeds) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("set", "audit", "before", "mean after", "± between seeds", "worst", "ideal"):
        table.add_column(column, justify="left" if column in ("set", "audit") else "right")
    shown = ""
    for each in told.findings:
        numbers = (each.before, each.mean, each.deviation, each.worst, each.ideal)
        table.add_row("" if each.set == shown else str(visible(each.set)), each.audit, *map(number, numbers))
        shown = each.set
    return table


def _verdicts(told: Seeds, out: Path) -> Iterator[str]:
    yield ""
    for seed, verdict, code in zip(told.seeds, told.verdicts, told.exits, strict=True):
        said = ", ".join(f"{name} {answer}" for name, answer in verdict.items())
        yield f"Seed {seed}: {said or f'the run failed (exit code {code})'}"
    yield f"\n{len(told.seeds)} runs, each in {out / 'seed-N'}; the table: {out / SEEDS}"
