"""`expunge export`: a finished run in a form that is served, or uploaded."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument, Option, echo

from expunge.cli.ending import check_room_for_torch
from expunge.cli.options import present, spread_options
from expunge.errors import UsageRefused
from expunge.events import Note

EXAMPLES = (
    "Examples:\n\nexpunge export forgotten --lora 32 --out lora\n\nexpunge export forgotten --hub-folder upload\n\n"
    "docs/serving.md says how to serve either, and what a LoRA of which rank still forgets."
)


@dataclass(frozen=True)
class Forms:
    """What to make of the run: one of the two."""

    lora: Annotated[
        int | None, Option("--lora", metavar="RANK", help="The update as the nearest plain LoRA of that rank.")
    ] = None
    hub_folder: Annotated[
        Path | None, Option("--hub-folder", help="New folder: the model with its card, to be uploaded as it is.")
    ] = None
    out: Annotated[Path | None, Option("--out", help="With --lora: new folder for it.")] = None
    base: Annotated[
        str | None, Option("--base", metavar="MODEL", help="With --lora: the base, where it is not where it was.")
    ] = None
    texts: Annotated[
        Path | None, Option("--texts", help="With --lora: texts to compare class scores on, in place of our own.")
    ] = None

    def check(self) -> None:
        """Refuse what does not go together, and files that are not there."""
        if (self.lora is None) == (self.hub_folder is None):
            raise UsageRefused("Give one of --lora RANK (with --out FOLDER) and --hub-folder FOLDER.")
        beside = {"--out": self.out, "--base": self.base, "--texts": self.texts}
        extra = [name for name, value in beside.items() if value is not None and self.hub_folder is not None]
        if extra:
            raise UsageRefused(f"{extra[0]} belongs to --lora. Leave it out.")
        if self.hub_folder is None and self.out is None:
            raise UsageRefused("--lora needs --out FOLDER, a new one.")
        present("--texts", self.texts)


@spread_options
def export(
    run: Annotated[Path, Argument(metavar="FORGOTTEN", help="Folder that `expunge forget` wrote.")], forms: Forms
) -> None:
    """Write the result of a finished run as a plain LoRA, or as a folder to upload."""
    from expunge.run.checks import check_out

    forms.check()
    present("FORGOTTEN", run)
    out, option = (forms.out, "--out") if forms.hub_folder is None else (forms.hub_folder, "--hub-folder")
    if out is not None:
        check_out(out, str(run), option=option)
    check_room_for_torch()
    if forms.hub_folder is not None:
        from expunge.export.hub_folder import export_hub_folder

        export_hub_folder(run, forms.hub_folder, _say)
        place = shlex.quote(str(forms.hub_folder))
        echo(f"Wrote {forms.hub_folder}. To upload it: huggingface-cli upload ORG/NAME {place}")
    elif forms.lora is not None and forms.out is not None:
        from expunge.export.lora import LoraJob, export_lora

        line = shlex.join(["expunge", *sys.argv[1:]])
        made = export_lora(LoraJob(run, forms.lora, forms.out, forms.base, forms.texts, line), _say)
        echo("\n".join([*made.lines(), f"Wrote {forms.out}: a LoRA of rank {made.rank}"]))


def _say(event: object) -> None:
    if isinstance(event, Note):
        echo(event.what, err=True)
