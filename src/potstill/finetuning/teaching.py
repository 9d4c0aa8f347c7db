"""How a task teacher fares on the labels that its student is trained on, and whether it answers in their order.

A teacher that numbers the classes in another order teaches the opposite of the labels. Where the names of its classes
tell the order, its logits are put into the task's; where they do not, its answers have to agree with the labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from potstill.finetuning.rows import Array, Rows
from potstill.tasks.labels import match_names
from potstill.tasks.metrics import pearson

BELOW = 1.64
"""Standard deviations below chance from which on it is none: it would be by chance in one case of twenty."""

CLEARLY = 3.0
"""Standard deviations by which another order has to fit better than the given one: the best of many is looked for."""


@dataclass(frozen=True)
class Fit:
    """What a teacher says of the training labels.

    Attributes:
        measured: figures by name, in percent where they are shares.
        told: the same in words, without a stop.
        fault: what is wrong with it as a teacher; None if it can teach.
    """

    measured: dict[str, float]
    told: str
    fault: str | None = None


def class_order(config: Any, labels: Sequence[str]) -> list[int] | None:
    """Return where among the teacher's classes each of the task's stands, by their names; None if these do not tell."""
    return match_names([str(config.id2label.get(number, "")) for number in range(len(labels))], labels)


def fit_of_classes(logits: Array, labels: Array, names: Sequence[str], named: bool) -> Fit:
    """Compare the best classes with the labels.

    Args:
        logits: (rows, C), in the order of the task's classes, as far as is known.
        labels: (rows,) classes.
        names: of the classes.
        named: whether the teacher calls its classes by these names. It is taken at its word: labels may be meant to
            contradict it.
    """
    answers = np.asarray(logits).argmax(axis=1)
    table = np.zeros((len(names), len(names)), np.int64)  # by answer, by label
    np.add.at(table, (answers, labels), 1)
    rows, right = len(labels), int(np.trace(table))
    # What two who do not know of each other agree on, each giving its classes as often as it does (Cohen 1960).
    by_chance = float(table.sum(axis=1) @ table.sum(axis=0)) / rows
    share, chance = 100 * right / rows, 100 * by_chance / rows
    fit = Fit(
        {"accuracy": share, "by_chance": chance},
        f"{share:.1f} % of its answers are the labels ({chance:.1f} % would be by chance)",
    )
    if named:
        return fit
    spread = np.sqrt(by_chance * (1 - by_chance / rows))
    below = right - by_chance < -BELOW * spread
    order = linear_sum_assignment(-table)[1]  # the class whose rows each of its answers fits best
    places = np.arange(len(names))
    moved = order != places
    gained, lost = int(table[places, order][moved].sum()), int(table[places, places][moved].sum())
    otherwise = gained - lost > CLEARLY * np.sqrt(gained + lost)
    if not below and not otherwise:
        return fit
    if gained <= lost:
        return Fit(fit.measured, fit.told, "give a teacher that is fine-tuned on this task")
    said = ", ".join(f"{place} as {names[of]}" for place, of in enumerate(order))
    return Fit(
        fit.measured,
        fit.told,
        f"with its classes taken in another order ({said}) {100 * (right + gained - lost) / rows:.1f} % would be: name "
        f"them in id2label of its config.json by the names of this task ({', '.join(names)}), each where it stands",
    )


def fit_of_scores(scores: Array, labels: Array) -> Fit:
    """Compare scores, (rows, 1), with the labels, (rows,)."""
    mine, theirs = np.asarray(scores, np.float64)[:, 0], np.asarray(labels, np.float64)
    correlation = pearson(mine, theirs)
    fit = Fit(
        {"pearson": correlation, "mean": float(mine.mean()), "mean_of_labels": float(theirs.mean())},
        f"the Pearson correlation of its scores with the labels is {correlation:.1f} %; "
        f"its scores are {mine.mean():.2f} ± {mine.std():.2f}, the labels {theirs.mean():.2f} ± {theirs.std():.2f}",
    )
    if correlation / 100 * np.sqrt(len(theirs)) >= -BELOW:
        return fit
    return Fit(
        fit.measured, fit.told, "it scores high what the labels score low: give a teacher trained on scores like these"
    )


def fit_of_spans(start: Array, end: Array, rows: Rows) -> Fit | None:
    """Compare the best start and the best end of each window that holds an answer with the answer's.

    Args:
        start: (tokens of all rows,) logits.
        end: likewise.
        rows: the windows, with `start_positions`, `end_positions` and `answer_mask`.

    Returns:
        How many are the same; None if no window holds an answer.
    """
    borders = np.cumsum(rows.lengths)[:-1]
    mask = np.split(np.asarray(rows.tokens["answer_mask"], bool), borders)

    def best_of(logits: Array) -> Array:
        windows = zip(np.split(np.asarray(logits), borders), mask, strict=True)
        return np.array([np.where(where, part, -np.inf).argmax() for part, where in windows])

    gold = [rows.values[name] for name in ("start_positions", "end_positions")]
    answered = gold[0] > 0
    if not answered.any():
        return None
    starts, ends, first, last = (of[answered] for of in (best_of(start), best_of(end), *gold))
    right = float(((starts == first) & (ends == last)).mean())
    fit = Fit(
        {"exact": 100 * right},
        f"{100 * right:.1f} % of the windows that hold an answer have their best start and end where it is",
    )
    straight = (starts == first).astype(int) + (ends == last)
    crossed = (ends == first).astype(int) + (starts == last)
    gain = crossed - straight
    if gain.sum() <= CLEARLY * np.sqrt(max(int((gain**2).sum()), 1)):
        return fit
    return Fit(
        fit.measured,
        fit.told,
        "its starts are where answers end, and its ends where they start: give a teacher that gives the start first",
    )


def fit_of(data: Any, rows: Rows, found: dict[str, Array], named: bool) -> Fit | None:
    """Compare what a teacher says of the training rows with their labels; None where nothing can be compared.

    Args:
        data: of the task.
        rows: of training.
        found: logits of the teacher, as `predict` returns them, in the order of the task's classes.
        named: see `fit_of_classes`.
    """
    if "logits" not in found:
        return fit_of_spans(found["start_logits"], found["end_logits"], rows)
    if data.labels:
        return fit_of_classes(found["logits"], rows.values["labels"], data.labels, named)
    return fit_of_scores(found["logits"], rows.values["labels"])
