"""The command line. Torch is imported only where a command needs it, so that help and mistakes answer at once."""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from expunge import __version__
from expunge.cli.bench import bench
from expunge.cli.ending import run_guarded
from expunge.cli.export import EXAMPLES, export
from expunge.cli.jobs import do_job, make_job, show_plan
from expunge.cli.options import (
    Adapter,
    Audits,
    Config,
    Device,
    Devices,
    DryRun,
    Hold,
    Images,
    Judging,
    Keeping,
    Model,
    Out,
    Output,
    Records,
    Sets,
    Texts,
    Training,
    Without,
    check_device,
    read_seeds,
    spread_options,
)
from expunge.cli.quiet import ask_for_quiet, quiet_libraries
from expunge.cli.select import EXAMPLES as CHOICES
from expunge.cli.select import select
from expunge.cli.signals import heed_signals
from expunge.cli.sweep import EXAMPLES as SWEEPS
from expunge.cli.sweep import sweep
from expunge.cli.train import EXAMPLES as LESSONS
from expunge.cli.train import Lesson, Taught, plan_lesson, train
from expunge.errors import UsageRefused

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
    output: Output,
    adapter: Adapter = None,
    audits: Audits = None,
    out: Out = Path("expunged"),
    device: Device = "cpu",
    hold: Hold = "whole",
    seeds: Annotated[
        str | None, typer.Option("--seeds", help="Several runs, such as 0-4 or 0,3,7: OUT/seed-0, ..., and a table.")
    ] = None,
    dry_run: DryRun = False,
    config: Config = None,
) -> None:
    """Make MODEL forget, audit it before and after, and write model, adapter, steps and report to a new folder."""
    check_device(device)
    chosen = None if seeds is None else read_seeds(seeds, training.seed)
    job = make_job(model, sets, audits, out, images, texts, training, judging, keeping, hold, adapter)
    if dry_run:
        show_plan(job, Devices(device, hold=hold, processes=int(os.environ.get("WORLD_SIZE", "1"))), output.json)
    elif chosen is None:
        raise typer.Exit(do_job("forget", job, device, output))
    else:
        from expunge.cli.seeds import do_seeds

        raise typer.Exit(do_seeds(job, chosen, device, output))


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
    output: Output,
    adapter: Adapter = None,
    audits: Audits = None,
    out: Out = Path("audited"),
    device: Device = "cpu",
    hold: Hold = "whole",
    config: Config = None,
) -> None:
    """Audit MODEL as it is, and write a report to a new folder."""
    check_device(device)
    job = make_job(model, sets, audits, out, images, texts, judging=judging, hold=hold, adapter=adapter)
    raise typer.Exit(do_job("audit", job, device, output))


@app.command(epilog="Example:\n\nexpunge report forgotten another-run --out comparison.html")
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders that hold a report.json.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write: .html, or a table as .csv, .md or .tex.")
    ] = None,
    texts: Annotated[
        Path | None, typer.Option("--texts", help="The forget file, which opens the texts that runs keep sealed.")
    ] = None,
) -> None:
    """Write one folder's report page again, or a comparison of several runs; or their numbers as a table."""
    from expunge.report.pages import write_page

    typer.echo(f"Wrote {write_page(folders, out, lambda told: typer.echo(told, err=True), texts)}")


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
    data: Records = None,
    without: Without = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON, and nothing else to standard output.")
    ] = False,
    config: Config = None,
) -> None:
    """Say what `forget`, or with --data `train`, will cost: tokens, FLOPs, memory, disk, time. Runs nothing."""
    devices.check()
    if data or without or (sets.forget is None and (training.method or "").startswith("Train(")):
        if sets != Sets(benchmark=sets.benchmark, split=sets.split) or audits:
            raise UsageRefused("Give --data FILE, to plan `train`, or --forget FILE and others, to plan `forget`.")
        method = training.method or Taught.method
        taught = Taught(data, without, sets.benchmark, sets.split, method, training.seed)
        plan_lesson(Lesson(model, taught, texts, Keeping(), adapter, out).check(), devices, json)
        return
    job = make_job(model, sets, audits, out, images, texts, training, hold=devices.hold, adapter=adapter)
    show_plan(job, devices, json)


@app.command()
def demo(out: Annotated[Path, typer.Option("--out", help="New folder for the result.")] = Path("expunge-demo")) -> None:
    """Make a real language model (SmolLM2-135M-Instruct) forget a country, in minutes, on a CPU."""
    from expunge.demo.run import demo_job

    job = replace(demo_job(out), show_text=True, line=shlex.join(["expunge", *sys.argv[1:]]))
    raise typer.Exit(do_job("forget", job, "cpu", Output()))


app.command(epilog=LESSONS)(train)
app.command(epilog=SWEEPS)(sweep)
app.command(epilog=EXAMPLES)(export)
app.command(epilog=CHOICES)(select)
app.add_typer(bench)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"expunge {__version__}")
        raise typer.Exit


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
