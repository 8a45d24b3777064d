"""What a model was trained on and how: `training.json`, beside the model that `expunge train` wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from expunge.core.request import Example
from expunge.errors import DataRefused
from expunge.notation.typed_json import MisfitError, from_json, to_json
from expunge.report.report import Cost, Environment, Original
from expunge.runtime.atomic_files import check_manifest, write_text

SCHEMA = 1
TRAINING = "training.json"


@dataclass(frozen=True)
class Learnt:
    """The records that were trained on. No text of any."""

    records: int
    rows: int
    """Labelled rows of them: answer tokens, or images."""
    digest: str
    """SHA-256 over their contents, whatever their order and ids."""
    sources: tuple[str, ...]
    """Names of their files."""
    without: tuple[str, ...] = ()
    """Names of the files whose records were left out."""
    left_out: int = 0
    """How many records of the data were in those."""
    not_found: int = 0
    """How many records of those were not in the data."""
    near: int = 0
    """How many records that were trained on nearly repeat one that was left out."""


@dataclass(frozen=True)
class Training:
    """A finished run of `train`."""

    schema: int
    expunge: str
    created: str
    command: str
    """The line that made it."""
    base: Original
    """The model that was trained further."""
    result: str
    """Fingerprint of the model that was written."""
    data: Learnt
    method: str
    """In the notation, every setting written out."""
    steps: int
    losses: tuple[float, ...]
    """Of at most 64 of the records, in nats a row: before the first step, and after the last."""
    cost: Cost
    environment: Environment

    def write(self, folder: Path) -> None:
        """Write `training.json`."""
        write_text(folder / TRAINING, json.dumps(to_json(self), indent=1, allow_nan=False))

    @staticmethod
    def read(folder: Path) -> Training:
        """What the folder of a finished run says, compared with its manifest. Raises a `Refusal`."""
        if not (folder / TRAINING).is_file():
            raise DataRefused(f"{folder}: holds no {TRAINING}. Give a folder that `expunge train` wrote.")
        check_manifest(folder)
        try:
            return from_json(Training, json.loads((folder / TRAINING).read_text(encoding="utf-8")))
        except (MisfitError, ValueError, RecursionError) as error:
            raise DataRefused(f"{folder / TRAINING}: not of this version of expunge. Train anew.") from error


def digest_of(examples: Iterable[Example]) -> str:
    """SHA-256 over the contents of examples, whatever their order and ids."""
    return hashlib.sha256("".join(sorted(example.record_digest() for example in examples)).encode()).hexdigest()
