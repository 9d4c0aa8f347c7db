"""Curves for an HTML page: an SVG that takes its colours from the page, so that it suits a dark and a light one."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.figure import Figure

from potstill.report.plots import Curve, shown_name

COLOURS = (
    ("#0b66c2", "#6cb2ff"),
    ("#c2410c", "#ff9f5a"),
    ("#15803d", "#5fd38a"),
    ("#9333ea", "#c99bff"),
    ("#b91c1c", "#ff8080"),
    ("#0e7490", "#4fd1e0"),
    ("#a16207", "#e8c14a"),
    ("#be185d", "#ff8cc3"),
)
"""The colours of curves, on a light and on a dark page. Each has a contrast of at least 4.5 to its page."""

MOST_POINTS = 300

_DASHES: tuple[tuple[int, ...], ...] = ((), (5, 2), (1, 2), (6, 2, 1, 2))
"""The dashes of the first eight curves, of the next eight, and so on."""

_INK, _PLACEHOLDER = "#0102f0", "#0203{:x}1"
"""Colours that nothing else has. The SVG gets colours of the page in their places."""


class Line(NamedTuple):
    """How a curve is drawn: its colour as CSS, and its dashes as the value of `stroke-dasharray`."""

    colour: str
    dashes: str


def page_plot(curves: Mapping[str, Curve], x_label: str, y_label: str) -> tuple[str, list[Line]]:
    """Return an SVG of curves over one pair of axes, for an HTML page, and how each curve is drawn, for its legend.

    Text and axes have the colour of the page's text, and the curves have the page's variables `--series-0` and so on,
    so the plot suits a dark and a light page.

    Args:
        curves: name → (x, y) points.
        x_label: name of the x axis, with its unit.
        y_label: name of the y axis, with its unit.
    """
    with rc_context(
        {
            **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
            "svg.hashsalt": "potstill",  # the same plot is the same text
        }
    ):
        figure = Figure(figsize=(4.6, 2.9), layout="constrained")
        axes = figure.add_subplot()
        lines = []
        for number, points in enumerate(curves.values()):
            colour, dashes = number % len(COLOURS), _DASHES[number // len(COLOURS) % len(_DASHES)]
            shown = thinned(points)
            axes.plot(
                *zip(*shown, strict=True),
                color=_PLACEHOLDER.format(colour),
                linestyle=(0, dashes),
                linewidth=1.7,
                marker="o" if len(shown) < 20 else None,
                markersize=3,
            )
            lines.append(Line(f"var(--series-{colour})", " ".join(map(str, dashes)) or "none"))
        axes.set_xlabel(shown_name(x_label))
        axes.set_ylabel(shown_name(y_label))
        axes.grid(alpha=0.2, color=_INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.locator_params(axis="x", nbins=6)
        text = io.StringIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of characters that the font lacks
            figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    svg = text.getvalue().replace(_INK, "currentColor")
    for number in range(len(COLOURS)):
        svg = svg.replace(_PLACEHOLDER.format(number), f"var(--series-{number})")
    return svg[svg.index("<svg") :], lines


def thinned(points: Curve, most: int = MOST_POINTS) -> Curve:
    """Return at most `most` of a curve's points, evenly chosen, its ends among them. An SVG of all would be large."""
    if len(points) <= most:
        return points
    return [points[round(number * (len(points) - 1) / (most - 1))] for number in range(most)]
