"""The rows that a recipe keeps, a line of JSON each, and how its tables get into a page."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """What the file has; nothing where there is none."""
    if path.exists():
        yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())


def add(path: Path, made: Iterable[dict[str, Any]]) -> None:
    """Add rows to the file."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in made)


def keep(path: Path, row: dict[str, Any]) -> None:
    """Add a row to the file, and print it with few digits."""
    short = {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
    print(path.stem, short, flush=True)
    add(path, [row])


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    return "\n".join("| " + " | ".join(line) + " |" for line in (heads, ["---"] * len(heads), *lines))


def mean_and_range(values: Sequence[float | None], places: int = 2) -> str:
    """Of what is there: its mean, and of several the least and the most."""
    known = [value for value in values if value is not None]
    mean, low, high = (f"{each(known):.{places}f}" for each in (statistics.fmean, min, max)) if known else ("-", "", "")
    return f"{mean} ({low} to {high})" if len(known) > 1 else mean


def between(page: Path, name: str, text: str) -> None:
    """Put a recipe's tables between its marks."""
    start, end = f"<!-- {name}:start -->\n", f"<!-- {name}:end -->\n"
    before, _, rest = page.read_text(encoding="utf-8").partition(start)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{page} lacks the marks {start.strip()} and {end.strip()}, each on a line: add them.")
    page.write_text(f"{before}{start}{text}\n{end}{after}", encoding="utf-8")


def run_or_show(about: str | None, run: Callable[[Path], None], show: Callable[[Path], None]) -> None:
    """The command line of a recipe that has two verbs and a file of rows."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "show"])
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    {"run": run, "show": show}[given.what](given.out)
