"""The command line. Torch is imported only where a command needs it, so that help and mistakes answer at once."""

from __future__ import annotations

import os
import shlex
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from expunge import __version__
from expunge.cli.ending import check_room_for_torch, run_guarded
from expunge.cli.export import EXAMPLES, export
from expunge.cli.options import (
    Adapter,
    Audits,
    Device,
    Devices,
    Hold,
    Images,
    Judging,
    Keeping,
    Model,
    Out,
    Sets,
    Texts,
    Training,
    present,
    spread_options,
)
from expunge.cli.quiet import ask_for_quiet, quiet_libraries
from expunge.cli.signals import Interrupts, heed_signals
from expunge.errors import THRESHOLDS_MISSED

if TYPE_CHECKING:
    from expunge.run.job import Job

STARTED = time.monotonic()
"""What a run's clock counts from: it includes the seconds in which torch is loaded."""

app = typer.Typer(
    name="expunge",
    help="Makes trained networks forget chosen data, and shows how far they did.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a traceback could hold text that was to be forgotten
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 2 usage, 3 data refused, 4 model refused, 5 run failed, 6 the verdict says no, "
    "7 environment, 130 interrupted.",
)


@app.command(
    epilog="Examples, of texts and of images:\n\n"
    "expunge forget ./my-model --forget forget.jsonl --retain retain.jsonl --holdout holdout.jsonl --out forgotten\n\n"
    "expunge forget ./my-vit --forget ./pictures --forget-class cat --method 'Finetune(stop=Stop(level=3.0))'\n\n"
    "`expunge list` shows what --method and --audits can name, `expunge list NPO` the settings of one."
)
@spread_options
def forget(
    model: Model,
    sets: Sets,
    images: Images,
    texts: Texts,
    training: Training,
    judging: Judging,
    keeping: Keeping,
    adapter: Adapter = None,
    audits: Audits = None,
    out: Out = Path("expunged"),
    device: Device = "cpu",
    hold: Hold = "whole",
) -> None:
    """Make MODEL forget, audit it before and after, and write model, adapter, steps and report to a new folder."""
    job = _job(model, sets, audits, out, images, texts, training, judging, keeping, hold, adapter)
    _do("forget", job, judging.show_text, device)


@app.command(
    epilog="Example:\n\nexpunge audit ./my-model --forget forget.jsonl --holdout holdout.jsonl --audits 'Loss, MinK()'"
)
@spread_options
def audit(
    model: Model,
    sets: Sets,
    images: Images,
    texts: Texts,
    judging: Judging,
    adapter: Adapter = None,
    audits: Audits = None,
    out: Out = Path("audited"),
    device: Device = "cpu",
    hold: Hold = "whole",
) -> None:
    """Audit MODEL as it is, and write a report to a new folder."""
    job = _job(model, sets, audits, out, images, texts, judging=judging, hold=hold, adapter=adapter)
    _do("audit", job, judging.show_text, device)


@app.command(epilog="Example:\n\nexpunge report forgotten another-run --out comparison.html")
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders that hold a report.json.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write: .html, or a table as .csv, .md or .tex.")
    ] = None,
) -> None:
    """Write one folder's report page again, or a comparison of several runs; or their numbers as a table."""
    from expunge.report.pages import write_page

    typer.echo(f"Wrote {write_page(folders, out, lambda told: typer.echo(told, err=True))}")


def _nameable(begun: str) -> list[str]:
    from expunge.cli.listing import nameable

    return [name for name in nameable() if name.startswith(begun)]


@app.command("list", epilog="Examples:\n\nexpunge list objectives\n\nexpunge list NPO")
def list_(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[KIND|NAME]",
            help="methods, objectives, audits, ...; or a name, for its formula and settings.",
            autocompletion=_nameable,
        ),
    ] = None,
) -> None:
    """List what can be named in a method or an audit with a line on each, or tell all of one."""
    from expunge.cli.listing import TITLES, describe

    for line in describe(what):
        typer.secho(line, bold=line in TITLES.values())


@app.command()
def cache(clear: Annotated[bool, typer.Option("--clear", help="Remove all of it.")] = False) -> None:
    """Show where answers of unchanged models are kept between runs (EXPUNGE_CACHE=FOLDER or off), or clear them."""
    from expunge.runtime.answer_store import PLACE, default_folder, store_of_environment

    os.environ.setdefault(PLACE, default_folder())
    store = store_of_environment()
    if store is None:
        typer.echo(f"{PLACE}=off: nothing is kept.")
        return
    count, held = store.size()
    if clear:
        store.clear()
    typer.echo(f"{store.path}: {count} answers, {held / 1e6:.1f} MB{', removed' if clear else ''}")


@app.command()
@spread_options
def plan(
    model: Model,
    sets: Sets,
    images: Images,
    texts: Texts,
    training: Training,
    devices: Devices,
    adapter: Adapter = None,
    audits: Audits = None,
    out: Out = Path("expunged"),
    json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Say what `forget` with the same options will cost: tokens, FLOPs, memory, disk, time. Runs and loads nothing."""
    devices.check()
    job = _job(model, sets, audits, out, images, texts, training, hold=devices.hold, adapter=adapter)
    from expunge.cli.plan_table import say
    from expunge.plan.machine import Machine

    memory = None if devices.device_memory is None else 1e9 * devices.device_memory
    rate = None if devices.rate is None else 1e12 * devices.rate
    say(job, Machine(devices.device, devices.processes, memory, devices.dtype, rate, devices.hold), json)


@app.command()
def demo(out: Annotated[Path, typer.Option("--out", help="New folder for the result.")] = Path("expunge-demo")) -> None:
    """Make a real language model (SmolLM2-135M-Instruct) forget a country, in minutes, on a CPU."""
    from expunge.demo.run import demo_job

    _do("forget", demo_job(out), show_text=True, device="cpu")


app.command(epilog=EXAMPLES)(export)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"expunge {__version__}")
        raise typer.Exit


def _job(
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
    """The job that the options ask for; names and files are looked at before anything is imported to do it."""
    from expunge.notation.parse import check_names
    from expunge.notation.recipes import check_method
    from expunge.notation.settings import check_settings

    images, training = images or Images(), training or Training()
    texts = texts or Texts()
    judging, keeping = judging or Judging(), keeping or Keeping()
    if training.method is not None:
        check_method(training.method)
    if audits:
        check_names(audits)
        check_settings(audits)
    sets.check()
    keeping.check()
    present("--adapter", adapter)
    present("--stand-in", training.stand_in)
    probes, template = sets.probes(), texts.template()
    check_room_for_torch()
    _starting(model)
    from expunge.data.text import Reading
    from expunge.run.job import Job
    from expunge.run.prepare import Inputs

    reading = Reading(texts.system, template, texts.block_size)
    files = (sets.forget, sets.retain, sets.holdout, training.stand_in)
    return Job(
        model=model,
        inputs=Inputs(
            *files,
            probes=probes,
            only_class=images.forget_class,
            only_ids=images.forget_ids,
            reading=reading,
            keep_duplicates=texts.keep_duplicates,
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
        hold=cast(Any, hold),  # it refuses others
    )


def _starting(model: str) -> None:
    """Tell who waits at a terminal what is going on before anything can show its progress."""
    if sys.stderr.isatty() and os.environ.get("RANK", "0") == "0":
        typer.secho("Starting torch and transformers ...", dim=True, err=True)
        if not Path(model).exists() and not model.startswith((".", "/", "~")):
            typer.echo(f"No folder here is called {model}: it will be looked up on the hub.", err=True)


def _do(verb: str, job: Job, show_text: bool, device: str) -> None:
    from dataclasses import replace

    from rich.console import Console

    from expunge.cli.progress import Progress
    from expunge.primitives.out_of_memory import report_smaller_batches
    from expunge.run import job as jobs
    from expunge.runtime.answer_store import PLACE, default_folder
    from expunge.runtime.processes import is_main, processes

    os.environ.setdefault(PLACE, default_folder())

    line = shlex.join(["expunge", *sys.argv[1:]])
    with processes(device) as own:
        with (
            Progress(None if is_main() else Console(quiet=True), STARTED) as progress,
            report_smaller_batches(progress.say),
        ):
            do = {"forget": jobs.forget, "audit": jobs.audit}[verb]
            try:
                made = do(replace(job, show_text=show_text, device=own, line=line), progress)
            finally:
                if (job.out / "MANIFEST.json").is_file():
                    Interrupts.left = f"the result is in {job.out}"
        if is_main():
            progress.summary(made, job.out)
    if not made.is_met:
        raise typer.Exit(THRESHOLDS_MISSED)


def main() -> None:
    """Run the command; every refusal is one line and an exit code of its own."""
    heed_signals()
    ask_for_quiet()
    debug = bool(os.environ.get("EXPUNGE_DEBUG"))
    with nullcontext() if debug else quiet_libraries():
        code = run_guarded(lambda: app(standalone_mode=False), debug)
    sys.exit(code)


if __name__ == "__main__":
    main()
