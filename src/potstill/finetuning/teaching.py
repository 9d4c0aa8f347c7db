"""Measures how well a task teacher predicts the training labels, and checks the order of its classes.

A teacher that numbers the classes in another order contradicts the labels. If the names of its classes show their
order, its logits are put into the task's order. If they do not, its predictions must agree with the labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
from scipy.optimize import linear_sum_assignment

from potstill.finetuning.objective import NO_TAG
from potstill.finetuning.rerank import marks_of
from potstill.finetuning.rows import Array, Rows
from potstill.tasks.metrics import mean_average_precision, pearson
from potstill.tasks.ranking import average_precision, expected_precision, ranked_gains

BELOW = 1.64
"""A result so many standard deviations below chance counts as a fault; by chance it occurs in one case of twenty."""

CLEARLY = 3.0
"""Another order must fit better by so many standard deviations; many, because the best of many orders is chosen."""


@dataclass(frozen=True)
class Fit:
    """How well a teacher's predictions fit the training labels.

    Attributes:
        measured: name → figure; shares are in percent.
        message: the same in words, without a full stop.
        fault: the reason why it cannot be a teacher and the remedy, in words; None if it can be one.
    """

    measured: dict[str, float]
    message: str
    fault: str | None = None


def fit_of_classes(logits: Array, labels: Array, names: Sequence[str], named: bool) -> Fit:
    """Compare the predicted classes with the labels.

    Args:
        logits: (rows, C), in the order of the task's classes if that is known.
        labels: (rows,) classes.
        names: names of the task's classes.
        named: whether the teacher's classes have these names. If so, the order is known to be right, and there is no
            fault: labels may contradict a teacher on purpose.
    """
    predictions = np.asarray(logits).argmax(axis=1)
    rows, right = len(labels), int((predictions == labels).sum())
    # The expected agreement of independent predictions and labels with the same class frequencies (Cohen 1960).
    said, true = (np.bincount(of, minlength=len(names)) for of in (predictions, labels))
    by_chance = float(said @ true) / rows
    share, chance = 100 * right / rows, 100 * by_chance / rows
    fit = Fit(
        {"accuracy": share, "by_chance": chance},
        f"{share:.1f} % of its predictions agree with the labels (expected by chance: {chance:.1f} %)",
    )
    if named:
        return fit
    table = np.zeros((len(names), len(names)), np.int64)  # prediction × label
    np.add.at(table, (predictions, labels), 1)
    spread = np.sqrt(by_chance * (1 - by_chance / rows))
    below = right - by_chance < -BELOW * spread
    order = linear_sum_assignment(-table)[1]  # the label that fits each of its classes best
    places = np.arange(len(names))
    moved = order != places
    gained, lost = int(table[places, order][moved].sum()), int(table[places, places][moved].sum())
    reordered = gained - lost > CLEARLY * np.sqrt(gained + lost)
    if not below and not reordered:
        return fit
    if gained <= lost:
        return Fit(fit.measured, fit.message, "give a teacher that is fine-tuned on this task")
    classes = ", ".join(f"{place} as {names[of]}" for place, of in enumerate(order))
    return Fit(
        fit.measured,
        fit.message,
        f"with its classes in another order ({classes}), {100 * (right + gained - lost) / rows:.1f} % would agree: in "
        f"id2label of its config.json, give each class its name in this task ({', '.join(names)})",
    )


def fit_of_scores(scores: Array, labels: Array) -> Fit:
    """Compare scores, (rows, 1), with the labels, (rows,)."""
    scores, labels = np.asarray(scores, np.float64)[:, 0], np.asarray(labels, np.float64)
    correlation = pearson(scores, labels)
    fit = Fit(
        {"pearson": correlation, "mean": float(scores.mean()), "mean_of_labels": float(labels.mean())},
        f"the Pearson correlation of its scores with the labels is {correlation:.1f} %; "
        f"its scores are {scores.mean():.2f} ± {scores.std():.2f}, the labels {labels.mean():.2f} ± {labels.std():.2f}",
    )
    if correlation / 100 * np.sqrt(len(labels)) >= -BELOW:
        return fit
    return Fit(
        fit.measured,
        fit.message,
        "its scores are high where the labels are low: give a teacher that is trained on scores like these",
    )


def fit_of_spans(start: Array, end: Array, rows: Rows) -> Fit | None:
    """Compare the teacher's best start and end with the answer, for each window that contains an answer.

    Args:
        start: start logits, (tokens of all rows,).
        end: end logits, (tokens of all rows,).
        rows: the windows, with `start_positions`, `end_positions` and `answer_mask`.

    Returns:
        The share of windows where both agree; None if no window contains an answer.
    """
    borders = np.cumsum(rows.lengths)[:-1]
    mask = np.split(np.asarray(rows.tokens["answer_mask"], bool), borders)

    def best_of(logits: Array) -> Array:
        windows = zip(np.split(np.asarray(logits), borders), mask, strict=True)
        return np.array([np.where(where, part, -np.inf).argmax() for part, where in windows])

    correct = [rows.values[name] for name in ("start_positions", "end_positions")]
    answered = correct[0] > 0
    if not answered.any():
        return None
    starts, ends, first, last = (of[answered] for of in (best_of(start), best_of(end), *correct))
    right = float(((starts == first) & (ends == last)).mean())
    fit = Fit(
        {"exact": 100 * right},
        f"{100 * right:.1f} % of the windows with an answer have their best start and end at the answer",
    )
    straight = (starts == first).astype(int) + (ends == last)
    crossed = (ends == first).astype(int) + (starts == last)
    gain = crossed - straight
    if gain.sum() <= CLEARLY * np.sqrt(max(int((gain**2).sum()), 1)):
        return fit
    return Fit(
        fit.measured,
        fit.message,
        "its starts are where answers end, and its ends where they start: give a teacher that gives the start first",
    )


def fit_of_sets(logits: Array, labels: Array, named: bool) -> Fit:
    """Compare logits, (rows, C), with the labels, (rows, C) of 0 and 1, where a row may have several.

    The order of the teacher's labels cannot be told from its predictions as surely as that of classes, so a teacher
    whose labels have other names is at fault.
    """
    precision = mean_average_precision(logits, labels)
    chance = 100 * float(np.asarray(labels).mean(axis=0)[np.asarray(labels).any(axis=0)].mean())
    fit = Fit(
        {"mean_average_precision": precision, "by_chance": chance},
        f"the mean average precision of its labels is {precision:.1f} % (expected by chance: {chance:.1f} %)",
    )
    if named:
        return fit
    return Fit(fit.measured, fit.message, "its labels have other names: name them in id2label of its config.json")


def fit_of_lists(scores: Array, rows: Rows) -> Fit | None:
    """Compare the order of the passages of each query with the labels.

    Args:
        scores: (rows, 1).
        rows: the passages, with `lists` and `labels`.

    Returns:
        The mean average precision; None if no list has relevant and irrelevant passages.
    """
    marks = marks_of(rows)
    gains = ranked_gains(np.asarray(scores)[:, 0], marks)
    counted = [(gain, mark) for gain, mark in zip(gains, marks, strict=True) if len(set(mark)) == 2]
    if not counted:
        return None
    precisions = np.array([average_precision(gain) for gain, _ in counted])
    by_chance = np.array([expected_precision(len(mark), sum(mark)) for _, mark in counted])
    mean, chance = 100 * float(precisions.mean()), 100 * float(by_chance.mean())
    fit = Fit(
        {"map": mean, "by_chance": chance},
        f"the MAP of its scores is {mean:.1f} % (expected by chance: {chance:.1f} %)",
    )
    # A teacher that knows nothing is below chance by so much in one case of twenty, however few the lists are.
    below = stats.ttest_1samp(precisions - by_chance, 0, alternative="less") if len(counted) > 1 else None
    if below is None or not below.pvalue < 0.05:
        return fit
    return Fit(
        fit.measured,
        fit.message,
        "it ranks irrelevant passages first: give a reranker whose score is high for a relevant passage",
    )


def fit_of(data: Any, rows: Rows, logits: dict[str, Array], named: bool) -> Fit | None:
    """Compare a teacher's predictions for the training rows with the labels; None if nothing can be compared.

    Args:
        data: the data of the task.
        rows: the training rows.
        logits: the teacher's logits, as `predict` returns them, in the order of the task's classes.
        named: see `fit_of_classes`.
    """
    if "lists" in rows.values:
        return fit_of_lists(logits["logits"], rows) if "labels" in rows.values else None
    if "labels" in rows.tokens:
        inside = rows.tokens["labels"] != NO_TAG
        return fit_of_classes(np.asarray(logits["logits"])[inside], rows.tokens["labels"][inside], data.labels, named)
    if "logits" not in logits:
        return fit_of_spans(logits["start_logits"], logits["end_logits"], rows)
    if data.labels and rows.values["labels"].ndim == 2:
        return fit_of_sets(logits["logits"], rows.values["labels"], named)
    if data.labels:
        return fit_of_classes(logits["logits"], rows.values["labels"], data.labels, named)
    return fit_of_scores(logits["logits"], rows.values["labels"])
