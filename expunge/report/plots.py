"""Inline SVG plots of a run: its curves, several runs overlaid, and what forgetting cost.

Made for a page, not for a file of their own: no XML prologue, no size (the page sets the width), and every colour is
`var(--name, #hex)`, so that the page's light and dark schemes recolour them. The same input gives the same bytes.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from expunge.events import Checked, Step
from expunge.report.strips import Span, finite

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


@dataclass(frozen=True)
class Point:
    """One model in the trade-off plot."""

    label: str
    """The run's letter, or a word for a model that is no run."""
    forget: Span
    retain: Span
    run: int | None = None
    """Which run's colour it wears; None is drawn hollow, as a landmark."""


@dataclass(frozen=True)
class Axis:
    """One direction of the trade-off plot."""

    name: str
    ideal: float | None = None
    """Where a dashed line says that the ideal is."""


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


def tradeoff(points: Sequence[Point], forget: Axis, retain: Axis) -> str:
    """What was forgotten against what was kept, one point for each model, with intervals."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _panel(height=4.6)
        for point in points:
            _mark(axes, point)
        _name_axes(axes, forget, retain)
        axes.margins(0.12)
        said = "; ".join(f"{p.label}: forget {p.forget.value:.3g}, retain {p.retain.value:.3g}" for p in points)
        return _svg(figure, "tradeoff", f"Trade-off. {said}")


# The panels of one run


def _losses(taken: Sequence[Step], checks: Sequence[Checked], kept: int | None, level: float | None) -> str:
    figure, axes = _panel(title="Loss")
    for name in ("forget", "retain"):
        _line(axes, taken, name, label=None if _has(checks, name) else name, color=COLOURS[name], alpha=0.5, lw=1.2)
        _line(axes, checks, name, label=name, color=COLOURS[name], lw=1.8, ms=4.5, marker=_dots(checks))
    if not axes.lines:
        return ""
    if finite(level):
        axes.axhline(level, color=COLOURS["forget"], lw=1.2, ls=(0, (4, 3)), label=f"level {level:.2f}")
    _finish(axes, kept)
    return _svg(figure, "loss", "Forget and retain loss at each step")


def _gradients(taken: Sequence[Step], kept: int | None) -> str:
    figure, axes = _panel(title="Gradient norm, by part of the network")
    parts = dict.fromkeys(part for line in taken for part in line.gradient)
    tints = {"mlp": "run-2", "attention": "run-4"}
    for part in parts:
        norms = [_number(line.gradient.get(part)) for line in taken]
        silent = not any(norm > 0 for norm in norms)  # nothing to draw on a log axis, but worth saying
        heights = [norm if norm > 0 else math.nan for norm in norms]
        label = _plain(part) + (": 0" if silent else "")
        axes.plot(_at(taken), heights, label=label, color=COLOURS[tints.get(part, "soft")], lw=1.6)
    if all(math.isnan(norm) for line in axes.lines for _, norm in _points(line)):
        return ""
    axes.set_yscale("log")
    _finish(axes, kept)
    return _svg(figure, "gradient", "Gradient norms at each step, on a logarithmic axis")


def _change(taken: Sequence[Step], kept: int | None) -> str:
    figure, axes = _panel(title="Size of the change to the weights")
    for norm, tint in (("frobenius", "run-0"), ("spectral", "run-3")):
        sizes = [_number(line.delta.get(norm)) for line in taken]
        if any(map(math.isfinite, sizes)):
            axes.plot(_at(taken), sizes, label=norm.capitalize(), color=COLOURS[tint], lw=1.6)
    if not axes.lines:
        return ""
    axes.set_ylim(bottom=0)
    _finish(axes, kept)
    return _svg(figure, "change", "Frobenius and spectral norm of the change at each step")


# The panels of several runs


def _overlaid(runs: Sequence[tuple[str, Sequence[Line]]], name: str) -> str:
    figure, axes = _panel(title=f"{name.capitalize()} loss", pad=12)
    for number, (label, steps) in enumerate(runs):
        checks: list[Line] = [line for line in steps if isinstance(line, Checked)]
        shown = checks if _has(checks, name) else [line for line in steps if isinstance(line, Step)]
        style = ["-", (0, (5, 2)), (0, (1, 1.5))][number // len(RUN_COLOURS) % 3]
        _line(axes, shown, name, label=label, color=run_colour(number), ls=style, lw=1.7, ms=3, marker=_dots(shown))
    if not axes.lines:
        return ""
    _finish(axes, kept=None, legend=False)
    _letter_the_ends(axes)
    return _svg(figure, f"overlay-{name}", f"{name.capitalize()} loss of every run at each step")


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


# The trade-off


def _mark(axes: Axes, point: Point) -> None:
    is_run = point.run is not None
    color = COLOURS["soft"] if point.run is None else run_colour(point.run)
    x, y = point.forget, point.retain
    axes.errorbar(
        [x.value], [y.value], xerr=_reach(x), yerr=_reach(y), fmt="o" if is_run else "D",
        ms=14 if is_run else 6.5, mfc=color if is_run else COLOURS["card"], mec=color, mew=1.4,
        ecolor=color, elinewidth=1.2, alpha=1.0, zorder=3 if is_run else 2,
    )  # fmt: skip
    inside, beside = (0, 0), (9, 9)  # a letter fits into its dot, a word does not
    axes.annotate(
        _plain(point.label), (x.value, y.value), inside if is_run else beside, textcoords="offset points",
        ha="center" if is_run else "left", va="center_baseline" if is_run else "center", fontsize=8.5 if is_run else 10,
        color=COLOURS["card"] if is_run else color, weight="bold" if is_run else "normal", zorder=4,
    )  # fmt: skip


def _reach(span: Span) -> list[list[float]] | None:
    if not (finite(span.low) and finite(span.high)):
        return None
    # A bootstrap interval may leave its own estimate outside; matplotlib refuses a negative arm.
    return [[max(0.0, span.value - span.low)], [max(0.0, span.high - span.value)]]


def _name_axes(axes: Axes, forget: Axis, retain: Axis) -> None:
    axes.set_xlabel(_plain(forget.name))
    axes.set_ylabel(_plain(retain.name))
    dashed: dict[str, Any] = {"color": COLOURS["ink"], "lw": 1.0, "ls": (0, (4, 3)), "zorder": 1}
    if finite(forget.ideal):
        axes.axvline(forget.ideal, **dashed)
        axes.text(forget.ideal, 1.01, "ideal", transform=axes.get_xaxis_transform(), ha="center", va="bottom")
    if finite(retain.ideal):
        axes.axhline(retain.ideal, **dashed)
        axes.text(1.01, retain.ideal, "ideal", transform=axes.get_yaxis_transform(), ha="left", va="center")


# What every panel shares


def _panel(title: str = "", height: float = 3.7, pad: int = 24) -> tuple[Figure, Axes]:
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


def _plain(text: str) -> str:
    """What the layout font can measure: ASCII, and short; the page has the text in full."""
    spelled = text.encode("ascii", "backslashreplace").decode("ascii")
    printable = "".join(letter if letter.isprintable() else "?" for letter in spelled)
    cut = printable if len(printable) <= 60 else printable[:57] + "..."
    return cut.replace("$", r"\$")  # else matplotlib would read what stands between two of them as a formula


def _svg(figure: Figure, name: str, description: str) -> str:
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
