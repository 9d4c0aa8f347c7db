"""Plots as SVG text for an HTML page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from potstill.report.markdown import visible

Curve = Sequence[tuple[float, float]]


def line_plot(curves: Mapping[str, Curve], x_label: str, y_label: str) -> str:
    """Return an SVG of named curves over one pair of axes.

    Args:
        curves: name → (x, y) points.
        x_label: name of the x axis, with its unit.
        y_label: name of the y axis, with its unit.
    """
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for name, points in curves.items():
        axes.plot(
            *zip(*points, strict=True), label=_shown(name), marker="o" if len(points) < 20 else None, markersize=3
        )
    axes.set_xlabel(_shown(x_label))
    axes.set_ylabel(_shown(y_label))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def _shown(name: str) -> str:
    """Return a name that matplotlib shows unchanged: "$" would begin a formula, and "_a" would get no legend."""
    shown = visible(name).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def logged(history: Sequence[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    """Return the (step, value) points of a key in a trainer's log history."""
    return [(entry["step"], entry[key]) for entry in history if key in entry]
