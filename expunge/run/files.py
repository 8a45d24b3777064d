"""The files of a run: how model, adapter and what is left of a failed run are written."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

from expunge.core.adapter import Adapted
from expunge.core.model import Model
from expunge.models.stored import types_in
from expunge.report.report import save_adapter
from expunge.runtime.atomic_files import whole_folder


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
