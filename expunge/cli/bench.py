"""`expunge bench NAME`: a model on a benchmark, whose settings are options; and `expunge bench show`."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass, fields, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from expunge.cli.ending import check_room_for_torch
from expunge.cli.jobs import at_work
from expunge.cli.options import Adapter, Device, Output, check_device, present, read_seeds, spread_options
from expunge.errors import RunFailed, UsageRefused
from expunge.notation.parse import Plugin, plugins_of
from expunge.notation.recipes import check_method
from expunge.notation.settings import made_by, settings

if TYPE_CHECKING:
    from expunge.benchmarks._job import Job

bench = typer.Typer(
    name="bench",
    help="Evaluate a model (or methods) on a benchmark as papers define it, or set results side by side.",
    no_args_is_help=True,
)


@dataclass(frozen=True)
class Tried:
    """Methods that make the model forget before it is evaluated."""

    method: Annotated[
        list[str] | None,
        Option(
            "--method",
            help="[NAME=]METHOD or a recipe's name: let it forget what the benchmark draws (cifar), and measure the "
            "result; several times for several, each in a folder of its own.",
        ),
    ] = None
    seeds: Annotated[str | None, Option("--seeds", help="Each method with these, such as 0-2 or 0,3,7.")] = None

    def read(self) -> tuple[dict[str, str], tuple[int, ...]]:
        """The methods by their names, and the seeds. Raises `UsageRefused`."""
        named = [name_method(text) for text in self.method or ()]
        if len(dict(named)) < len(named):
            raise UsageRefused('Two methods have one name. Tell them apart: --method "slow=NPO(learning_rate=1e-5)".')
        for _, method in named:
            check_method(method)
        if self.seeds and not named:
            raise UsageRefused("--seeds are those of methods. Give --method too.")
        return dict(named), read_seeds(self.seeds, None) if self.seeds else ()


def name_method(text: str) -> tuple[str, str]:
    """The name and the method of what is written NAME=METHOD, or METHOD alone, whose first word it then is."""
    named = re.fullmatch(r"\s*([A-Za-z][\w.+-]*)\s*=(.+)", text, re.DOTALL)
    first = re.search(r"[A-Za-z][\w+-]*", text)
    return (named[1], named[2].strip()) if named else (first[0] if first else text, text)


@dataclass(frozen=True)
class Evaluated:
    """What is evaluated, on what, and against what."""

    model: Annotated[str, Option("--model", help="Folder, FILE.gguf, or hub id (org/name@revision).")]
    data: Annotated[
        str | None,
        Option("--data", help="Folder of the benchmark's files, or ORG/NAME@COMMIT; else that in EXPUNGE_DATA."),
    ] = None
    reference: Annotated[
        list[str] | None,
        Option(
            "--reference",
            help="[NAME=]PLACE: a model that never saw what is forgotten, its log, or an earlier --out.",
        ),
    ] = None


def settings_of(plugin: Plugin) -> Any:
    """A benchmark's settings as a group of options; each is written as in the notation, texts without quotes."""
    own = []
    for each in settings(made_by(plugin)[1]):
        shown = " ".join(each.doc.split())
        option = Option(
            f"--{each.name.replace('_', '-')}", help=f"{shown} Default: {each.default}.", show_default=False
        )
        own.append((each.name, Annotated[str | None, option], None))
    return make_dataclass("Settings", own, frozen=True)


def write_line(plugin: Plugin, chosen: Any) -> str:
    """The benchmark with the settings that were given, in the notation."""
    texts = {each.name: each.default[:1] in ("'", '"') for each in settings(made_by(plugin)[1])}
    given = {each.name: getattr(chosen, each.name) for each in fields(chosen)}
    said = [
        f"{name}={value.replace(chr(92) + 'n', chr(10))!r}" if texts[name] else f"{name}={value}"
        for name, value in given.items()
        if value is not None
    ]
    return f"{plugin.name}({', '.join(said)})"


def add(plugin: Plugin) -> None:
    """The command of one benchmark."""

    def run(
        evaluated: Evaluated,
        tried: Tried,
        chosen: Any,
        output: Output,
        adapter: Adapter = None,
        out: Annotated[Path, Option("--out", help="New folder for the result.")] = Path("benched"),
        device: Device = "cpu",
    ) -> None:
        check_device(device)
        present("--adapter", adapter)
        methods, seeds = tried.read()
        job = make_job(write_line(plugin, chosen), evaluated, adapter, out)
        if methods:
            forget_with(job, methods, seeds, output, device)
        else:
            measure(job, output, device)

    run.__annotations__["chosen"] = settings_of(plugin)
    run.__doc__ = plugin.summary
    bench.command(plugin.name.lower())(spread_options(run))


def make_job(line: str, evaluated: Evaluated, adapter: Path | None, out: Path) -> Job:
    """What is evaluated, checked as far as it can be before anything is loaded."""
    from expunge.run.checks import check_model, check_out

    check_model(evaluated.model)
    check_out(out, evaluated.model, adapter)
    check_room_for_torch()
    from expunge.benchmarks._job import Job, name_reference
    from expunge.notation.parse import parse

    typed = shlex.join(["expunge", *sys.argv[1:]])
    references = tuple(evaluated.reference or ())
    for _, place in map(name_reference, references):
        if not Path(place).exists():
            check_model(place)
    return Job(parse(line), evaluated.model, out, evaluated.data, references, adapter, line=typed)


def measure(job: Job, output: Output, device: str) -> None:
    """Evaluate the model as it is, and show its numbers."""
    from expunge.benchmarks._job import evaluate
    from expunge.runtime.processes import is_main

    with at_work(device, output, "Evaluating") as (own, progress):
        evaluate(replace(job, device=own), progress)
        shows = is_main()
    if shows:
        _show([job.out], job.out, output)


def forget_with(job: Job, methods: dict[str, str], seeds: tuple[int, ...], output: Output, device: str) -> None:
    """Let methods make the model forget, and show what came of each beside the original."""
    from expunge.benchmarks._forgetting import Forgetting
    from expunge.run.choose import choose_method
    from expunge.runtime.processes import is_main

    chosen = {name: choose_method(text, "vision").method for name, text in methods.items()}
    with at_work(device, output) as (own, progress):
        made, failed = Forgetting(replace(job, device=own), chosen, seeds).run(progress)
        shows = is_main()
    if shows:
        _show(made, job.out, output)
    if failed:
        raise RunFailed(f"{len(failed)} runs failed, the others are in {job.out}: {'; '.join(failed)}")


def _show(folders: list[Path], out: Path, output: Output) -> None:
    """The numbers of results as a table, or as they are in their files."""
    from expunge.benchmarks._job import Result
    from expunge.benchmarks._show import gather, markdown
    from expunge.cli.summary import print_json
    from expunge.notation.typed_json import to_json

    if output.json:
        results = [to_json(Result.read(folder)) for folder in folders]
        print_json(results[0] if folders == [out] else results)
    elif not output.quiet:
        typer.echo(markdown(gather(folders)))
        typer.echo(f"Wrote {out}", err=True)


@bench.command()
def show(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders that `expunge bench` wrote.")],
    out: Annotated[
        Path | None, Option("--out", help="File to write: a table (.md, .tex, .csv) or a plot (.svg, .png, .pdf).")
    ] = None,
    oracles: Annotated[
        Path | None,
        Option(
            "--oracles",
            help="Folder with results of models retrained without what is forgotten, one in each subfolder: columns of "
            "three runs or more get KLoM and U-LiRA against them.",
        ),
    ] = None,
) -> None:
    """Make the numbers of results anew from their values, side by side; seed-N folders of one folder are one column."""
    from expunge.benchmarks._oracles import Oracles
    from expunge.benchmarks._show import PLOTS, RENDER, gather, markdown, plot
    from expunge.runtime.atomic_files import write_text

    ending = "" if out is None else out.suffix.lower()
    if out is not None and (ending not in (*RENDER, *PLOTS) or out.exists() or not out.parent.is_dir()):
        allowed = ", ".join((*RENDER, *PLOTS))
        raise UsageRefused(f"--out {out}: give a new name that ends in {allowed}, in a folder that is there.")
    present("--oracles", oracles)
    table = gather(folders, Oracles.read(oracles) if oracles else None)
    if out is None:
        typer.echo(markdown(table))
        return
    if ending in PLOTS:
        plot(table, out)
    else:
        write_text(out, RENDER[ending](table))
    typer.echo(f"Wrote {out}")


for _plugin in plugins_of("benchmarks"):
    add(_plugin)
