"""Rows of a file of examples: JSON, CSV, or a table. A file with faults is refused, with the place of each."""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from expunge.data.tables import files_of, open_table
from expunge.errors import DataRefused

LINE_LIMIT = 16_000_000
"""Longest line in bytes."""
AT_ONCE = 1000
"""Rows of a table that are read together."""
LONGEST_ID = 200
"""Most letters of an id."""
SHOWN = 20
"""Most faults that an error names."""
SPACES = (" ", "\t", "\n", "\r")
JSON_LIMIT = 1_000_000_000
"""Largest .json file in bytes: unlike one of JSON lines it is read as a whole."""
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
"""Other separators of CSV files, which an error names."""
NAMES = ("id", "question", "answer", "text", "options", "lead", "image", "img", "label")
"""Columns that an error may name; others may be text of a record."""
TARGETS = ("question", "answer", "text", "options", "lead", "id", "system", "messages")
"""What the columns of a file can be said to hold."""
WEIGHT = "sample_weight"
"""Column that says how often a record counts: 2 is the record twice, 0 leaves it out."""
BESIDE = ("id", "options", "lead", "system", "chat_template_kwargs", WEIGHT)
"""Columns that count under their own names, where others are renamed."""
FOREIGN = {*NAMES, "query", "prompt", "gt", "input", "output", "instruction", "response", "completion", "subject"}
COLUMN_NAME = re.compile(r"[A-Za-z_][\w.-]{0,39}")
"""What looks like the name of a column, and not like a record: it may be printed where every row has it."""


@dataclass(frozen=True)
class Record:
    """One row: its line and its columns."""

    line: int
    """Line in the file, from 1; in a table or a JSON list the row's number, from 1."""
    columns: dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """What is wrong with one row. Never holds the row's text."""

    line: int
    what: str


def read(path: Path) -> list[Record]:
    """All rows of `path`. Raises `DataRefused` with up to 20 faults, file and line each; skips nothing silently."""
    if not path.exists():
        raise DataRefused(f"{path}: no such file. Give a .jsonl, .json, .csv or .parquet file, or a datasets folder.")
    files = files_of(path) if path.is_dir() else [path]
    records: list[Record] = []
    faults: list[Fault] = []
    for file in files:
        before = len(records) + len(faults)
        for row in _rows(file):
            counted = replace(row, line=before + row.line) if before else row  # shards are numbered through
            (records if isinstance(row, Record) else faults).append(counted)  # type: ignore[arg-type]
    refuse(path, faults)
    if not records:
        raise DataRefused(f"{path}: holds no records, so there is nothing to read. Give at least one.")
    return records


def _rows(path: Path) -> Iterator[Record | Fault]:
    readers = {".jsonl": _json_lines, ".json": _json, ".csv": _csv, ".parquet": _table, ".arrow": _table}
    if path.suffix.lower() not in readers:
        raise DataRefused(f"{path}: '{path.suffix}' files are not read. Allowed: {', '.join(readers)}.")
    return readers[path.suffix.lower()](path)


def rename(records: list[Record], columns: Mapping[str, str], path: Path) -> list[Record]:
    """The records with the columns that are meant, under our names: {"question": "query"}; as they are where none is.

    Raises `DataRefused` for a column that no record has.
    """
    if not columns:
        return records
    known = {name for record in records for name in record.columns}
    missing = [f"'{name}'" for name in columns.values() if name not in known]
    if missing:
        common = [name for name in known if all(name in record.columns for record in records)]
        # Without its header a CSV file has a record there.
        tells = FOREIGN if path.suffix.lower() == ".csv" else known
        shown = sorted(name for name in common if COLUMN_NAME.fullmatch(name) and name in tells)[:SHOWN]
        more = f" and {len(known) - len(shown)} more" if len(known) > len(shown) else ""
        raise DataRefused(
            f"{path}: --columns names {', '.join(missing)}, which no row has. "
            f"Columns there: {', '.join(shown) or 'none that may be shown'}{more}."
        )
    return [replace(record, columns=_rename_row(record.columns, columns)) for record in records]


def _rename_row(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    beside = {name: row[name] for name in BESIDE if name in row}
    return beside | {ours: row[theirs] for ours, theirs in columns.items() if theirs in row}


def is_id(value: object) -> bool:
    """Whether an id is safe to print in errors, on a terminal and in reports."""
    if isinstance(value, str):
        return bool(value.strip()) and len(value) <= LONGEST_ID and value.isprintable()
    return isinstance(value, int) and not isinstance(value, bool)


def weight_of(columns: Mapping[str, Any]) -> float:
    """How often a row counts, as a number or in figures, as CSV has it; NaN where it is neither."""
    said = columns.get(WEIGHT, 1)
    try:
        return float(said) if isinstance(said, int | float | str) and not isinstance(said, bool) else math.nan
    except (ValueError, OverflowError):
        return math.nan


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
            yield _row(number, row)


def _row(number: int, row: object) -> Record | Fault:
    """A JSON object as a row; a key that is null is as one that is not there."""
    if not isinstance(row, dict):
        return Fault(number, "not a JSON object such as {...}")
    return Record(number, {key: value for key, value in row.items() if value is not None})


def _json(path: Path) -> Iterator[Record | Fault]:
    """A list of objects; else lines, as some files of that name are."""
    if path.stat().st_size > JSON_LIMIT:
        raise DataRefused(f"{path}: is larger than {JSON_LIMIT / 1e9:g} GB. Write it as JSON lines (.jsonl).")
    raw = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    if not raw.lstrip().startswith(b"["):
        yield from _json_lines(path)
        return
    try:
        text, decoder, number = raw.decode(), json.JSONDecoder(object_pairs_hook=_once), 0
        at = _skip(text, text.index("[") + 1)
        more = text[at : at + 1] != "]"
        while more:
            number += 1
            row, at = decoder.raw_decode(text, at)
            yield _row(number, row)
            at = _skip(text, at)
            more = text[at : at + 1] == ","
            if not more and text[at : at + 1] != "]":
                raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
            at = _skip(text, at + 1) if more else at
        if text[at + 1 :].strip():
            yield Fault(number, "something follows the list's end")
    except UnicodeDecodeError as error:
        yield Fault(raw[: error.start].count(b"\n") + 1, f"byte {error.start} is not UTF-8 (save the file as UTF-8)")
    except json.JSONDecodeError as error:
        yield Fault(error.lineno, f"not JSON at column {error.colno} ({error.msg})")
    except (ValueError, RecursionError) as error:
        yield Fault(number, str(error) or "nested too deep")


def _skip(text: str, at: int) -> int:
    """The next place that is no space."""
    while text[at : at + 1] in SPACES:
        at += 1
    return at


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


def _table(path: Path) -> Iterator[Record | Fault]:
    table = open_table(path)
    for start in range(0, len(table), AT_ONCE):
        part = table.slice(start, AT_ONCE)
        try:
            rows: list[dict[str, Any] | None] = part.to_pylist()
        except UnicodeDecodeError:
            rows = [_read_alone(part, place) for place in range(len(part))]
        for number, row in enumerate(rows, start=start + 1):
            if row is None:
                yield Fault(number, "not UTF-8 (save the file as UTF-8)")
            else:
                yield Record(number, {key: value for key, value in row.items() if value is not None})


def _read_alone(table: Any, place: int) -> dict[str, Any] | None:
    """One row of a table; None where its text cannot be read."""
    try:
        (row,) = table.slice(place, 1).to_pylist()
        return dict(row)
    except UnicodeDecodeError:
        return None
