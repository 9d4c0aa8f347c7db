"""The part of a page on training runs of language models and sentence encoders: held-out figures, curves, cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from potstill.live_line import duration
from potstill.pages.folders import Found
from potstill.report import html
from potstill.report.held_out import HELD_OUT
from potstill.report.markdown import NOTHING, figure
from potstill.report.plots import Curve, logged

FIGURES = HELD_OUT | {"distance": ("1 − cosine", ".4f"), "cosine": ("cosine", ".3f")}
"""Metric → heading and format of its column."""

TERMS = {
    "loss_ce": "Soft targets (KL · T²)",
    "loss_mlm": "Masked LM",
    "loss_clm": "Causal LM",
    "loss_cos": "Cosine of the hidden states",
    "loss_task": "Loss on the labels",
}
HELD_OUT_CURVES = {
    "eval_loss": ("Held-out loss", "loss"),
    "eval_accuracy": ("Held-out accuracy", "share of the masked tokens"),
    "eval_kl": ("KL to the teacher, held out", "KL (nats)"),
    "eval_distance": ("Distance to the teacher, held out", "1 − cosine"),
    "eval_score": ("Score during training", "score, %"),
}
BEHIND = {"learning_rate": ("Learning rate", "learning rate"), "grad_norm": ("Gradient", "norm of the gradient")}
"""Curves that few readers need, behind a click."""


def held_out(runs: Sequence[Found]) -> list[str]:
    """Return the table of held-out figures of all runs, each with its teacher and its start."""
    rows: dict[str, Mapping[str, float]] = {}
    for run in runs:
        final, initial = run.record["held_out"]["final"], run.record["held_out"]["initial"]
        if final is None:
            continue
        taught = {key.removeprefix("teacher_"): value for key, value in final.items() if key.startswith("teacher_")}
        if taught and taught not in rows.values():
            rows[f"{run.name}: its teacher"] = taught
        if initial:
            rows[f"{run.name}, as initialised"] = initial
        rows[f"{run.name}, trained"] = final
    columns = {key: FIGURES[key] for key in FIGURES if any(key in row for row in rows.values())}
    if not rows:
        return [html.paragraph("No held-out figures: the corpora of these runs have no held-out block.")]
    cells = [
        [name, *(figure(row[key], form) if _number(row.get(key)) else NOTHING for key, (_, form) in columns.items())]
        for name, row in rows.items()
    ]
    return [
        html.table(["", *(title for title, _ in columns.values())], cells),
        html.paragraph(
            "Measured on documents that were not used for training. Lower is better for loss, perplexity and KL; "
            "higher is better for accuracy, agreement and cosine. Agreement is the share of the masked tokens where "
            "student and teacher find the same token the most likely."
        ),
    ]


def plots(history: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Return the curves of runs: losses in training and their terms, held-out figures, and the rest.

    Args:
        history: name of a run → the log of its trainer.
    """
    keys = {key: None for entries in history.values() for entry in entries for key in entry}
    shown = {"loss": ("Training loss", "loss")}
    shown |= {key: (title(key), "loss") for key in keys if key.startswith("loss_")}
    shown |= HELD_OUT_CURVES
    behind = BEHIND | {
        key: ("Speed", key.replace("_per_second", " per second")) for key in keys if key.endswith("_per_second")
    }
    first, later = ([_plot(history, key, *words) for key, words in some.items()] for some in (shown, behind))
    later = [one for one in later if one]
    more = html.details("Learning rate, gradient and speed", [html.figures(later)]) if later else ""
    return [html.figures([one for one in first if one]), more]


def title(key: str) -> str:
    """Return the title of the curve of a term of the loss."""
    return TERMS.get(key, f"Loss: {key.removeprefix('loss_').replace('_', ' ')}")


def costs(runs: Sequence[Found]) -> list[list[str]]:
    """Return a row of the table of costs for each run: name, steps, what it read, time, hardware, versions."""
    return [
        [
            run.name,
            f"{run.record['cost']['steps']:,}",
            f"{run.record['cost']['tokens']:,} tokens",
            duration(run.record["cost"]["seconds"]),
            f"{run.record['cost']['processes']} × {run.record['cost']['hardware']}",
            ", ".join(f"{name} {number}" for name, number in run.record["versions"].items()),
        ]
        for run in runs
    ]


def glance(run: Found) -> str:
    """Return the sentence on a run for the table of contents."""
    final = run.record["held_out"]["final"] or {}
    parts = [f"{run.record['parameters']:,} parameters"]
    for key in ("accuracy", "distance", "loss"):
        if _number(final.get(key)):
            heading, form = FIGURES[key]
            parts.append(f"held-out {heading} {figure(final[key], form)}")
            break
    if final.get("teacher_accuracy"):
        kept = final["accuracy"] / final["teacher_accuracy"]
        parts.append(f"{figure(kept, '.1%')} of the teacher's accuracy")
    return ", ".join(parts)


def log_of(run: Found) -> list[dict[str, Any]]:
    """Return the log of a run: what was measured, and at which step."""
    return [dict(entry) | {"step": float(entry["step"])} for entry in run.record.get("log_history") or []]


def _plot(history: Mapping[str, Sequence[Mapping[str, Any]]], key: str, title: str, y_label: str) -> str:
    curves: dict[str, Curve] = {}
    for name, entries in history.items():
        points = [(step, value) for step, value in logged(entries, key) if _number(value)]
        if len(points) > 1:
            curves[name] = points
    return html.curves(title, curves, "step", y_label) if curves else ""


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
