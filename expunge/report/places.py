"""The plot of where images lie in the representation of each model."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from expunge.report.by_class import Placed
from expunge.report.plots import COLOURS, STYLE, as_svg, plain

TITLES = {"before": "Before", "after": "After", "reference": "Reference"}
NAMED = 12
"""Classes whose names stand in the plot at most: more would cover it."""


def draw_places(points: Sequence[Placed]) -> str:
    """An SVG with a panel for each model; "" where there is nothing to draw."""
    if not points:
        return ""
    models = [name for name in TITLES if name in points[0].at]
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(3.2 * len(models), 3.6), layout="constrained")
        panels = figure.subplots(1, len(models), sharex=True, sharey=True, squeeze=False)[0]
        for axes, model in zip(panels, models, strict=True):
            axes.set_title(TITLES[model], loc="left", fontsize=11.5, fontweight="bold")
            axes.set_xticks([])
            axes.set_yticks([])
            _scatter(axes, points, model)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=4, markerscale=1.6)
        return as_svg(figure, "places", "Where images lie in the representation of each model")


def _scatter(axes: Axes, points: Sequence[Placed], model: str) -> None:
    """Dots for what stays, triangles for what should be gone, and each class's name at its middle."""
    for gone, tint, mark, size, label in (
        (False, "retain", "o", 10, "should stay"),
        (True, "forget", "^", 18, "should be gone"),
    ):
        where = np.array([p.at[model] for p in points if p.gone is gone]).reshape(-1, 2)
        axes.scatter(
            where[:, 0], where[:, 1], s=size, c=COLOURS[tint], alpha=0.6, marker=mark, linewidths=0, label=label
        )
    classes: dict[tuple[str, bool], list[tuple[float, float]]] = {}
    for p in points:
        classes.setdefault((p.label, p.gone), []).append(p.at[model])
    for (name, gone), places in classes.items() if len(classes) <= NAMED else ():
        across, up = np.median(places, axis=0)
        text = axes.annotate(plain(name)[:14], (across, up), ha="center", va="center", fontsize=8.5)
        text.set(color=COLOURS["forget" if gone else "ink"], weight="bold" if gone else "normal")
