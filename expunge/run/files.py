"""The files of a run: where its result may lie, and how model, adapter and what is left of a failed run are written."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

from expunge.core.adapter import Adapted
from expunge.core.model import Model
from expunge.errors import EnvironmentRefused, UsageRefused
from expunge.models.stored import types_in
from expunge.report.report import save_adapter
from expunge.runtime.atomic_files import SUFFIXES, whole_folder

LONGEST_NAME = 255
"""Bytes of a file's name at most, on the file systems in use."""


def check_out(out: Path, model: str, adapter: Path | None = None, option: str = "--out") -> None:
    """Refuse an output folder that holds anything, or that lies in the model's or the adapter's."""
    try:
        _check_out(out, model, adapter, option)
    except OSError as error:
        raise UsageRefused(
            f"{option} {str(out)[:80]}: {error.strerror or 'not a usable path'}. Give another."
        ) from error


def _check_out(out: Path, model: str, adapter: Path | None, option: str) -> None:
    if not str(out).isprintable():
        raise UsageRefused(
            f"{option} {ascii(str(out))[:80]}: line breaks and control characters are no part of a name."
        )
    if out.is_symlink():
        raise UsageRefused(f"{option} {out} is a link, which would be replaced. Give the folder that it leads to.")
    if len(os.fsencode(out.name)) + SUFFIXES > LONGEST_NAME:
        raise UsageRefused(
            f"{option} {out.name[:40]}...: the name has {len(os.fsencode(out.name))} bytes, and names beside it, such "
            f"as those of checkpoints, must fit {LONGEST_NAME}. Give one of at most {LONGEST_NAME - SUFFIXES}."
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageRefused(f"{out} is not empty. Give a new folder with {option}; nothing is ever written over.")
    if len(model) < 256 and Path(model).is_dir() and out.resolve().is_relative_to(Path(model).resolve()):
        raise UsageRefused(f"{out} lies in the model's folder, which is never written to. Give another {option}.")
    if adapter is not None and out.resolve().is_relative_to(adapter.resolve()):
        raise UsageRefused(f"{out} lies in the adapter's folder, which is never written to. Give another {option}.")
    parent = next(p for p in out.absolute().parents if p.exists())
    if not parent.is_dir():
        raise UsageRefused(f"{parent} is a file, so {out} cannot be made below it. Give another {option}.")
    astray = next((p for p in out.absolute().parents if p.is_symlink() and not p.exists()), None)
    if astray:
        raise UsageRefused(f"{astray} is a link that leads to nothing, or to itself. Give another {option}.")
    if out.absolute() == Path.cwd():
        raise UsageRefused(f"{option} is the current folder, which cannot be replaced. Give a new one.")
    if not os.access(parent, os.W_OK):
        raise EnvironmentRefused(f"{parent} cannot be written to. Give another {option}.")


def save(changed: Model, plain: Model, base: str, folder: Path) -> bool:
    """Write `model/` and, where it has a form of its own, `adapter/`; whether it has. `base`: the original's digest."""
    plain.save(folder / "model")
    return isinstance(changed, Adapted) and save_adapter(changed, folder, base)


def form_of(folder: Path) -> str:
    """The format that the weights in a folder are in."""
    return f"{', '.join(sorted(types_in(folder)))} safetensors"


def keep_failed(folder: Path, adapted: Adapted, steps: Path) -> None:
    """Keep the last good adapter and the steps of a run that failed, in a folder that was not there."""
    with whole_folder(folder) as inside:
        adapted.save_adapter(inside / "adapter")
        shutil.copy(steps, inside / "steps.jsonl")


def failed_folder(out: Path) -> Path:
    """Where a failed run of `out` keeps what is left of it: beside it, under a name that nothing has."""
    names = (f"{out.name}.failed{'' if n == 1 else f'-{n}'}" for n in itertools.count(1))
    return next(path for path in map(out.with_name, names) if not os.path.lexists(path))
