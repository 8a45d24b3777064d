"""Which class a model names for images of a class: what a report holds of it, and the table of a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

COLUMNS = 8
"""Classes with a column of their own at most."""


@dataclass(frozen=True)
class Confused:
    """How often each class was named for the images of one class in one set."""

    set: str
    label: str
    """The right class."""
    n: int
    """Images that were asked."""
    before: dict[str, int]
    after: dict[str, int] | None
    """None in an audit."""


@dataclass(frozen=True)
class ConfusionLine:
    """A row of the table."""

    set: str
    label: str
    n: int
    cells: list[str]
    """`43 → 0` for each column, `43` in an audit; a dot where there were none."""
    right: int | None
    """Number of the column of the right class."""


@dataclass(frozen=True)
class ConfusionTable:
    """The table, and its columns: classes, and `others` where there are more."""

    columns: list[str]
    lines: list[ConfusionLine]


def confusion_table(rows: Sequence[Confused]) -> ConfusionTable:
    """A column for each right class and for those that are named most; the rest is counted together."""
    named: Counter[str] = Counter()
    for row in rows:
        named.update(row.before)
        named.update(row.after or {})
    own = dict.fromkeys(row.label for row in rows)
    columns = [*own, *(name for name, _ in named.most_common() if name not in own)][:COLUMNS]
    more = bool(set(named) - set(columns))
    return ConfusionTable([*columns, *(["others"] if more else [])], [_line(row, columns, more) for row in rows])


def _line(row: Confused, columns: Sequence[str], more: bool) -> ConfusionLine:
    counts = [tuple(said.get(name, 0) for said in _counts_of(row)) for name in columns]
    if more:
        counts.append(tuple(sum(k for name, k in said.items() if name not in columns) for said in _counts_of(row)))
    cells = [" → ".join(f"{k:,}" for k in each) if any(each) else "·" for each in counts]
    right = columns.index(row.label) if row.label in columns else None
    return ConfusionLine(row.set, row.label, row.n, cells, right)


def _counts_of(row: Confused) -> list[dict[str, int]]:
    return [row.before, *([] if row.after is None else [row.after])]
