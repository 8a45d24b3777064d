"""A cache of model answers on disk, so that an unchanged model is not run on the same example twice.

The key of an entry is the SHA-256 of everything that it depends on, and the entry is encrypted with a key derived from
the same: only who has the model and the record can read what the model answered. The cache thus keeps no forgotten
text.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from expunge.errors import EnvironmentRefused
from expunge.runtime.sealed import mix

LIMIT = 2 << 30
"""Largest size in bytes; the least recently used entries are deleted first."""

PLACE = "EXPUNGE_CACHE"
"""Environment variable with the cache folder, or `off`. Unset: the command uses a cache, the library does not."""

OURS = 0x6578706E
"""What SQLite's header has for an application in a file of ours ("expn")."""
HEADER = b"SQLite format 3\0"

TABLE = "CREATE TABLE IF NOT EXISTS entries (name BLOB PRIMARY KEY, value BLOB, mark BLOB, bytes INTEGER, used REAL)"

Entry = dict[str, Tensor]


class Recall(Protocol):
    """A cache of answers: a file, or one that several processes share."""

    def get(self, wanted: Sequence[bytes]) -> dict[bytes, Entry]:
        """The entries that exist, by the bytes of everything that they depend on."""

    def put(self, entries: Mapping[bytes, Entry]) -> None:
        """Store `entries`."""


@dataclass(frozen=True)
class AnswerStore:
    """A SQLite file of encrypted tensors. A damaged entry counts as missing, and no fault of the file ends a run."""

    path: Path
    limit: int = LIMIT

    def get(self, wanted: Sequence[bytes]) -> dict[bytes, Entry]:
        """The entries that exist, by the bytes of everything that they depend on."""
        found: dict[bytes, Entry] = {}
        try:
            with closing(self._open()) as base, base:
                for material in wanted:
                    name = _digest(b"name", material)
                    row = base.execute("SELECT value, mark FROM entries WHERE name = ?", (name,)).fetchone()
                    if row and _digest(b"mark", row[0]) == row[1]:
                        found[material] = load(mix(row[0], material))
                        base.execute("UPDATE entries SET used = ? WHERE name = ?", (time.time(), name))
        except (sqlite3.Error, OSError, SafetensorError):
            return found
        return found

    def put(self, entries: Mapping[bytes, Entry]) -> None:
        """Store `entries`; delete the least recently used where the file would grow beyond its limit."""
        try:
            with closing(self._open()) as base, base:
                for material, entry in entries.items():
                    value = mix(save({name: part.contiguous().cpu() for name, part in entry.items()}), material)
                    row = (_digest(b"name", material), value, _digest(b"mark", value), len(value), time.time())
                    base.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?)", row)
                self._evict(base)
        except (sqlite3.Error, OSError):
            return

    def size(self) -> tuple[int, int]:
        """How many entries there are, and their bytes."""
        try:
            with closing(self._open()) as base:
                count, total = base.execute("SELECT COUNT(*), COALESCE(SUM(bytes), 0) FROM entries").fetchone()
                return int(count), int(total)
        except (sqlite3.Error, OSError):
            return 0, 0

    def is_ours(self) -> bool:
        """Whether the file is a cache that expunge made, damaged or not; also where there is none, or an empty one."""
        try:
            with self.path.open("rb") as file:
                head = file.read(72)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return not head or (head.startswith(HEADER) and int.from_bytes(head[68:72], "big") == OURS)

    def clear(self) -> None:
        """Remove the file. Raises `EnvironmentRefused` where it is not one of ours."""
        if not self.is_ours():
            raise EnvironmentRefused(
                f"{self.path} is no cache of expunge, so it is not removed. Move it, or set {PLACE} to another folder."
            )
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self.is_ours():
            raise sqlite3.DatabaseError(f"{self.path} is another program's")
        new = not self.path.exists() or not self.path.stat().st_size
        base = sqlite3.connect(self.path, timeout=5)
        try:
            if new:  # before there is a log beside the file, which could be lost with a process
                base.execute(f"PRAGMA application_id = {OURS}")
            base.execute("PRAGMA journal_mode = WAL")
            base.execute("PRAGMA synchronous = NORMAL")
            base.execute(TABLE)
        except sqlite3.DatabaseError:
            base.close()
            self.clear()  # not a database, or a damaged one
            raise
        return base

    def _evict(self, base: sqlite3.Connection) -> None:
        (total,) = base.execute("SELECT COALESCE(SUM(bytes), 0) FROM entries").fetchone()
        for name, size in base.execute("SELECT name, bytes FROM entries ORDER BY used").fetchall():
            if total <= self.limit:
                return
            base.execute("DELETE FROM entries WHERE name = ?", (name,))
            total -= size


def store_of_environment() -> AnswerStore | None:
    """The store in the folder that `EXPUNGE_CACHE` names; None where it is unset or off."""
    place = os.environ.get(PLACE, "off")
    return None if place == "off" else AnswerStore(Path(place) / "answers.sqlite")


def default_folder() -> str:
    """The command's own cache folder."""
    return str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "expunge")


def _digest(what: bytes, data: bytes) -> bytes:
    return hashlib.sha256(what + b":" + data).digest()
