"""The model of a finished run as a folder of its own, with its card: what is uploaded to a hub as it stands."""

from __future__ import annotations

import shutil
from pathlib import Path

from expunge.events import OnEvent, ignore_event
from expunge.export.runs import read_run
from expunge.report.card import CARD, model_card
from expunge.run.checks import check_out
from expunge.runtime.atomic_files import lock, whole_folder, write_text


def export_hub_folder(run: Path, out: Path, on_event: OnEvent = ignore_event) -> None:
    """Copy the model that lies in `run` to `out`, all of it or nothing. Nothing is uploaded."""
    check_out(out, str(run), option="--hub-folder")
    report = read_run(run, on_event)
    with lock(out), whole_folder(out) as folder:
        shutil.copytree(run / "model", folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
        write_text(folder / CARD, model_card(report, folder))  # a run of an earlier version had none
