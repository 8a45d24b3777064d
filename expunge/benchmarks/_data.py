"""Where a benchmark's records are: a folder of its files, or a data set of the hub at a pinned revision."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.data.records import read
from expunge.errors import DataRefused, EnvironmentRefused

PLACE = "EXPUNGE_DATA"
"""Names the folder that holds a folder for each benchmark."""
ENDINGS = (".jsonl", ".json", ".parquet", ".csv")
PINNED = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)@([0-9a-f]{40})")


@dataclass(frozen=True)
class Data:
    """The files of a benchmark."""

    folder: Path
    home: str
    """Where they can be had."""

    def rows(self, *names: str) -> list[Mapping[str, Any]]:
        """The rows of the first of these files that is there; names are without their ending. Raises `DataRefused`."""
        path = next((path for name in names if (path := self.find(name))), None)
        if path is None:
            raise DataRefused(
                f"{self.folder}: holds no {' or '.join(names)} ({', '.join(ENDINGS)}). "
                f"Copy the files of {self.home} there."
            )
        return [record.columns for record in read(path)]

    def find(self, name: str) -> Path | None:
        """The file of that name, or the only shard of one; None where there is none. Folders are parts of names."""
        names = [f"{name}{end}" for end in ENDINGS]
        names += [f"{name}-00000-of-00001{end}" for end in ENDINGS]
        return next((path for each in names if (path := self.folder / each).is_file()), None)

    def value(self, name: str) -> Any:
        """What a JSON file holds. Raises `DataRefused`."""
        path = self.folder / name
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise DataRefused(f"{path}: not a JSON file that can be read. Copy that of {self.home} there.") from error


def find_data(given: str | None, home: str, option: str = "--data ") -> Data:
    """The data that the user names, or the folder of that benchmark in `EXPUNGE_DATA`. Raises `DataRefused`.

    Only what is named as ORG/NAME@COMMIT is looked for on the hub. `option` is what a user writes the place after.
    """
    name = home.rpartition("/")[2]
    if given is None:
        place = os.environ.get(PLACE)
        folder = Path(place) / name.lower() if place else None
        if folder is not None and folder.is_dir():
            return Data(folder, home)
        where = f"{folder} is not there" if folder else f"{PLACE} is not set"
        raise DataRefused(
            f"The data of {name} is not here ({where}). Give {option}FOLDER with the files of {home}, or "
            f"{option}{home}@COMMIT to fetch them; or set {PLACE} to a folder that holds {name.lower()}/."
        )
    if Path(given).is_dir():
        return Data(Path(given), home)
    pinned = PINNED.fullmatch(given)
    if not pinned:
        raise DataRefused(
            f"{option}{given[:200]}: no such folder, and no data set at a commit, such as {home}@ and its 40 digits. "
            f"A branch can change, so it is not taken."
        )
    return Data(_fetch(pinned[1], pinned[2], option), home)


def _fetch(name: str, revision: str, option: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    patterns: Sequence[str] = [f"*{end}" for end in ENDINGS]
    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=list(patterns)))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise EnvironmentRefused(
            f"{option}{name}@{revision[:12]}: could not be fetched from the hub ({type(error).__name__}). "
            f"Check the name and the network, or give a folder."
        ) from error


def need(row: Mapping[str, Any], record: int, *names: str) -> list[str]:
    """The texts of these columns. Raises `DataRefused` where one is none."""
    found = [row.get(name) for name in names]
    wrong = [name for name, value in zip(names, found, strict=True) if not isinstance(value, str) or not value.strip()]
    if wrong:
        raise DataRefused(f"Record {record} has no text in its column {wrong[0]}. Check the file.")
    return [str(value) for value in found]
