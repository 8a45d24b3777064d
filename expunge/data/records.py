"""Rows of a file of examples: JSON lines, CSV or Parquet. A file with faults is refused, with the place of each."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.errors import DataRefused, EnvironmentRefused

LINE_LIMIT = 16_000_000
"""Longest line in bytes."""
SHOWN = 20
"""Most faults that an error names."""
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
"""Other separators of CSV files, which an error names."""
NAMES = ("id", "question", "answer", "text", "options", "lead", "image", "img", "label")
"""Columns that an error may name; others may be text of a record."""


@dataclass(frozen=True)
class Record:
    """One row: its line and its columns."""

    line: int
    """Line in the file, from 1 (row number, from 1, in Parquet)."""
    columns: dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """What is wrong with one row. Never holds the row's text."""

    line: int
    what: str


def read(path: Path) -> list[Record]:
    """All rows of `path`. Raises `DataRefused` with up to 20 faults, file and line each; skips nothing silently."""
    if not path.is_file():
        raise DataRefused(f"{path}: no such file. Give a .jsonl, .csv or .parquet file.")
    readers = {".jsonl": _json_lines, ".csv": _csv, ".parquet": _parquet}
    if path.suffix.lower() not in readers:
        lines = " Write each record on a line of its own, into a .jsonl file." if path.suffix.lower() == ".json" else ""
        raise DataRefused(f"{path}: '{path.suffix}' files are not read. Allowed: .jsonl, .csv, .parquet.{lines}")
    records: list[Record] = []
    faults: list[Fault] = []
    for row in readers[path.suffix.lower()](path):
        (records if isinstance(row, Record) else faults).append(row)  # type: ignore[arg-type]
    refuse(path, faults)
    if not records:
        raise DataRefused(f"{path}: holds no records, so there is nothing to read. Give at least one.")
    return records


def refuse(path: Path, faults: list[Fault]) -> None:
    """Raise for the faults of a file, if there are any, the first ones named; equal faults are named once."""
    if faults:
        lines: dict[str, list[str]] = {}
        for fault in faults[:SHOWN]:
            lines.setdefault(fault.what, []).append(str(fault.line))
        shown = "; ".join(f"line{'s' * (len(at) > 1)} {', '.join(at)}: {what}" for what, at in lines.items())
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise DataRefused(f"{path}: {shown}{more}. Fix the file; nothing was written.")


def _lines(path: Path) -> Iterator[tuple[int, str] | Fault]:
    """Decoded lines with their numbers; a UTF-8 byte order mark and CRLF are accepted."""
    at = 0
    with path.open("rb") as file:
        for number, raw in enumerate(iter(lambda: file.readline(LINE_LIMIT + 1), b""), start=1):
            if len(raw) > LINE_LIMIT:
                limit = f"{LINE_LIMIT / 1e6:g} MB"
                raise DataRefused(f"{path}: line {number} is longer than {limit}. Split the record.")
            mark = len(codecs.BOM_UTF8) if number == 1 and raw.startswith(codecs.BOM_UTF8) else 0
            try:
                yield number, raw[mark:].decode()
            except UnicodeDecodeError as error:
                yield Fault(number, f"byte {at + mark + error.start} is not UTF-8 (save the file as UTF-8)")
            at += len(raw)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without duplicate keys."""
    keys = [key for key, _ in pairs]
    twice = next((key for key, count in Counter(keys).items() if count > 1), None)
    if twice is not None:
        # A key that is none of ours may be text of the record.
        raise ValueError(f"the key '{twice}' occurs twice" if twice in NAMES else "a key occurs twice")
    return dict(pairs)


def _json_lines(path: Path) -> Iterator[Record | Fault]:
    for line in _lines(path):
        if isinstance(line, Fault):
            yield line
            continue
        number, text = line
        if not text.strip():
            continue
        try:
            row = json.loads(text, object_pairs_hook=_once)
        except json.JSONDecodeError as error:
            yield Fault(number, f"not JSON at column {error.colno} ({error.msg})")
        except (ValueError, RecursionError) as error:
            yield Fault(number, str(error) or "nested too deep")
        else:
            is_row = isinstance(row, dict)
            yield Record(number, row) if is_row else Fault(number, "not a JSON object such as {...}")


def _csv(path: Path) -> Iterator[Record | Fault]:
    text = []
    for line in _lines(path):
        if isinstance(line, Fault):
            yield line
            return
        text.append(line[1])
    csv.field_size_limit(max(csv.field_size_limit(), LINE_LIMIT))
    reader = csv.DictReader(io.StringIO("".join(text), newline=""), strict=True)
    try:
        header = reader.fieldnames or ()
        other = next((sign for sign in SEPARATORS if len(header) == 1 and sign in header[0]), None)
        if other:
            yield Fault(1, f"the header's columns are separated by {SEPARATORS[other]}, but must be by commas")
            return
        if len(set(header)) < len(header):
            yield Fault(1, "two columns of the header have one name")
            return
        for row in reader:
            if None in row or None in row.values():
                yield Fault(reader.line_num, f"not {len(header)} columns wide as the header is")
            else:
                yield Record(reader.line_num, {key: value for key, value in row.items() if value != ""})
    except csv.Error as error:
        yield Fault(reader.line_num + 1, f"not CSV ({error})")  # first line of the row that could not be read


def _parquet(path: Path) -> Iterator[Record | Fault]:
    table = open_parquet(path)
    for number in range(1, len(table) + 1):
        try:
            (row,) = table.slice(number - 1, 1).to_pylist()
        except UnicodeDecodeError:
            yield Fault(number, "not UTF-8 (save the file as UTF-8)")
        else:
            yield Record(number, {key: value for key, value in row.items() if value is not None})


def open_parquet(path: Path) -> Any:
    """The file as a pyarrow table."""
    return _with_pyarrow(path, "read_table")


def columns(path: Path) -> set[str]:
    """Names of a Parquet file's columns."""
    return set(_with_pyarrow(path, "read_schema").names)


def _with_pyarrow(path: Path, verb: str) -> Any:
    try:
        import pyarrow.parquet  # an extra: only this kind of file needs it
    except ImportError as error:
        raise EnvironmentRefused("Parquet files need pyarrow: pip install 'expunge[parquet]'.") from error
    if not path.is_file():
        raise DataRefused(f"{path}: no such file.")
    try:
        return getattr(pyarrow.parquet, verb)(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataRefused(f"{path}: not a Parquet file that can be read. Write it again.") from error
