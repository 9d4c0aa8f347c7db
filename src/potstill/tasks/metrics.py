"""The metrics of tasks, in percent. A new metric is one function and one entry in `METRICS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, matthews_corrcoef


def accuracy(predictions: Any, references: Any) -> float:
    """Return the share of (N,) predicted classes that are right, in percent."""
    return 100 * float(accuracy_score(references, predictions))


def f1(predictions: Any, references: Any) -> float:
    """Return the F1 of class 1 of two, in percent; 0 if class 1 is in neither predictions nor references."""
    return 100 * float(f1_score(references, predictions, zero_division=0))


def macro_f1(predictions: Any, references: Any) -> float:
    """Return the mean of the F1 of the classes, in percent.

    The arguments are (N,) classes, or (N, C) of 0 and 1 if a row may have several. Of (N,) classes, those that are in
    neither of the two do not count; of (N, C) all count, and a class that is in neither has 0.
    """
    return 100 * float(f1_score(references, predictions, average="macro", zero_division=0))


def micro_f1(predictions: Any, references: Any) -> float:
    """Return the F1 over all decisions, in percent. If each row has one class it equals the accuracy.

    The arguments are as in `macro_f1`.
    """
    return 100 * float(f1_score(references, predictions, average="micro", zero_division=0))


def mean_average_precision(scores: Any, references: Any) -> float:
    """Return the mean over classes of the average precision, in percent. Classes without a positive row do not count.

    Args:
        scores: (N, C), the higher the surer.
        references: (N, C) of 0 and 1.
    """
    references = np.asarray(references)
    counted = references.any(axis=0)
    if not counted.any():
        return 0.0
    return 100 * float(average_precision_score(references[:, counted], np.asarray(scores)[:, counted], average="macro"))


def matthews(predictions: Any, references: Any) -> float:
    """Return the Matthews correlation of (N,) classes, in percent; 0 if all predictions or references are one class."""
    if min(len(np.unique(of)) for of in (predictions, references)) < 2:  # scikit-learn would warn
        return 0.0
    return 100 * float(matthews_corrcoef(references, predictions))


def pearson(predictions: Any, references: Any) -> float:
    """Return the Pearson correlation of (N,) numbers, in percent; 0 if predictions or references are all equal."""
    return _correlation(stats.pearsonr, predictions, references)


def spearman(predictions: Any, references: Any) -> float:
    """Return Spearman's rank correlation of (N,) numbers, in percent; 0 if predictions or references are all equal."""
    return _correlation(stats.spearmanr, predictions, references)


def _correlation(function: Callable[..., Any], predictions: Any, references: Any) -> float:
    predictions, references = np.asarray(predictions, np.float64), np.asarray(references, np.float64)
    if len(references) < 2 or np.ptp(predictions) == 0 or np.ptp(references) == 0:
        return 0.0
    return 100 * float(function(predictions, references).statistic)


@dataclass(frozen=True)
class Metric:
    """A metric. It is called in the same way as its function.

    Attributes:
        function: predictions, (N,), and references, (N,), of classes or numbers → percent.
        short: its name in tables.
    """

    function: Callable[[Any, Any], float]
    short: str

    def __call__(self, predictions: Any, references: Any) -> float:
        """Return the metric in percent."""
        return self.function(predictions, references)


METRICS: dict[str, Metric] = {
    "accuracy": Metric(accuracy, "acc"),
    "f1": Metric(f1, "F1"),
    "matthews": Metric(matthews, "Matthews"),
    "pearson": Metric(pearson, "Pearson"),
    "spearman": Metric(spearman, "Spearman"),
    "macro_f1": Metric(macro_f1, "macro F1"),
    "micro_f1": Metric(micro_f1, "micro F1"),
    "mean_average_precision": Metric(mean_average_precision, "mAP"),
}
"""Name of a metric in tasks and results → the metric."""

UNITS: dict[str, str] = {"mae": "MAE"}
"""Metric in the unit of the scores, and not in percent → its short name in tables. The lower it is, the better."""

NOT_PERCENT = (*UNITS, "threshold")
"""Figures in results that are not in percent."""


def shown(name: str, value: float) -> str:
    """Return a figure as it is printed: percent have one digit after the point, other units three."""
    return f"{value:.3f}" if name.endswith(NOT_PERCENT) else f"{value:.1f}"
