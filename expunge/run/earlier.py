"""Earlier requests: what they forgot is asked again, since forgetting more may bring it back; and whose result is this?

Each is the folder of a finished run. Its `config.toml` says where the records are that it forgot, which are asked as
the probe `forget_NAME`, held to the same rules as what is forgotten now; its report says which model it made.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.errors import DataRefused, UsageRefused
from expunge.primitives.meanings import SetName
from expunge.run.config import CONFIG

if TYPE_CHECKING:
    from expunge.report.report import Ancestor

CHOSEN = ("forget-class", "forget-ids")
"""Options by which a run forgot a part of its file."""


def find_sets(folders: Sequence[Path]) -> dict[str, Path]:
    """The forget file of each run, by the name of the probe that it is asked as.

    Raises `DataRefused` where a folder is no finished run, or its file is not there any more.
    """
    made: dict[str, Path] = {}
    for folder in folders:
        name = probe_of(folder)
        if name in made:
            raise UsageRefused(f"--earlier {folder}: another is called {folder.name} too. Rename one of the folders.")
        made[SetName(name, "gone")] = _forgot(folder, name)
    return made


def probe_of(folder: Path) -> str:
    """The probe that a run's forget set is asked as."""
    return f"forget_{re.sub(r'[^0-9A-Za-z_]', '_', folder.resolve().name)}"


def _forgot(folder: Path, name: str) -> Path:
    try:
        options: dict[str, Any] = tomllib.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataRefused(
            f"--earlier {folder}: there is no {CONFIG} of a finished run. Give the folder of one, or "
            f"--probe {name}=FILE with what it forgot."
        ) from error
    part = next((each for each in CHOSEN if each in options), None)
    if part is not None:
        raise UsageRefused(
            f"--earlier {folder}: it forgot a part of its file (--{part}). Give that part as --probe {name}=FOLDER."
        )
    given = Path(str(options.get("forget", "")))
    found = next((path for path in (given, folder.parent / given) if path.is_file() or path.is_dir()), None)
    if not given.name or found is None:
        raise DataRefused(
            f"--earlier {folder}: the file that it forgot, {given}, is not there. Put it back, or give "
            f"--probe {name}=FILE."
        )
    return found


def trace(folders: Sequence[Path], model: str) -> tuple[Ancestor, ...]:
    """What each run forgot and made, in the order given; `model` is the fingerprint of the one that forgets now."""
    return tuple(_trace(folders, model))


def _trace(folders: Sequence[Path], model: str) -> Iterator[Ancestor]:
    from expunge.report.report import Ancestor, Report

    reports = [Report.read(folder) for folder in folders]
    nexts = [*(report.original.fingerprint for report in reports[1:]), model]
    for folder, report, following in zip(folders, reports, nexts, strict=True):
        if report.result is None:
            raise DataRefused(f"--earlier {folder}: it holds an audit, which forgot nothing. Give a run of `forget`.")
        yield Ancestor(
            name=folder.resolve().name,
            set=probe_of(folder),
            forgotten=report.request.sets["forget"].examples,
            created=report.created,
            original=report.original.fingerprint,
            result=report.result,
            followed=report.result == following,
        )
