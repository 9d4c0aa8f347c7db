"""The figures of each label: precision, recall and F1, and which classes are taken for which others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

PER_LABEL, CONFUSION = "per_label", "confusion"
DETAILS = (PER_LABEL, CONFUSION)
"""Keys of the figures in what `TaskData.score` returns, and fields of `RunResult`. They are not metrics of the task."""

MOST_CONFUSED = 500
"""With more labels there is no confusion matrix: it grows with the square of their number."""

PerLabel = dict[str, dict[str, float]]
"""Label → `precision`, `recall` and `f1` in percent, and `support`, the number of times that it is correct."""

Counts = Sequence[Any] | np.ndarray[Any, Any]


def per_label(labels: Sequence[str], right: Counts, predicted: Counts, support: Counts) -> PerLabel:
    """Return the figures of each label. A share of nothing is 0, as in scikit-learn with `zero_division=0`.

    Args:
        labels: (C,) names, each once.
        right: (C,) how often a label is predicted and correct.
        predicted: (C,) how often it is predicted.
        support: (C,) how often it is correct.
    """
    found: PerLabel = {}
    for label, hits, said, true in zip(labels, right, predicted, support, strict=True):
        found[label] = {
            "precision": 100 * float(hits) / max(float(said), 1),
            "recall": 100 * float(hits) / max(float(true), 1),
            "f1": 200 * float(hits) / max(float(said) + float(true), 1),
            "support": int(true),
        }
    return found


def class_details(labels: Sequence[str], predictions: Any, references: Any) -> dict[str, Any]:
    """Return the figures of a task whose rows have one class each.

    Args:
        labels: (C,) names of the classes.
        predictions: (N,) classes.
        references: (N,) correct classes.

    Returns:
        `per_label`, and of at most `MOST_CONFUSED` classes `confusion`: `labels`, and `counts`, whose rows are the
        correct classes and whose columns are the predicted ones.
    """
    said, true = np.asarray(predictions, np.int64), np.asarray(references, np.int64)
    count = len(labels)
    right, *both = (np.bincount(of, minlength=count) for of in (true[said == true], said, true))
    details: dict[str, Any] = {PER_LABEL: per_label(labels, right, *both)}
    if count <= MOST_CONFUSED:
        counts = np.zeros((count, count), np.int64)
        np.add.at(counts, (true, said), 1)
        details[CONFUSION] = {"labels": list(labels), "counts": counts.tolist()}
    return details


def set_details(labels: Sequence[str], predictions: Any, references: Any) -> dict[str, Any]:
    """Return the figures of a task whose rows have any number of labels each.

    Args:
        labels: (C,) names of the labels.
        predictions: (N, C) whether a label is predicted.
        references: (N, C) whether it is correct.

    Returns:
        `per_label`. There is no confusion, because nothing says which label is taken for which other.
    """
    said, true = np.asarray(predictions, bool), np.asarray(references, bool)
    return {PER_LABEL: per_label(labels, (said & true).sum(axis=0), said.sum(axis=0), true.sum(axis=0))}
