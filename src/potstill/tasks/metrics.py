"""The metrics of sentence tasks, in percent. A new metric is one function and one entry in `METRICS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef


def accuracy(predictions: Any, references: Any) -> float:
    """Share of (N,) predicted classes that are right."""
    return 100 * float(accuracy_score(references, predictions))


def f1(predictions: Any, references: Any) -> float:
    """F1 of class 1 of two; 0 where there is none, in predictions or references."""
    return 100 * float(f1_score(references, predictions, zero_division=0))


def matthews(predictions: Any, references: Any) -> float:
    """Matthews correlation of (N,) classes; 0 if all predictions, or all references, are of one class."""
    return 100 * float(matthews_corrcoef(references, predictions))


def pearson(predictions: Any, references: Any) -> float:
    """Pearson correlation of (N,) numbers; 0 if either are all the same, for which it is not defined."""
    return _correlation(stats.pearsonr, predictions, references)


def spearman(predictions: Any, references: Any) -> float:
    """Spearman's rank correlation of (N,) numbers; 0 if either are all the same, for which it is not defined."""
    return _correlation(stats.spearmanr, predictions, references)


def _correlation(function: Callable[..., Any], predictions: Any, references: Any) -> float:
    predictions, references = np.asarray(predictions, np.float64), np.asarray(references, np.float64)
    if len(references) < 2 or np.ptp(predictions) == 0 or np.ptp(references) == 0:
        return 0.0
    return 100 * float(function(predictions, references).statistic)


@dataclass(frozen=True)
class Metric:
    """A metric, which is called like its function.

    Attributes:
        function: predictions, (N,), and references, (N,), of classes or numbers → percent.
        short: what tables print as its name.
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
}
"""Name of a metric, as a task declares it and as results have it → the metric."""
