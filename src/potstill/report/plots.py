"""Plots: curves as SVG text for an HTML page, and confusion matrices as PNG files for cards."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from potstill.report.markdown import visible

Curve = Sequence[tuple[float, float]]

MOST_WRITTEN = 20
"""With more labels than this, the cells of a confusion matrix are too small for numbers."""

MOST_INCHES = 16.0
LONGEST_NAME = 36


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
            *zip(*points, strict=True), label=shown_name(name), marker="o" if len(points) < 20 else None, markersize=3
        )
    axes.set_xlabel(shown_name(x_label))
    axes.set_ylabel(shown_name(y_label))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def trade_off_plot(
    shares: Sequence[float], scores: Sequence[float], milliseconds: Sequence[float] | None, removed: str
) -> tuple[str, bytes]:
    """Return a plot of the score, and of the latency in a second panel, against the share that was removed.

    Args:
        shares: in percent, ascending.
        scores: in percent.
        milliseconds: of a text; None for no second panel.
        removed: what was removed, for the axis: "heads".

    Returns:
        The plot as SVG and as PNG.
    """
    panels = [(scores, "score, %")] + ([(milliseconds, "milliseconds a text")] if milliseconds is not None else [])
    figure = Figure(figsize=(4.6 * len(panels), 3.4), layout="constrained")
    for axes, (values, label) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        axes.plot(shares, values, marker="o", markersize=3)
        axes.set_xlabel(f"share of the {shown_name(removed)} removed, %")
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if label.startswith("milliseconds"):
            axes.set_ylim(bottom=0)
    text, picture = io.StringIO(), io.BytesIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    figure.savefig(picture, format="png", dpi=110, metadata={"Software": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :], picture.getvalue()


def confusion_plot(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> bytes:
    """Return a PNG of a confusion matrix. A cell is as dark as its share of the rows of the correct label.

    Args:
        labels: (C,) names. With many labels the picture grows, and counts are no longer written into it.
        counts: (C, C), a row for each correct label and a column for each predicted one.
    """
    matrix = np.asarray(counts, np.float64)
    shares = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    count = len(labels)
    names = [shown_name(name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…") for name in labels]
    row = 0.5 if count <= MOST_WRITTEN else max(0.19, min(0.5, MOST_INCHES / count))  # inches
    points = float(np.clip(72 * row * 0.62, 3, 9))
    side = max(row * count, 2.4)
    title = 10 if count <= MOST_WRITTEN else 16
    # A layout of matplotlib's own would draw hundreds of names several times to find out how wide they are.
    margin = 0.8 + 0.62 * points / 72 * max(map(len, names))
    width, height = margin + side + 1.2, margin + side + 0.2
    figure = Figure(figsize=(width, height), dpi=110)
    axes = figure.add_axes((margin / width, margin / height, side / width, side / height))
    # A root scale, because the share of a confusion that matters may be a few percent.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 100), aspect="auto")
    axes.set_xticks(range(count), names, rotation=90, fontsize=points)
    axes.set_yticks(range(count), names, fontsize=points)
    axes.set_xlabel("predicted label", fontsize=title)
    axes.set_ylabel("correct label", fontsize=title)
    if count <= MOST_WRITTEN:
        for (line, column), number in np.ndenumerate(matrix):
            if number:
                colour = "white" if shares[line, column] > 45 else "black"
                axes.text(column, line, f"{int(number):,}", ha="center", va="center", color=colour, fontsize=points)
    bar_axes = figure.add_axes(((margin + side + 0.15) / width, margin / height, 0.15 / width, side / height))
    bar = figure.colorbar(image, cax=bar_axes, ticks=[0, 1, 5, 20, 50, 100])
    bar.set_label("% of the rows of a label", fontsize=title)
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of characters that the font lacks
        figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()


def shown_name(name: str) -> str:
    """Return a name that matplotlib shows unchanged: "$" would begin a formula, and "_a" would get no legend."""
    shown = visible(name).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def logged(history: Sequence[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    """Return the (step, value) points of a key in a trainer's log history."""
    return [(entry["step"], entry[key]) for entry in history if key in entry]
