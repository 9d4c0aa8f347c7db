"""Score predicted labels: the metrics, the figures of each label, and the confusion of labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.metrics import mean_absolute_error

from potstill.tasks.metrics import METRICS
from potstill.tasks.per_label import class_details, set_details

THRESHOLDS = np.arange(1, 100) / 100
"""The thresholds of probabilities among which the best is chosen."""

Scored = dict[str, Any]
"""Metric → value, and perhaps figures of single labels.

These are `per_label`: label → precision, recall and F1 in percent, and support; and `confusion`: `labels`, and `counts`
with a row for each label and a column for each prediction.
"""


def class_scores(logits: NDArray[Any], labels: NDArray[Any], names: Sequence[str]) -> Scored:
    """Score predictions of one label for each row.

    Args:
        logits: (N, C).
        labels: (N,) numbers of the right labels.
        names: names of the labels, by number.

    Returns:
        Accuracy, macro F1, micro F1, Matthews correlation; per label figures; and the confusion.
    """
    found = np.asarray(logits).argmax(axis=1)
    metrics: Scored = {name: METRICS[name](found, labels) for name in ("accuracy", "macro_f1", "micro_f1", "matthews")}
    return metrics | class_details(names, found, labels)


def set_scores(
    logits: NDArray[Any], labels: NDArray[Any], names: Sequence[str], metric: str, threshold: float | None = None
) -> Scored:
    """Score predictions of any number of labels for each row.

    Args:
        logits: (N, C).
        labels: (N, C) of 0 and 1.
        names: names of the labels, by number.
        metric: the metric by which a threshold is chosen; micro F1 if it needs no threshold.
        threshold: a label is predicted if its probability is at least this; the best one for these rows if None.

    Returns:
        Micro F1 and macro F1 at the threshold, mean average precision, the threshold, and per label figures.
    """
    probabilities, labels = expit(np.asarray(logits, np.float64)), np.asarray(labels) > 0.5
    if threshold is None:
        threshold = best_threshold(probabilities, labels, "macro_f1" if metric == "macro_f1" else "micro_f1")
    found = probabilities >= threshold
    metrics: Scored = {name: METRICS[name](found, labels) for name in ("micro_f1", "macro_f1")}
    metrics["mean_average_precision"] = METRICS["mean_average_precision"](probabilities, labels)
    return metrics | {"threshold": threshold} | set_details(names, found, labels)


def best_threshold(probabilities: NDArray[Any], labels: NDArray[np.bool_], metric: str) -> float:
    """Return the threshold in `THRESHOLDS` with the highest F1; of equal ones the nearest to 0.5.

    Args:
        probabilities: (N, C).
        labels: (N, C).
        metric: `micro_f1` or `macro_f1`.
    """
    f1s = []
    for threshold in THRESHOLDS:  # the counts alone, because scikit-learn's checks would take a minute for many rows
        found = probabilities >= threshold
        right, both = (found & labels).sum(axis=0), found.sum(axis=0) + labels.sum(axis=0)
        if metric == "micro_f1":
            right, both = right.sum(keepdims=True), both.sum(keepdims=True)
        f1s.append(float((2 * right / np.maximum(both, 1)).mean()))
    best = max(f1s)
    equal = [float(threshold) for threshold, f1 in zip(THRESHOLDS, f1s, strict=True) if f1 == best]
    return min(equal, key=lambda threshold: abs(threshold - 0.5))


def number_scores(scores: NDArray[Any], references: NDArray[Any]) -> Scored:
    """Return the correlations of (N,) scores with (N,) references, in percent, and their mean absolute difference."""
    metrics: Scored = {name: METRICS[name](scores, references) for name in ("pearson", "spearman")}
    return metrics | {"mae": float(mean_absolute_error(references, scores))}
