"""The tables of `recipes/cifar.py`: a row for each method, means over seeds, in per cent."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from typing import Any

Row = dict[str, Any]
Key = tuple[str, str, str]

COLUMNS: dict[str, Key] = {
    "forget, test": ("accuracy", "forget test", ""),
    "forget, train": ("accuracy", "forget", ""),
    "retain": ("accuracy", "retain", ""),
    "test": ("accuracy", "test", ""),
    "MIA efficacy": ("MIA efficacy", "forget", ""),
    "called members": ("called members", "forget", ""),
    "linear probe": ("linear probe", "forget test", ""),
    "H-mean": ("H-mean", "all", "original"),
    "average gap": ("average gap", "all", "retrained"),
}
IN_A_ROW: dict[str, Key] = {
    "forget, test": ("accuracy", "forget test", ""),
    "test": ("accuracy", "test", ""),
    "not replayed": ("accuracy", "not replayed", ""),
    "ship": ("accuracy", "test of ship", ""),
    "cat": ("accuracy", "test of cat", ""),
    "truck": ("accuracy", "test of truck", ""),
    "linear probe": ("linear probe", "forget test", ""),
}
RELEARN: Key = ("relearn steps", "forget", "original")
SECONDS: Key = ("seconds", "run", "")


def tables(rows: list[Row]) -> Iterator[str]:
    """A table for each world that has rows."""
    for world in dict.fromkeys(row["world"] for row in rows):
        own = [row for row in rows if row["world"] == world]
        yield f"\n### {world}\n\n`{own[0]['benchmark']}`\n"
        yield from table(own, IN_A_ROW if world.startswith("in a row") else COLUMNS)


def table(rows: list[Row], columns: dict[str, Key]) -> Iterator[str]:
    """Methods from the least accurate on the forgotten class to the most, the yardsticks first."""
    runs: dict[str, list[dict[Key, float | None]]] = {}
    for row in rows:
        numbers = {(name, where, against): value for name, where, against, value, _, _ in row["numbers"]}
        runs.setdefault(row["run"], []).append(numbers)
    columns = {name: key for name, key in columns.items() if any(key in one for many in runs.values() for one in many)}
    first = [name for name in ("original", "retrained") if name in runs]
    yield line(["model", *columns, "relearn steps", "s", "seeds"])
    yield line(["---"] * (len(columns) + 4))
    for name in [*first, *(name for name in runs if name not in first)]:
        many = runs[name]
        cells = [share(one.get(key) for one in many) for key in columns.values()]
        yield line([name, *cells, relearnt(many), seconds(many), str(len(many))])


def share(values: Iterable[float | None]) -> str:
    """Mean in per cent, with the standard deviation where there are several."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return "–"
    spread = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.1f}{spread}"


def relearnt(many: list[dict[Key, float | None]]) -> str:
    """Of each seed."""
    if not any(RELEARN in one for one in many):
        return "–"
    return ", ".join("> 16" if one[RELEARN] is None else f"{one[RELEARN]:g}" for one in many)


def seconds(many: list[dict[Key, float | None]]) -> str:
    """The mean."""
    known = [value for one in many if (value := one.get(SECONDS)) is not None]
    return f"{statistics.fmean(known):.0f}" if known else "–"


def line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
