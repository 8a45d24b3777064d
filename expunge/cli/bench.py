"""`expunge bench NAME`: a model on a benchmark, whose settings are options; and `expunge bench show`."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from expunge.cli.ending import check_room_for_torch
from expunge.cli.jobs import at_work
from expunge.cli.options import Adapter, Device, Output, check_device, present, spread_options
from expunge.errors import UsageRefused
from expunge.notation.parse import Plugin, plugins_of
from expunge.notation.settings import made_by, settings

bench = typer.Typer(
    name="bench",
    help="Evaluate a model on a benchmark as papers define it, or set results side by side.",
    no_args_is_help=True,
)


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
        chosen: Any,
        output: Output,
        adapter: Adapter = None,
        out: Annotated[Path, Option("--out", help="New folder for the result.")] = Path("benched"),
        device: Device = "cpu",
    ) -> None:
        check_device(device)
        present("--adapter", adapter)
        _evaluate(write_line(plugin, chosen), evaluated, output, adapter, out, device)

    run.__annotations__["chosen"] = settings_of(plugin)
    run.__doc__ = plugin.summary
    bench.command(plugin.name.lower())(spread_options(run))


def _evaluate(line: str, evaluated: Evaluated, output: Output, adapter: Path | None, out: Path, device: str) -> None:
    from expunge.run.checks import check_model, check_out

    check_model(evaluated.model)
    check_out(out, evaluated.model, adapter)
    check_room_for_torch()
    from expunge.benchmarks._job import Job, evaluate, name_reference
    from expunge.benchmarks._show import gather, markdown
    from expunge.cli.summary import print_json
    from expunge.notation.parse import parse
    from expunge.notation.typed_json import to_json
    from expunge.runtime.processes import is_main

    typed = shlex.join(["expunge", *sys.argv[1:]])
    references = tuple(evaluated.reference or ())
    for _, place in map(name_reference, references):
        if not Path(place).exists():
            check_model(place)
    with at_work(device, output) as (own, progress):
        job = Job(parse(line), evaluated.model, out, evaluated.data, references, adapter, own, typed)
        made, shows = evaluate(job, progress), is_main()
    if shows and output.json:
        print_json(to_json(made))
    elif shows and not output.quiet:
        typer.echo(markdown(gather([out])))
        typer.echo(f"Wrote {out}", err=True)


@bench.command()
def show(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders that `expunge bench` wrote.")],
    out: Annotated[
        Path | None, Option("--out", help="File to write: a table (.md, .tex, .csv) or a plot (.svg, .png, .pdf).")
    ] = None,
) -> None:
    """Make the numbers of results anew from their values, side by side; seed-N folders of one folder are one column."""
    from expunge.benchmarks._show import PLOTS, RENDER, gather, markdown, plot
    from expunge.runtime.atomic_files import write_text

    ending = "" if out is None else out.suffix.lower()
    if out is not None and (ending not in (*RENDER, *PLOTS) or out.exists() or not out.parent.is_dir()):
        allowed = ", ".join((*RENDER, *PLOTS))
        raise UsageRefused(f"--out {out}: give a new name that ends in {allowed}, in a folder that is there.")
    table = gather(folders)
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
