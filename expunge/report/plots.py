"""Inline SVG plots of a run: its curves, several runs overlaid, which share their style with trade-offs.

Made for a page, not for a file of their own: no XML prologue, no size (the page sets the width), and every colour is
`var(--name, #hex)`, so that the page's light and dark schemes recolour them. The same input gives the same bytes.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from expunge.events import Checked, Step
from expunge.report.strips import finite

Line = Step | Checked
LOSSES: dict[str, Callable[[Line], float | None]] = {"forget": lambda at: at.forget, "retain": lambda at: at.retain}

RUN_COLOURS = ("#31689e", "#bd5430", "#2c8463", "#8457ad", "#a87708", "#2f8ba6", "#aa4570", "#66752f")
"""Later runs begin again; they are told apart by their letter."""

COLOURS = {
    "ink": "#1c2126",
    "soft": "#5c6670",
    "line": "#dedad2",
    "card": "#fffefe",
    "forget": "#c2512f",
    "retain": "#2b6f9c",
    "other": "#6b6794",
} | {f"run-{number}": colour for number, colour in enumerate(RUN_COLOURS)}
"""Names of the page's CSS variables, each with the colour that stands in where no page sets it. No two are equal."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",  # ships with matplotlib, so the layout is the same on every machine
    "font.size": 10,
    "text.color": COLOURS["ink"],
    "axes.edgecolor": COLOURS["soft"],
    "axes.labelcolor": COLOURS["soft"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.8,
    "xtick.color": COLOURS["soft"],
    "ytick.color": COLOURS["soft"],
    **{f"{axis}tick.{rank}.size": 0 for axis in "xy" for rank in ("major", "minor")},
    "legend.frameon": False,
    "legend.handlelength": 1.4,
}


def curves(steps: Sequence[Line], kept: int | None = None, level: float | None = None) -> str:
    """Three SVGs in a row, fewer where nothing was recorded: losses, gradient norms, size of the change."""
    taken = [line for line in steps if isinstance(line, Step)]
    checks = [line for line in steps if isinstance(line, Checked)]
    if level is None:
        level = next((check.level for check in reversed(checks) if finite(check.level)), None)
    with matplotlib.rc_context(STYLE):
        panels = [_losses(taken, checks, kept, level), _gradients(taken, kept), _change(taken, kept)]
    return "\n".join(panel for panel in panels if panel)


def overlay(runs: Sequence[tuple[str, Sequence[Line]]]) -> str:
    """Two SVGs: the forget loss and the retain loss of several runs; the label is a run's letter."""
    with matplotlib.rc_context(STYLE):
        panels = [_overlaid(runs, name) for name in ("forget", "retain")]
    return "\n".join(panel for panel in panels if panel)


# The panels of one run


def _losses(taken: Sequence[Step], checks: Sequence[Checked], kept: int | None, level: float | None) -> str:
    figure, axes = panel(title="Loss")
    for name in ("forget", "retain"):
        _line(axes, taken, name, label=None if _has(checks, name) else name, color=COLOURS[name], alpha=0.5, lw=1.2)
        _line(axes, checks, name, label=name, color=COLOURS[name], lw=1.8, ms=4.5, marker=_dots(checks))
    if not axes.lines:
        return ""
    if finite(level):
        axes.axhline(level, color=COLOURS["forget"], lw=1.2, ls=(0, (4, 3)), label=f"level {level:.2f}")
    _finish(axes, kept)
    return as_svg(figure, "loss", "Forget and retain loss at each step")


def _gradients(taken: Sequence[Step], kept: int | None) -> str:
    figure, axes = panel(title="Gradient norm, by part of the network")
    parts = dict.fromkeys(part for line in taken for part in line.gradient)
    tints = {"mlp": "run-2", "attention": "run-4"}
    for part in parts:
        norms = [_number(line.gradient.get(part)) for line in taken]
        silent = not any(norm > 0 for norm in norms)  # nothing to draw on a log axis, but worth saying
        heights = [norm if norm > 0 else math.nan for norm in norms]
        label = plain(part) + (": 0" if silent else "")
        axes.plot(_at(taken), heights, label=label, color=COLOURS[tints.get(part, "soft")], lw=1.6)
    if all(math.isnan(norm) for line in axes.lines for _, norm in _points(line)):
        return ""
    axes.set_yscale("log")
    _finish(axes, kept)
    return as_svg(figure, "gradient", "Gradient norms at each step, on a logarithmic axis")


def _change(taken: Sequence[Step], kept: int | None) -> str:
    figure, axes = panel(title="Size of the change to the weights")
    for norm, tint in (("frobenius", "run-0"), ("spectral", "run-3")):
        sizes = [_number(line.delta.get(norm)) for line in taken]
        if any(map(math.isfinite, sizes)):
            axes.plot(_at(taken), sizes, label=norm.capitalize(), color=COLOURS[tint], lw=1.6)
    if not axes.lines:
        return ""
    axes.set_ylim(bottom=0)
    _finish(axes, kept)
    return as_svg(figure, "change", "Frobenius and spectral norm of the change at each step")


# The panels of several runs


def _overlaid(runs: Sequence[tuple[str, Sequence[Line]]], name: str) -> str:
    figure, axes = panel(title=f"{name.capitalize()} loss", pad=12)
    for number, (label, steps) in enumerate(runs):
        checks: list[Line] = [line for line in steps if isinstance(line, Checked)]
        shown = checks if _has(checks, name) else [line for line in steps if isinstance(line, Step)]
        style = ["-", (0, (5, 2)), (0, (1, 1.5))][number // len(RUN_COLOURS) % 3]
        _line(axes, shown, name, label=label, color=run_colour(number), ls=style, lw=1.7, ms=3, marker=_dots(shown))
    if not axes.lines:
        return ""
    _finish(axes, kept=None, legend=False)
    _letter_the_ends(axes)
    return as_svg(figure, f"overlay-{name}", f"{name.capitalize()} loss of every run at each step")


def run_colour(number: int) -> str:
    """The colour of the run with this number."""
    return RUN_COLOURS[number % len(RUN_COLOURS)]


def _letter_the_ends(axes: Axes) -> None:
    """Name each line where it ends, none on top of another: nearer than a legend, and it does not rest on colour."""
    to_height = axes.transScale.transform
    (_, low), (_, high) = to_height(list(zip(axes.get_xlim(), axes.get_ylim(), strict=True)))
    ends = sorted((_last(line) for line in axes.lines), key=lambda end: end[1])
    floor = -math.inf
    for step, loss, line in ends:
        floor = max(floor + 0.06, (to_height((step, loss))[1] - low) / (high - low))
        axes.annotate(
            str(line.get_label()), (step, floor), (6, 0), xycoords=axes.get_xaxis_transform(),
            textcoords="offset points", va="center", color=line.get_color(), weight="bold",
        )  # fmt: skip


def _last(line: Line2D) -> tuple[float, float, Line2D]:
    step, loss = [(step, loss) for step, loss in _points(line) if math.isfinite(loss)][-1]
    return step, loss, line


def _points(line: Line2D) -> list[tuple[float, float]]:
    data: Any = line.get_data()
    return [(float(x), float(y)) for x, y in zip(*data, strict=True)]


# What every panel shares


def panel(title: str = "", height: float = 3.7, pad: int = 24) -> tuple[Figure, Axes]:
    """An empty plot of a page's usual width."""
    figure = Figure(figsize=(6.4, height), layout="constrained")
    axes = figure.add_subplot()
    axes.xaxis.grid(False)
    if title:
        axes.set_title(title, loc="left", fontsize=11.5, fontweight="bold", pad=pad)
    return figure, axes


def _line(axes: Axes, lines: Sequence[Line], name: str, **style: Any) -> None:
    if _has(lines, name):
        axes.plot(_at(lines), [_number(LOSSES[name](line)) for line in lines], **style)


def _finish(axes: Axes, kept: int | None, legend: bool = True) -> None:
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _spread(axes)
    if finite(kept):
        axes.axvline(kept, color=COLOURS["ink"], lw=1.2, ls=(0, (1, 2)), label=f"kept: step {kept}")
    if legend:
        axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 0.98), ncols=4, borderpad=0.2)


def _spread(axes: Axes) -> None:
    """A logarithmic axis where one curve would flatten another: an ascent may leave its retain loss far below."""
    heights = [y for line in axes.lines for _, y in _points(line) if math.isfinite(y)]
    if axes.get_ylim()[0] != 0 and min(heights) > 0 and max(heights) > 1000 * min(heights):
        axes.set_yscale("log")
    if axes.get_yscale() == "log":
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _at(lines: Iterable[Line]) -> list[float]:
    return [line.step for line in lines]


def _dots(lines: Sequence[Line]) -> str:
    return "o" if len(lines) <= 40 else ""  # more would run into a rope


def _has(lines: Iterable[Line], name: str) -> bool:
    return any(finite(LOSSES[name](line)) for line in lines)


def _number(value: object) -> float:
    return float(value) if finite(value) else math.nan  # a gap in the line


def plain(text: str) -> str:
    """What the layout font can measure: ASCII, and short; the page has the text in full."""
    spelled = text.encode("ascii", "backslashreplace").decode("ascii")
    printable = "".join(letter if letter.isprintable() else "?" for letter in spelled)
    cut = printable if len(printable) <= 60 else printable[:57] + "..."
    return cut.replace("$", r"\$")  # else matplotlib would read what stands between two of them as a formula


def as_svg(figure: Figure, name: str, description: str) -> str:
    """A figure as markup for a page; `name` begins each of its ids."""
    out = io.StringIO()
    silent = {"Date": None, "Creator": None, "Format": None, "Type": None}
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(out, format="svg", transparent=True, metadata=silent)
    return _for_a_page(out.getvalue(), name, description)


def _for_a_page(svg: str, name: str, description: str) -> str:
    """Drop what belongs to a file, give ids a prefix of their own, and let the page choose colours."""
    box = re.search(r'viewBox="([\d. -]+)"', svg)
    assert box
    head = f'<svg class="plot" role="img" aria-label="{escape(description)}" viewBox="{box[1]}">'
    body = re.sub(r"^.*?<svg[^>]*>", "", svg, flags=re.DOTALL)
    body = re.sub(r"<(style|metadata).*?</\1>", "", body, flags=re.DOTALL)  # a style would bind the whole page
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(url\(|xlink:href=")#', rf"\1#{name}-", body)
    for variable, colour in COLOURS.items():
        body = body.replace(colour, f"var(--{variable}, {colour})")
    return head + re.sub(r"\n\s*", "\n", body).strip()
