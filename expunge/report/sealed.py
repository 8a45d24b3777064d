"""The texts of a run, kept for who holds the forget file and for nobody else.

`texts.sealed` holds what the report would have under `samples` with `--show-text`: prompts, right answers and what the
models wrote. Its key comes from the bytes of the forget file: nobody reads it once that file is deleted. Whoever
can guess the whole of the file can open it, as they can check the guess by the request's fingerprint.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from expunge.errors import DataRefused
from expunge.notation.typed_json import MisfitError, from_json, to_json
from expunge.report.report import Report, Samples
from expunge.runtime.atomic_files import write_text
from expunge.runtime.sealed import seal, secret_of, unseal

SEALED = "texts.sealed"


def write_sealed(texts: Samples, forget: Path, folder: Path) -> None:
    """Write the texts of a run's samples so that who holds the file `forget` can open them."""
    data = json.dumps(to_json(texts)).encode()
    write_text(folder / SEALED, seal(data, secret_of(forget)))


def open_texts(
    runs: list[tuple[Path, Report]], forget: Path, tell: Callable[[str], object]
) -> list[tuple[Path, Report]]:
    """The reports with the texts that the file `forget` opens; tells of those that it does not.

    Raises `DataRefused` where it opens none.
    """
    if not forget.exists():
        raise DataRefused(f"--texts {forget}: no such file or folder. Give the forget file of the run.")
    secret = secret_of(forget)
    made = [(folder, _open(folder, report, secret)) for folder, report in runs]
    shut = [folder for folder, report in made if report.samples.items and not report.samples.shown]
    if not any(report.samples.shown for _, report in made):
        raise DataRefused(
            f"--texts {forget}: it opens the texts of none of these runs. Give the forget file (or folder) as it was "
            f"when they ran, to the byte; a run without {SEALED} keeps no texts."
        )
    for folder in shut:
        tell(f"{folder}: its texts stay hidden: {forget} does not open them.")
    return made


def _open(folder: Path, report: Report, secret: bytes) -> Report:
    """The report with its texts, where the secret opens them."""
    if report.samples.shown or not (folder / SEALED).is_file():
        return report
    data = unseal((folder / SEALED).read_text(encoding="utf-8", errors="replace"), secret)
    try:
        return report if data is None else replace(report, samples=from_json(Samples, json.loads(data)))
    except (ValueError, MisfitError) as error:
        raise DataRefused(f"{folder / SEALED} was written by another version of expunge.") from error
