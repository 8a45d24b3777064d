"""The files of a run: where its result may lie, and how model, adapter and what is left of a failed run are written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from expunge.core.adapter import Adapted
from expunge.core.model import Model
from expunge.errors import EnvironmentRefused, UsageRefused
from expunge.report.record import networks
from expunge.report.report import save_adapter


def check_out(out: Path, model: str) -> None:
    """Refuse an output folder that holds anything, or that lies in the model's."""
    try:
        _check_out(out, model)
    except OSError as error:
        raise UsageRefused(f"--out {str(out)[:80]}: {error.strerror or 'not a usable path'}. Give another.") from error


def _check_out(out: Path, model: str) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageRefused(f"{out} is not empty. Give a new folder with --out; nothing is ever written over.")
    if len(model) < 256 and Path(model).is_dir() and out.resolve().is_relative_to(Path(model).resolve()):
        raise UsageRefused(f"{out} lies in the model's folder, which is never written to. Give another --out.")
    parent = next(p for p in out.absolute().parents if p.exists())
    if not parent.is_dir():
        raise UsageRefused(f"{parent} is a file, so {out} cannot be made below it. Give another --out.")
    if out.absolute() == Path.cwd():
        raise UsageRefused("--out is the current folder, which cannot be replaced. Give a new one.")
    if not os.access(parent, os.W_OK):
        raise EnvironmentRefused(f"{parent} cannot be written to. Give another --out.")


def save(changed: Model, plain: Model, base: str, folder: Path) -> bool:
    """Write `model/` and, where it has a form of its own, `adapter/`; whether it has. `base`: the original's digest."""
    plain.save(folder / "model")
    return isinstance(changed, Adapted) and save_adapter(changed, folder, base)


def form_of(model: Model) -> str:
    """The format that a model is written in."""
    types = {str(p.dtype).removeprefix("torch.") for each in networks(model) for p in each.module.parameters()}
    return f"{', '.join(sorted(types))} safetensors"


def keep_failed(folder: Path, adapted: Adapted, steps: Path) -> None:
    """Keep the last good adapter and the steps of a run that failed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    adapted.save_adapter(folder / "adapter")
    shutil.copy(steps, folder / "steps.jsonl")
