"""What was measured of each text of a benchmark, and of which every total is made again: a table, kept as Parquet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from expunge.errors import DataRefused, EnvironmentRefused

RIGHT = "answer"
"""The answer that a record has; others of its question are called `paraphrase`, `wrong 1`, `wrong 2`, ..."""
PARAPHRASE = "paraphrase"
WRONG = "wrong"
IDENTITY = "identity"
"""Measure that is the same for the same record alone, where which records a set has depends on the model."""


class Column(NamedTuple):
    """One measure of one answer to the questions of one set."""

    set: str
    measure: str
    answer: str = RIGHT


@dataclass(frozen=True)
class Values:
    """A number for each record of each column; records are counted from 0 in the order of their file."""

    columns: Mapping[Column, Mapping[int, float]]

    def has(self, where: str, measure: str, answer: str = RIGHT) -> bool:
        """Whether that was measured."""
        return Column(where, measure, answer) in self.columns

    def records(self, where: str, measure: str, answer: str = RIGHT, first: int | None = None) -> Mapping[int, float]:
        """A column by its records, of the first ones alone where `first` is given. Raises `DataRefused`."""
        column = self.columns.get(Column(where, measure, answer))
        if column is None:
            raise DataRefused(f"The values hold no {measure} of the {answer} of the set '{where}'. Evaluate it anew.")
        return {record: column[record] for record in sorted(column) if first is None or record < first}

    def of(self, where: str, measure: str, answer: str = RIGHT, first: int | None = None) -> list[float]:
        """A column in the order of its records."""
        return list(self.records(where, measure, answer, first).values())

    def wrong(self, where: str, measure: str, first: int | None = None) -> list[list[float]]:
        """Of each record the measure of its wrong answers, of which there may be more or fewer."""
        found: dict[int, list[tuple[int, float]]] = {}
        for column, values in self.columns.items():
            kind, _, number = column.answer.partition(" ")
            if (column.set, column.measure, kind) == (where, measure, WRONG):
                for record, value in values.items():
                    found.setdefault(record, []).append((int(number), value))
        known = sorted(record for record in found if first is None or record < first)
        return [[value for _, value in sorted(found[record])] for record in known]

    def sets(self) -> list[str]:
        """The sets, in the order of the table."""
        return list(dict.fromkeys(column.set for column in self.columns))

    def join(self, other: Values) -> Values:
        """Both tables as one."""
        return Values({**self.columns, **other.columns})

    @staticmethod
    def collect(rows: Iterable[tuple[Column, int, float]]) -> Values:
        """The table of these numbers."""
        columns: dict[Column, dict[int, float]] = {}
        for column, record, value in rows:
            columns.setdefault(column, {})[record] = float(value)
        return Values(columns)

    def save(self, path: Path) -> None:
        """Write the table: columns set, measure, answer, record and value."""
        rows = [(*column, record, value) for column, values in self.columns.items() for record, value in values.items()]
        names = ("set", "measure", "answer", "record", "value")
        parquet, pyarrow = _parquet()
        table = pyarrow.table({name: [row[k] for row in rows] for k, name in enumerate(names)})
        parquet.write_table(table, path)

    @staticmethod
    def read(path: Path) -> Values:
        """The table that `save` wrote. Raises `DataRefused`."""
        parquet, pyarrow = _parquet()
        try:
            rows: Sequence[Mapping[str, Any]] = parquet.read_table(path).to_pylist()
            named = [(Column(row["set"], row["measure"], row["answer"]), row["record"], row["value"]) for row in rows]
        except (OSError, KeyError, pyarrow.ArrowException) as error:
            raise DataRefused(f"{path}: not a table of values that `expunge bench` wrote. Evaluate it anew.") from error
        return Values.collect(named)


def _parquet() -> tuple[Any, Any]:
    try:
        import pyarrow.parquet  # an extra
    except ImportError as error:
        raise EnvironmentRefused(
            "The values are kept as Parquet, which needs: pip install 'expunge[parquet]'."
        ) from error
    return pyarrow.parquet, pyarrow
