"""`expunge sweep`: one request with many settings and seeds, ranked on one half of the records and shown on both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Exit, Option

from expunge.cli.jobs import at_work, make_job
from expunge.cli.options import (
    Adapter,
    Audits,
    Config,
    Device,
    Hold,
    Images,
    Judging,
    Keeping,
    Model,
    Out,
    Output,
    Sets,
    Texts,
    Training,
    check_device,
    read_seeds,
    spread_options,
)
from expunge.errors import RunFailed, UsageRefused

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from expunge.report.sweep import Figures, Sweep
    from expunge.run.job import Job
    from expunge.run.sweep import Trial

EXAMPLES = (
    "Example:\n\nexpunge sweep ./my-model --forget forget.jsonl --retain retain.jsonl --holdout holdout.jsonl "
    "--method NPO --over learning_rate=1e-5,1e-4 --seeds 0-2 --out swept"
)


@spread_options
def sweep(
    model: Model,
    sets: Sets,
    images: Images,
    texts: Texts,
    training: Training,
    judging: Judging,
    keeping: Keeping,
    output: Output,
    over: Annotated[
        list[str] | None,
        Option(
            "--over",
            metavar="SETTING=VALUES",
            help="Such as learning_rate=1e-5,1e-4; several are combined. Bounded.rank=4,8 is that of a part.",
        ),
    ] = None,
    by: Annotated[
        str | None, Option("--by", metavar="SET.AUDIT", help="Rank by this number, such as forget.Loss, alone.")
    ] = None,
    adapter: Adapter = None,
    audits: Audits = None,
    out: Out = Path("swept"),
    device: Device = "cpu",
    hold: Hold = "whole",
    seeds: Annotated[str | None, Option("--seeds", help="Seeds of each setting, such as 0-4 or 0,3,7.")] = None,
    config: Config = None,
) -> None:
    """Forget with several settings and seeds; rank the runs on one half of the records, and show the other half."""
    from expunge.notation.recipes import check_method
    from expunge.notation.variants import read_over

    check_device(device)
    chosen = () if seeds is None else read_seeds(seeds, training.seed)
    pairs = [read_over(text) for text in over or ()]
    if len(dict(pairs)) < len(pairs):
        raise UsageRefused("--over names a setting twice. Give all of its values in one.")
    if not pairs and not chosen:
        raise UsageRefused("There is nothing to sweep. Give --over SETTING=VALUE,VALUE, or --seeds 0-2.")
    job = make_job(model, sets, audits, out, images, texts, training, judging, keeping, hold, adapter)
    asked = _trials(job, dict(pairs), chosen)
    for trial in asked:
        check_method(trial.variant.line)
    raise Exit(_do(job, asked, by, device, output))


def _trials(job: Job, over: Mapping[str, Sequence[str]], seeds: Sequence[int]) -> list[Trial]:
    from expunge.run.choose import default_method
    from expunge.run.families import family_reading
    from expunge.run.sweep import trials

    family = family_reading(job.inputs.kind).name
    named = job.method or default_method(family, job.inputs.holdout is not None)
    return trials(named, family, over, seeds)


def _do(job: Job, asked: Sequence[Trial], by: str | None, device: str, output: Output) -> int:
    """Make the runs that are not there, rank all, show the table and write it; the exit code."""
    from expunge.cli.seeds import run_or_read
    from expunge.cli.summary import print_json
    from expunge.notation.typed_json import to_json
    from expunge.run.job import pose
    from expunge.run.sweep import Ended, Ranking, make_all, table, write_table
    from expunge.runtime.processes import is_main

    with at_work(device, output) as (own, progress):
        job = replace(job, device=own)
        ranking = Ranking.of(pose(replace(job, method=asked[0].variant.line), progress)[0], by)

        def make(trial: Trial) -> Ended:
            one = replace(job, method=trial.variant.line, out=job.out / trial.folder)
            return run_or_read(one if trial.seed is None else replace(one, seed=trial.seed), progress)

        told, shows = table(ranking, make_all(asked, make, progress), job.method or "", job.line), is_main()
        if shows:
            write_table(told, job.out)
    if shows and output.json:
        print_json(to_json(told))
    elif shows and not output.quiet:
        _show(told, job.out)
    return told.best.exit if told.best else RunFailed.code


def _show(told: Sweep, out: Path) -> None:
    """Print the table, what ranked it, and where the best run lies."""
    from rich.console import Console
    from rich.table import Table

    from expunge.report.answers import NAMES
    from expunge.report.sweep import SWEEP

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 160)
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in (
        "",
        "run",
        *(f"{half}: {what}" for half in ("validation", "test") for what in _columns(told)),
        *NAMES,
    ):
        made.add_column(column, justify="left" if column in ("run", *NAMES) else "right")
    for run in told.runs:
        answers = [run.verdict.get(name, f"failed ({run.exit})") for name in NAMES]
        figures = [cell for half in (run.validation, run.test) for cell in _cells(half, len(_columns(told)))]
        made.add_row(str(run.place), run.folder, *figures, *answers)
    console.print(made)
    for line in (f"\n{told.rule}", "Ranked on the validation half; the test half shows what the choice is worth."):
        console.print(line, soft_wrap=True, markup=False)
    best = f"Best:  {out / told.best.folder}" if told.best else "Every run failed."
    console.print(f"{best}\nTable: {out / SWEEP}", soft_wrap=True, markup=False)


def _columns(told: Sweep) -> tuple[str, ...]:
    ruled = any(run.validation is not None and run.validation.by is not None for run in told.runs)
    return ("harm", "distance", "rule") if ruled else ("harm", "distance")


def _cells(figures: Figures | None, count: int) -> list[str]:
    """The figures of a half, in tolerances; with a rule of the user's, its number too."""
    from expunge.report.words import number

    said = [None] * 3 if figures is None else [figures.harm, figures.distance, figures.by]
    return ["" if value is None else number(value) for value in said[:count]]
