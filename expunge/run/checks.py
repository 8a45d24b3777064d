"""What is refused before torch is loaded: a mistake in a name, a file or a column is answered at once."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from expunge.data.kinds import kind_of
from expunge.data.tables import files_of
from expunge.data.text import Reading
from expunge.errors import EnvironmentRefused, UsageRefused
from expunge.models.source import locate
from expunge.primitives.composed_files import FILE
from expunge.runtime.atomic_files import SUFFIXES

RESERVED = ("forget", "retain", "holdout", "stand_in")
"""The sets that are no probes."""
VIEWERS = ("tensorboard", "trackio")
"""What `--log-to` takes; each is the name of its package and of our extra."""
LONGEST_NAME = 255
"""Bytes of a file's name at most, on the file systems in use."""
LARGEST = 10_000_000
"""Bytes of a file up to which it is read twice, so that each fault is found at once; a larger one is read later."""


def check_sets(probes: Iterable[str], retain: Path | None, only_class: str | None, only_ids: Path | None) -> None:
    """Refuse names of sets, and choices of what to forget, that cannot be meant."""
    if (only_class is not None or only_ids is not None) and retain is not None:
        raise UsageRefused("With --forget-class or --forget-ids the rest is retained: leave out --retain.")
    if only_class is not None and only_ids is not None:
        raise UsageRefused("Give --forget-class or --forget-ids, not both.")
    for name in probes:
        if name in RESERVED or not name.isidentifier():
            raise UsageRefused(f"--probe {name}: name it by letters, digits and _, and not {', '.join(RESERVED)}.")


def check_texts(paths: Sequence[Path], reading: Reading) -> None:
    """Refuse files of texts that cannot be used as they are; the first says whether they are of texts at all.

    Raises `DataRefused`, with the place of each fault.
    """
    if kind_of(paths[0]) != "text":
        return
    for path in paths:
        files = files_of(path) if path.is_dir() else [path]
        if sum(file.stat().st_size for file in files) <= LARGEST:
            reading.load(path)


def check_viewer(name: str) -> None:
    """Refuse a viewer of events that is not known, or whose package is not installed."""
    if name not in VIEWERS:
        raise UsageRefused(f"--log-to '{name}' is not known. Allowed: {', '.join(VIEWERS)}.")
    if importlib.util.find_spec(name) is None:
        raise EnvironmentRefused(f"--log-to {name}: it is not installed. Run: pip install 'expunge[{name}]'.")


def check_model(text: str) -> None:
    """Refuse a model that is not there, or whose folder cannot be used, as far as its files tell."""
    if not (Path(text) / FILE).is_file():
        locate(text)


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
