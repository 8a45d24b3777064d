"""What forgetting cost: a plot of what was forgotten against what was kept, one point for each model."""

from __future__ import annotations

import cmath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, NullFormatter

from expunge.report.plots import COLOURS, STYLE, as_svg, panel, plain, run_colour
from expunge.report.strips import Span, finite, piles_up


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


def draw_tradeoff(points: Sequence[Point], forget: Axis, kept: Axis, name: str = "tradeoff") -> str:
    """What was forgotten against what was kept, one point for each model, with intervals; none covers another."""
    with matplotlib.rc_context(STYLE):
        figure, axes = panel(height=4.6)
        for point in points:
            _cross(axes, point)
        _name_axes(axes, forget, kept)
        axes.margins(0.12)
        _scale(axes, [p.forget.value for p in points], forget, "x")
        _scale(axes, [p.retain.value for p in points], kept, "y")
        figure.draw_without_rendering()  # only then is it known where a value lies
        places = axes.transData.transform([(p.forget.value, p.retain.value) for p in points]) * 72 / figure.dpi
        offsets = part([(float(x), float(y)) for x, y in places], [point.run is None for point in points])
        for point in (each for each in points if each.run is None):
            _name(axes, point)
        for point, offset in zip(points, offsets, strict=True):
            if point.run is not None:
                _letter(axes, point, offset)
        said = "; ".join(f"{p.label}: forget {p.forget.value:.3g}, kept {p.retain.value:.3g}" for p in points)
        return as_svg(figure, re.sub(r"[^0-9A-Za-z_-]", "_", name), f"Trade-off. {said}")


WIDTH = 18.0
"""Points by which the middles of two marks must be apart, so that neither covers the other."""


def part(places: Sequence[tuple[float, float]], fixed: Sequence[bool]) -> list[tuple[float, float]]:
    """How far to move each mark from its place, in points, so that none covers another; those that are fixed stay."""
    now = [complex(*place) for place in places]
    for _ in range(200):
        moved = False
        for one, other in combinations(range(len(now)), 2):
            gap = now[other] - now[one]
            share = (not fixed[one]) + (not fixed[other])
            if abs(gap) >= WIDTH - 0.01 or not share:
                continue
            # On one spot there is no way that leads apart, so each goes its own.
            way = gap / abs(gap) if abs(gap) > 1e-6 else cmath.exp(2.4j * other)
            push = way * (WIDTH - abs(gap)) / share
            now[one] -= 0 if fixed[one] else push
            now[other] += 0 if fixed[other] else push
            moved = True
        if not moved:
            break
    shifts = [at - complex(*place) for at, place in zip(now, places, strict=True)]
    return [(round(shift.real, 1), round(shift.imag, 1)) for shift in shifts]


def _colour_of(point: Point) -> str:
    return COLOURS["soft"] if point.run is None else run_colour(point.run)


def _cross(axes: Axes, point: Point) -> None:
    """The interval of each value, which meet at the place itself."""
    x, y, color = point.forget, point.retain, _colour_of(point)
    is_run = point.run is not None
    axes.errorbar(
        [x.value], [y.value], xerr=_reach(x), yerr=_reach(y), fmt="o" if is_run else "D", ms=3 if is_run else 6.5,
        mfc=color if is_run else COLOURS["card"], mec=color, mew=1.4, ecolor=color, elinewidth=1.2, zorder=2,
    )  # fmt: skip


def _name(axes: Axes, point: Point) -> None:
    """A word beside a model that is no run, on the side where no other has one."""
    before = sum(isinstance(text, Annotation) for text in axes.texts)
    beside = (9, 9 if before % 2 == 0 else -16)
    place = (point.forget.value, point.retain.value)
    axes.annotate(plain(point.label), place, beside, textcoords="offset points", color=_colour_of(point), zorder=4)


def _letter(axes: Axes, point: Point, offset: tuple[float, float]) -> None:
    """A run's letter in a dot, with a line that leads to its place if it is not there."""
    color, place = _colour_of(point), (point.forget.value, point.retain.value)
    leader = {"arrowstyle": "-", "color": color, "lw": 1.0, "shrinkA": 0, "shrinkB": 0} if any(offset) else None
    axes.annotate(
        plain(point.label), place, offset, textcoords="offset points", arrowprops=leader,
        bbox={"boxstyle": "circle,pad=0.28", "fc": color, "ec": color}, ha="center", va="center_baseline",
        fontsize=8.5, color=COLOURS["card"], weight="bold", zorder=4,
    )  # fmt: skip


def _scale(axes: Axes, values: Sequence[float], axis: Axis, which: Literal["x", "y"]) -> None:
    """A logarithmic axis where most values pile up at 0, the part nearest to 0 linear if one of them is 0."""
    known = [*values, *([axis.ideal] if finite(axis.ideal) else [])]
    if not piles_up(known, max(known)):
        return
    least = min(value for value in known if value > 0)
    set_scale = axes.set_xscale if which == "x" else axes.set_yscale
    if min(known) > 0:
        set_scale("log")
    else:
        set_scale("symlog", linthresh=least)
    direction = axes.xaxis if which == "x" else axes.yaxis
    direction.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    direction.set_minor_formatter(NullFormatter())
    direction.set_label_text(f"{direction.get_label_text()}, log axis")


def _reach(span: Span) -> list[list[float]] | None:
    if not (finite(span.low) and finite(span.high)):
        return None
    # A bootstrap interval may leave its own estimate outside; matplotlib refuses a negative arm.
    return [[max(0.0, span.value - span.low)], [max(0.0, span.high - span.value)]]


def _name_axes(axes: Axes, forget: Axis, retain: Axis) -> None:
    axes.set_xlabel(plain(forget.name))
    axes.set_ylabel(plain(retain.name))
    dashed: dict[str, Any] = {"color": COLOURS["ink"], "lw": 1.0, "ls": (0, (4, 3)), "zorder": 1}
    if finite(forget.ideal):
        axes.axvline(forget.ideal, **dashed)
        axes.text(forget.ideal, 1.01, "ideal", transform=axes.get_xaxis_transform(), ha="center", va="bottom")
    if finite(retain.ideal):
        axes.axhline(retain.ideal, **dashed)
        axes.text(1.01, retain.ideal, "ideal", transform=axes.get_yaxis_transform(), ha="left", va="center")
