"""The command line. Torch is imported only where a command needs it, so that help and mistakes answer at once."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expunge import __version__
from expunge.core.errors import THRESHOLDS_MISSED, Refusal, UsageRefused

if TYPE_CHECKING:
    from expunge.job import Job

INTERRUPTED = 130

app = typer.Typer(
    name="expunge",
    help="Makes trained networks forget chosen data, and shows how far they did.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a traceback could hold text that was to be forgotten
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 2 usage, 3 data refused, 4 model refused, 5 run failed, 6 thresholds not met, "
    "7 environment, 130 interrupted.",
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Folder, FILE.gguf, or hub id (org/name@revision).")]
Forget = Annotated[Path, typer.Option("--forget", help="What to forget: .jsonl, .csv, .parquet, or an image folder.")]
Retain = Annotated[Path | None, typer.Option("--retain", help="What to keep; training holds on to it.")]
Holdout = Annotated[Path | None, typer.Option("--holdout", help="Like the forget set, but never seen by any model.")]
StandIn = Annotated[Path | None, typer.Option("--stand-in", help="The forget prompts with what to say instead.")]
Probe = Annotated[list[str] | None, typer.Option("--probe", metavar="NAME=FILE", help="A further set to audit.")]
OnlyClass = Annotated[str | None, typer.Option("--forget-class", help="Images: the class to forget.")]
OnlyIds = Annotated[Path | None, typer.Option("--forget-ids", help="Images: file of ids to forget, one a line.")]
Reference = Annotated[str | None, typer.Option("--reference", help="A model retrained without the forget set.")]
Audits = Annotated[str | None, typer.Option("--audits", help="Such as 'Loss, MinK(fraction=0.4)'.")]
Out = Annotated[Path, typer.Option("--out", help="New folder for the result.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Replaces the method's own seed.")]
ShowText = Annotated[bool, typer.Option("--show-text", help="Put prompts and generations into the report.")]
Device = Annotated[str, typer.Option("--device", help="cpu or cuda.")]
Require = Annotated[
    list[str] | None,
    typer.Option("--require", metavar="RULE", help="Such as 'retain.Choice >= before - 0.05'; else exit code 6."),
]
Every = Annotated[int, typer.Option("--checkpoint-every", help="Steps between two checkpoints; 0 for none.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint of the run that OUT names.")]
Method = Annotated[str, typer.Option("--method", help="Such as 'Finetune(objective=NPO() + RetainKL())'.")]


@app.command()
def forget(
    model: Model,
    forget: Forget,
    retain: Retain = None,
    holdout: Holdout = None,
    stand_in: StandIn = None,
    probe: Probe = None,
    forget_class: OnlyClass = None,
    forget_ids: OnlyIds = None,
    reference: Reference = None,
    method: Method = "Finetune()",
    audits: Audits = None,
    require: Require = None,
    out: Out = Path("expunged"),
    seed: Seed = None,
    show_text: ShowText = False,
    device: Device = "cpu",
    checkpoint_every: Every = 20,
    resume: Resume = False,
) -> None:
    """Make MODEL forget, audit it before and after, and write model, adapter, steps and report to a new folder."""
    from dataclasses import replace

    from expunge.core.notation import check_names

    check_names(f"{method}, {audits}" if audits else method)
    files = (forget, retain, holdout, stand_in)
    job = _job(model, files, probe, (forget_class, forget_ids), reference, method, audits, require, out, seed)
    _do("forget", replace(job, checkpoint_every=checkpoint_every, resume=resume), show_text, device)


@app.command()
def audit(
    model: Model,
    forget: Forget,
    retain: Retain = None,
    holdout: Holdout = None,
    probe: Probe = None,
    forget_class: OnlyClass = None,
    forget_ids: OnlyIds = None,
    reference: Reference = None,
    audits: Audits = None,
    require: Require = None,
    out: Out = Path("audited"),
    show_text: ShowText = False,
    device: Device = "cpu",
) -> None:
    """Audit MODEL as it is, and write a report to a new folder."""
    from expunge.core.notation import check_names

    check_names(audits or "")
    files = (forget, retain, holdout, None)
    job = _job(model, files, probe, (forget_class, forget_ids), reference, "Finetune()", audits, require, out, None)
    _do("audit", job, show_text, device)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders that hold a report.json.")],
    out: Annotated[Path | None, typer.Option("--out", help="HTML file to write.")] = None,
) -> None:
    """Write one folder's report page again, or a comparison of several runs."""
    from expunge.report.pages import write_page

    typer.echo(f"Wrote {write_page(folders, out)}")


@app.command("list")
def list_(
    kind: Annotated[str | None, typer.Argument(metavar="[KIND]", help="methods, objectives, audits, ...")] = None,
) -> None:
    """List what can be named in a method or an audit, with a line on each."""
    from expunge.core.notation import FOLDERS, plugins

    titles = {"train": "methods", **{folder: folder for folder in FOLDERS if folder != "train"}}
    wanted = {folder: title for folder, title in titles.items() if kind in (None, folder, title)}
    if not wanted:
        filled = {plugin.folder for plugin in plugins()}
        kinds = ", ".join(title for folder, title in titles.items() if folder in filled)
        raise UsageRefused(f"There is no kind '{kind}'. Kinds: {kinds}.")
    for folder, title in wanted.items():
        found = [plugin for plugin in plugins() if plugin.folder == folder]
        if found:
            typer.secho(title, bold=True)
            for plugin in found:
                typer.echo(f"  {plugin.name:<16} {plugin.summary}")
                if plugin.intention:
                    needs = ", ".join(plugin.needs) or "nothing but the weights"
                    typer.echo(f"  {'':<16} {plugin.intention}; needs {needs}")


@app.command()
def cache(clear: Annotated[bool, typer.Option("--clear", help="Remove all of it.")] = False) -> None:
    """Show where answers of unchanged models are kept between runs (EXPUNGE_CACHE=FOLDER or off), or clear them."""
    from expunge.core.store import PLACE, kept, usual_place

    os.environ.setdefault(PLACE, usual_place())
    store = kept()
    if store is None:
        typer.echo(f"{PLACE}=off: nothing is kept.")
        return
    count, held = store.size()
    if clear:
        store.clear()
    typer.echo(f"{store.path}: {count} answers, {held / 1e6:.1f} MB{', removed' if clear else ''}")


@app.command()
def plan(
    model: Model,
    forget: Forget,
    retain: Retain = None,
    holdout: Holdout = None,
    stand_in: StandIn = None,
    probe: Probe = None,
    method: Method = "Finetune()",
    audits: Audits = None,
    out: Out = Path("expunged"),
    seed: Seed = None,
    device: Device = "cpu",
    processes: Annotated[int, typer.Option("--processes", help="Devices that the run is spread over.")] = 1,
    device_memory: Annotated[float | None, typer.Option("--device-memory", help="GB of each, where not here.")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="Of the weights: float32, bfloat16, float16.")] = None,
    rate: Annotated[float | None, typer.Option("--rate", help="TFLOP/s of a device elsewhere, for the time.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Say what `forget` with the same options will cost: tokens, FLOPs, memory, disk, time. Runs and loads nothing."""
    from expunge.core.notation import check_names

    check_names(f"{method}, {audits}" if audits else method)
    files = (forget, retain, holdout, stand_in)
    job = _job(model, files, probe, (None, None), None, method, audits, None, out, seed)
    from expunge.plan.machine import Machine
    from expunge.plan.table import say

    given = None if device_memory is None else 1e9 * device_memory
    say(job, Machine(device, processes, given, dtype, None if rate is None else 1e12 * rate), json)


@app.command()
def demo(out: Annotated[Path, typer.Option("--out", help="New folder for the result.")] = Path("expunge-demo")) -> None:
    """Make a real language model (SmolLM2-135M-Instruct) forget a country, in minutes, on a CPU."""
    from expunge.demo.run import demo_job

    _do("forget", demo_job(out), show_text=True, device="cpu")


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"expunge {__version__}")
        raise typer.Exit


def _job(
    model: str,
    files: tuple[Path, Path | None, Path | None, Path | None],
    probe: list[str] | None,
    only: tuple[str | None, Path | None],
    reference: str | None,
    method: str,
    audits: str | None,
    require: list[str] | None,
    out: Path,
    seed: int | None,
) -> Job:
    for text in probe or []:
        if "=" not in text:
            raise UsageRefused(f"--probe '{text}': write NAME=FILE, such as paraphrase=paraphrase.jsonl.")
    for name, path in zip(("--forget", "--retain", "--holdout", "--stand-in"), files, strict=True):
        if path is not None and not path.exists():
            raise _missing(name, path)
    named = [text.partition("=")[0] for text in probe or []]
    twice = next((name for name in named if named.count(name) > 1), None)
    if twice:
        raise UsageRefused(f"--probe {twice} is given twice. Give each probe a name of its own.")
    probes = {name: Path(path) for name, _, path in (text.partition("=") for text in probe or [])}
    for name, path in probes.items():
        if not path.exists():
            raise _missing(f"--probe {name}", path)
    from expunge.inputs import Inputs
    from expunge.job import Job

    return Job(
        model=model,
        inputs=Inputs(*files, probes=probes, only_class=only[0], only_ids=only[1]),
        out=out,
        method=method,
        audits=audits,
        reference=reference,
        seed=seed,
        require=tuple(require or ()),
    )


def _missing(option: str, path: Path) -> Refusal:
    from expunge.core.errors import DataRefused

    return DataRefused(f"{option} {path}: no such file or folder. Check the path.")


def _do(verb: str, job: Job, show_text: bool, device: str) -> None:
    from dataclasses import replace

    from rich.console import Console

    from expunge import job as jobs
    from expunge.core.store import PLACE, usual_place
    from expunge.progress import Progress
    from expunge.train.distributed import first, processes

    os.environ.setdefault(PLACE, usual_place())

    line = shlex.join(["expunge", *sys.argv[1:]])
    with processes(device) as own:
        with Progress(None if first() else Console(quiet=True)) as progress:
            made: dict[str, Any] = getattr(jobs, verb)(
                replace(job, show_text=show_text, device=own, line=line), progress
            )
        if first():
            progress.summary(made, job.out)
    if "verdict" in made and not made["verdict"]["met"]:
        raise typer.Exit(THRESHOLDS_MISSED)


def main() -> None:
    """Run the command; every refusal is one line and an exit code of its own."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the bars of libraries below; ours is not of that kind
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up and end with 130, as on Ctrl-C
    debug = bool(os.environ.get("EXPUNGE_DEBUG"))
    sys.exit(_guarded(lambda: app(standalone_mode=False), debug))


def _guarded(run: Callable[[], object], debug: bool) -> int:
    try:
        code = run()
        if code == INTERRUPTED:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        _say("expunge: interrupted; no result was written.")
        return INTERRUPTED
    except Refusal as error:
        if debug:
            raise
        _say(error.line())
        return error.code
    except Exception as error:  # the last line of defence: a traceback can hold text that was to be forgotten
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # the parser's own: a wrong option or argument
            said = error.format_message() if hasattr(error, "format_message") else str(error)
            _say(UsageRefused(said).line())
            return int(error.exit_code)
        if debug:
            raise
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        place = f"{Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno}" if where else "?"
        _say(
            f"expunge: E1-unexpected: {type(error).__name__} in {place}. This is a fault of expunge: please report it "
            f"with the traceback that EXPUNGE_DEBUG=1 prints (it may quote your data)."
        )
        return 1


def _say(line: str) -> None:
    """Print why the run ends; where torchrun started several processes, the first that ends says it for all."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from expunge.train.distributed import speaks_for_all

        if not speaks_for_all():
            return
    typer.echo(line, err=True)


if __name__ == "__main__":
    main()
