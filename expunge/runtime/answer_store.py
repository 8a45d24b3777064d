"""Numbers kept on disk between runs, so that an unchanged model is not asked the same question twice.

An entry is found by the SHA-256 of everything that it depends on, and sealed with a key made of the same: what a model
said of a record can be read again by who holds both, and by nobody else. No forgotten text is left behind in a cache.
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

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

LIMIT = 2 << 30
"""Bytes of values that are kept at most; the longest unused go first."""

PLACE = "EXPUNGE_CACHE"
"""Environment variable that names the folder, or says `off`. Unset: the command keeps, the library does not."""

TABLE = "CREATE TABLE IF NOT EXISTS entries (name BLOB PRIMARY KEY, value BLOB, mark BLOB, bytes INTEGER, used REAL)"

Entry = dict[str, Tensor]


class Recall(Protocol):
    """Where an earlier run's answers are found: a store of one's own, or one that processes share."""

    def get(self, wanted: Sequence[bytes]) -> dict[bytes, Entry]:
        """The entries that are there, by what they depend on."""

    def put(self, entries: Mapping[bytes, Entry]) -> None:
        """Keep `entries`."""


@dataclass(frozen=True)
class AnswerStore:
    """One SQLite file of sealed tensors. What is damaged is as good as absent; no fault of it ever ends a run."""

    path: Path
    limit: int = LIMIT

    def get(self, wanted: Sequence[bytes]) -> dict[bytes, Entry]:
        """The entries that are there, by what they depend on."""
        found: dict[bytes, Entry] = {}
        try:
            with closing(self._open()) as base, base:
                for material in wanted:
                    name = _digest(b"name", material)
                    row = base.execute("SELECT value, mark FROM entries WHERE name = ?", (name,)).fetchone()
                    if row and _digest(b"mark", row[0]) == row[1]:
                        found[material] = load(_sealed(row[0], material))
                        base.execute("UPDATE entries SET used = ? WHERE name = ?", (time.time(), name))
        except (sqlite3.Error, OSError, SafetensorError):
            return found
        return found

    def put(self, entries: Mapping[bytes, Entry]) -> None:
        """Keep `entries`; make room where there is too much."""
        try:
            with closing(self._open()) as base, base:
                for material, entry in entries.items():
                    value = _sealed(save({name: part.contiguous().cpu() for name, part in entry.items()}), material)
                    row = (_digest(b"name", material), value, _digest(b"mark", value), len(value), time.time())
                    base.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?)", row)
                self._make_room(base)
        except (sqlite3.Error, OSError):
            return

    def size(self) -> tuple[int, int]:
        """How many entries there are, and their bytes."""
        try:
            with closing(self._open()) as base:
                count, held = base.execute("SELECT COUNT(*), COALESCE(SUM(bytes), 0) FROM entries").fetchone()
                return int(count), int(held)
        except (sqlite3.Error, OSError):
            return 0, 0

    def clear(self) -> None:
        """Remove the file."""
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        base = sqlite3.connect(self.path, timeout=5)
        try:
            base.execute("PRAGMA journal_mode = WAL")
            base.execute("PRAGMA synchronous = NORMAL")
            base.execute(TABLE)
        except sqlite3.DatabaseError:
            base.close()
            self.clear()  # no database: another file lay there, or a torn one
            raise
        return base

    def _make_room(self, base: sqlite3.Connection) -> None:
        (held,) = base.execute("SELECT COALESCE(SUM(bytes), 0) FROM entries").fetchone()
        for name, size in base.execute("SELECT name, bytes FROM entries ORDER BY used").fetchall():
            if held <= self.limit:
                return
            base.execute("DELETE FROM entries WHERE name = ?", (name,))
            held -= size


def store_of_environment() -> AnswerStore | None:
    """The store that the environment names; None where it names none."""
    place = os.environ.get(PLACE, "off")
    return None if place == "off" else AnswerStore(Path(place) / "answers.sqlite")


def default_folder() -> str:
    """Where the command keeps what it has no other place for."""
    return str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "expunge")


def _digest(what: bytes, data: bytes) -> bytes:
    return hashlib.sha256(what + b":" + data).digest()


def _sealed(data: bytes, material: bytes) -> bytes:
    """`data` mixed with a stream that only `material` gives; done twice, it is undone."""
    stream = hashlib.shake_256(b"seal:" + material).digest(len(data))
    mixed = np.frombuffer(data, dtype=np.uint8) ^ np.frombuffer(stream, dtype=np.uint8)
    return mixed.tobytes()
