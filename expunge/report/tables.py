"""Findings of several runs as tables for other programs: CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from expunge.report.words import interval, number, visible

if TYPE_CHECKING:
    from expunge.core.audit import Finding
    from expunge.report.report import Report

Runs = Sequence[tuple[str, "Report"]]
HEAD = ("run", "set", "audit", "model", "value", "low", "high", "n", "ideal", "better")
MARKS = {".csv": ",".join(HEAD).encode(), ".md": b"<!-- expunge -->", ".tex": b"% expunge"}
"""How each kind of table begins, by the ending of its file."""
SPECIAL = re.compile(r"[&%$#_{}~^\\]")


def render_table(runs: Runs, ending: str) -> str:
    """The table of that ending: CSV has a line for each number, the others a line for each audit on a set."""
    return RENDER[ending](runs)


def _csv(runs: Runs) -> str:
    made = io.StringIO()
    lines = csv.writer(made, lineterminator="\n")
    lines.writerow(HEAD)
    for name, report in runs:
        for f in report.findings:
            ends = ("", "") if f.low == f.high else (f.low, f.high)
            numbers = (f.value, *ends, f.n, "" if f.ideal is None else f.ideal)
            lines.writerow([visible(name), visible(f.set), f.audit, f.model, *numbers, f.better])
    return made.getvalue()


def _markdown(runs: Runs) -> str:
    head, *lines = _wide(runs, lambda text: text.replace("|", "\\|"), "–")
    ruled = [head, ["---"] * 2 + ["--:"] * (len(head) - 2), *lines]
    return "\n".join([MARKS[".md"].decode(), *(f"| {' | '.join(line)} |" for line in ruled)]) + "\n"


def _latex(runs: Runs) -> str:
    head, *lines = _wide(runs, escape_latex, "--")
    body = [" & ".join(line) + r" \\" for line in (head, *lines)]
    return "\n".join(
        [
            MARKS[".tex"].decode(),
            rf"\begin{{tabular}}{{ll{'r' * (len(head) - 2)}}}",
            r"\hline",
            body[0],
            r"\hline",
            *body[1:],
            r"\hline",
            r"\end{tabular}",
            "",
        ]
    )


RENDER: dict[str, Callable[[Runs], str]] = {".csv": _csv, ".md": _markdown, ".tex": _latex}


def _wide(runs: Runs, written: Callable[[str], str], dash: str) -> list[list[str]]:
    """Before (of the first run that has it), after of each run, the reference, the ideal; intervals in brackets."""
    known = {(place, f.set, f.audit, f.model): f for place, (_, report) in enumerate(runs) for f in report.findings}
    rows = dict.fromkeys((where, audit) for _, where, audit, _ in known)

    def spell(found: Finding | None) -> str:
        if found is None:
            return dash
        span = interval(found.low, found.high, ", ")
        return f"{number(found.value)}{f' [{span}]' if span else ''}".replace("–", dash)

    def first(where: str, audit: str, model: str) -> Finding | None:
        return next((f for p in range(len(runs)) if (f := known.get((p, where, audit, model)))), None)

    lines = [["set", "audit", "before", *(written(str(visible(name))) for name, _ in runs), "reference", "ideal"]]
    for where, audit in rows:
        after = [known.get((place, where, audit, "after")) for place in range(len(runs))]
        ideals = [f.ideal for f in after if f is not None and f.ideal is not None]
        lines.append(
            [
                written(str(visible(where))),
                written(audit),
                spell(first(where, audit, "before")),
                *map(spell, after),
                spell(first(where, audit, "reference")),
                number(ideals[0]).replace("–", dash) if ideals else dash,
            ]
        )
    return lines


def escape_latex(text: str) -> str:
    """A text in which nothing is a command to LaTeX."""
    named = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return SPECIAL.sub(lambda found: named.get(found[0], f"\\{found[0]}"), text)
