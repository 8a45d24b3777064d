"""Results of a benchmark side by side: Markdown, LaTeX and CSV, and a plot of forgetting against what is left.

Folders called seed-0, seed-1, ... of one folder are one row of runs: their mean, and their standard deviation (n - 1).
"""

from __future__ import annotations

import csv
import io
import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from expunge.benchmarks._job import VALUES, recompute
from expunge.benchmarks._kinds import Benchmark
from expunge.benchmarks._numbers import Number
from expunge.benchmarks._oracles import FEWEST, Oracles
from expunge.benchmarks._values import Values
from expunge.errors import UsageRefused
from expunge.notation.parse import parse
from expunge.report.tables import escape_latex
from expunge.report.words import interval, number, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SEED = re.compile(r"seed-\d+")
PLOTS = (".svg", ".png", ".pdf")
Key = tuple[str, str, str]
LEAST = 1e-300
"""Least p-value that is drawn."""


@dataclass(frozen=True)
class Runs:
    """Results that differ in their seed alone, or a single one."""

    name: str
    numbers: Sequence[Mapping[Key, Number]]
    """Of each run its numbers, by name, set and reference."""
    together: Mapping[Key, Number] = field(default_factory=dict)
    """Numbers that are of all runs together."""

    def values(self, key: Key) -> list[float]:
        """What the runs have there."""
        found = [run[key].value for run in self.numbers if key in run]
        return [value for value in found if value is not None]

    def cell(self, key: Key) -> str:
        """The one value with its interval, or mean and spread of several."""
        if key in self.together:
            return number(cast(float, self.together[key].value))
        values = self.values(key)
        if not values:
            return "–"
        if len(values) > 1:
            return f"{number(statistics.fmean(values))} ± {number(statistics.stdev(values))}"
        one = next(run[key] for run in self.numbers if key in run)
        span = "" if one.low is None or one.high is None else interval(one.low, one.high, ", ")
        return f"{number(values[0])}{f' [{span}]' if span else ''}"


@dataclass(frozen=True)
class Table:
    """Several runs of one benchmark under one definition."""

    benchmark: str
    runs: Sequence[Runs]

    def places(self) -> list[Key]:
        """Every number, in the order in which they were made."""
        of_one = (key for runs in self.runs for run in runs.numbers for key in run)
        return list(dict.fromkeys([*of_one, *(key for runs in self.runs for key in runs.together)]))

    def definition(self, key: Key) -> str:
        """What a number is, by the first run that has it."""
        return next(run[key].definition for runs in self.runs for run in (*runs.numbers, runs.together) if key in run)


def gather(folders: Sequence[Path], oracles: Oracles | None = None) -> Table:
    """The table of some folders, those of several seeds held against oracles too. Raises `UsageRefused` where they
    cannot stand in one."""
    groups: dict[str, list[Path]] = {}
    found: dict[Path, Mapping[Key, Number]] = {}
    benchmarks: dict[str, Path] = {oracles.benchmark: Path(oracles.name)} if oracles else {}
    for folder in folders:
        result, numbers = recompute(folder)
        benchmarks.setdefault(result.benchmark, folder)
        own = folder.resolve()
        name = own.parent.name if SEED.fullmatch(own.name) else own.name
        groups.setdefault(name, []).append(folder)
        found[folder] = _by_key(numbers)
    if len(benchmarks) > 1:
        shown = "; ".join(f"{folder}: {line}" for line, folder in benchmarks.items())
        raise UsageRefused(f"Numbers of different definitions cannot stand in one table. {shown}. Give them apart.")
    if oracles and max(map(len, groups.values())) < FEWEST:
        raise UsageRefused(
            f"--oracles: a column needs {FEWEST} runs or more to be held against them, of several seeds (--seeds 0-9)."
        )
    columns = []
    for name, group in groups.items():
        held = oracles.hold([Values.read(folder / VALUES) for folder in group]) if oracles else ()
        columns.append(Runs(name, [found[folder] for folder in group], _by_key(held)))
    return Table(next(iter(benchmarks)), columns)


def _by_key(numbers: Iterable[Number]) -> dict[Key, Number]:
    return {(each.name, each.set, each.against): each for each in numbers}


def markdown(table: Table) -> str:
    """A row for each number, a column for each row of runs; below it what every number is."""
    rows = [["number", "set", "against", *(_plain(runs.name) for runs in table.runs)]]
    rows += [[*map(_plain, key), *(runs.cell(key) for runs in table.runs)] for key in table.places()]
    ruled = [rows[0], ["---"] * 3 + ["--:"] * len(table.runs), *rows[1:]]
    told: dict[tuple[str, str], list[str]] = {}
    for key in table.places():
        told.setdefault((key[0], table.definition(key)), []).append(key[1])
    legend = [
        f"- **{_plain(name)}** ({_plain(', '.join(dict.fromkeys(sets)))}): {what}"
        for (name, what), sets in told.items()
    ]
    seeds = ", ".join(f"{_plain(runs.name)} {len(runs.numbers)}" for runs in table.runs)
    lines = ["<!-- expunge -->", f"`{table.benchmark}`", "", *(f"| {' | '.join(row)} |" for row in ruled), ""]
    return "\n".join(
        [*lines, f"Runs: {seeds}. [a, b] is a 95 % interval, ± the standard deviation between runs.", "", *legend, ""]
    )


def latex(table: Table) -> str:
    """The same as a tabular."""
    head = ["number", "set", "against", *(escape_latex(_plain(runs.name)) for runs in table.runs)]
    body = [
        [*(escape_latex(_plain(part)) for part in key), *(runs.cell(key).replace("±", r"$\pm$") for runs in table.runs)]
        for key in table.places()
    ]
    lines = [" & ".join(row).replace("–", "--") + r" \\" for row in (head, *body)]
    begin = rf"\begin{{tabular}}{{lll{'r' * len(table.runs)}}}"
    return "\n".join(
        [
            "% expunge",
            f"% {table.benchmark}",
            begin,
            r"\hline",
            lines[0],
            r"\hline",
            *lines[1:],
            r"\hline",
            r"\end{tabular}",
            "",
        ]
    )


def comma_separated(table: Table) -> str:
    """A line for each number of each run."""
    made = io.StringIO()
    lines = csv.writer(made, lineterminator="\n")
    lines.writerow(("run", "place", "number", "set", "against", "value", "low", "high", "n", "definition"))
    for runs in table.runs:
        for place, run in (*enumerate(runs.numbers), ("all", runs.together)):
            for (name, where, against), each in run.items():
                ends = ["" if end is None else end for end in (each.value, each.low, each.high)]
                lines.writerow([_plain(runs.name), place, name, where, _plain(against), *ends, each.n, each.definition])
    return made.getvalue()


def plot(table: Table, path: Path) -> None:
    """A point for each run: how far forgotten to the right, what is left upwards."""
    from matplotlib.figure import Figure

    across, up = cast(Benchmark, parse(table.benchmark)).axes
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.add_subplot()
    _scatter(axes, table, across, up)
    axes.set_xlabel(" of ".join(across))
    axes.set_ylabel(" of ".join(up))
    if across[0] == "forget quality":
        axes.set_xscale("log")
        axes.axvline(0.05, color="0.5", lw=0.8, ls="--")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _scatter(axes: Axes, table: Table, across: tuple[str, str], up: tuple[str, str]) -> None:
    """Against each reference the points of all rows of runs, labelled."""
    drawn = 0
    for runs in table.runs:
        for reference in dict.fromkeys(key[2] for key in table.places() if key[:2] == across):
            pairs = [
                (x.value, y.value)
                for run in runs.numbers
                if (x := run.get((*across, reference))) and (y := run.get((*up, "")))
                if x.value is not None and y.value is not None and math.isfinite(x.value)
            ]
            if pairs:
                xs, ys = zip(
                    *((max(x, LEAST) if across[0] == "forget quality" else x, y) for x, y in pairs), strict=True
                )
                axes.scatter(xs, ys, label=_plain(f"{runs.name}{f' against {reference}' if reference else ''}"))
                drawn += 1
    if not drawn:
        raise UsageRefused(f"No run has both {' of '.join(across)} and {' of '.join(up)}. Give --reference to `bench`.")
    axes.legend(fontsize=8)


def _plain(text: str) -> str:
    return str(visible(text)).replace("|", "/").replace("\n", " ")


RENDER: Mapping[str, Callable[[Table], str]] = {".md": markdown, ".tex": latex, ".csv": comma_separated}
