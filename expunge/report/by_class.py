"""What becomes of each class of images: what a report holds of it, and the lines of a page.

A class is gone where no image of it is retained; of a class that loses a few images only the forget set's are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LINES = 12
"""Classes with a line of their own at most; the rest is counted together."""


@dataclass(frozen=True)
class ClassCount:
    """The images of one class in one set."""

    set: str
    label: str
    gone: bool
    """Whether they should be named no more."""
    n: int
    right: dict[str, int]
    """How many of them are named rightly by each model: before, after, reference."""


@dataclass(frozen=True)
class Placed:
    """Where one image lies in a plane of the representation."""

    set: str
    label: str
    gone: bool
    at: dict[str, tuple[float, float]]
    """Two coordinates by model: before, after, reference; in standard deviations along the plane's first axis."""


@dataclass(frozen=True)
class ClassLine:
    """A line of the page: a class, or several together."""

    set: str
    label: str
    gone: bool
    n: int
    shares: dict[str, float]
    """Of right answers, from 0 to 1, by model."""


def class_lines(rows: Sequence[ClassCount]) -> list[ClassLine]:
    """What should be gone first, then the classes whose share changed most; of each set the rest as one line."""
    gone, stays = ([row for row in rows if row.gone is which] for which in (True, False))
    stays.sort(key=lambda row: (-_measure_change(row), row.set, row.label))
    room = max(LINES // 2, LINES - len(gone))
    shown = [*gone[:LINES], *(stays[:room] if len(stays) > room + 1 else stays)]  # one alone has a line, too
    left = [row for row in rows if row not in shown]
    rest = [
        [row for row in left if (row.set, row.gone) == kind] for kind in dict.fromkeys((r.set, r.gone) for r in left)
    ]
    return [_line(row.label, [row]) for row in shown] + [_line(f"{len(each)} others", each) for each in rest]


def _measure_change(row: ClassCount) -> float:
    """How far the share changed; in an audit, how many are named wrongly."""
    return abs(row.right["before"] - row.right.get("after", row.n)) / row.n


def _line(label: str, rows: Sequence[ClassCount]) -> ClassLine:
    n = sum(row.n for row in rows)
    return ClassLine(
        rows[0].set, label, rows[0].gone, n, {m: sum(row.right[m] for row in rows) / n for m in rows[0].right}
    )
