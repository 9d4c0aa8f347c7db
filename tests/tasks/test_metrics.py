"""Metrics against their formulas written out, on fresh numbers, and where they are not defined."""

import numpy as np
import pytest

from potstill.errors import PotstillError
from potstill.tasks.glue import GLUE
from potstill.tasks.metrics import METRICS


@pytest.fixture
def classes() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    references = np.append(generator.integers(0, 2, 60), [0, 1])
    flipped = generator.random(62) < 0.3
    return np.where(flipped, 1 - references, references), references


def test_accuracy_f1_and_matthews(classes: tuple[np.ndarray, np.ndarray]) -> None:
    predictions, references = classes
    tp, tn = ((predictions == value) & (references == value) for value in (1, 0))
    fp, fn = ((predictions == value) & (references != value) for value in (1, 0))
    tp, tn, fp, fn = (float(cell.sum()) for cell in (tp, tn, fp, fn))
    assert METRICS["accuracy"](predictions, references) == pytest.approx(100 * (tp + tn) / 62)
    assert METRICS["f1"](predictions, references) == pytest.approx(100 * 2 * tp / (2 * tp + fp + fn))
    root = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert METRICS["matthews"](predictions, references) == pytest.approx(100 * (tp * tn - fp * fn) / root)


def test_correlations() -> None:
    generator = np.random.default_rng(0)
    references = generator.normal(size=50)
    predictions = references + generator.normal(size=50)

    def correlation(x: np.ndarray, y: np.ndarray) -> float:
        x, y = x - x.mean(), y - y.mean()
        return 100 * float(x @ y / np.sqrt((x @ x) * (y @ y)))

    assert METRICS["pearson"](predictions, references) == pytest.approx(correlation(predictions, references))
    ranks = [values.argsort().argsort().astype(float) for values in (predictions, references)]
    assert METRICS["spearman"](predictions, references) == pytest.approx(correlation(*ranks))


def test_what_is_not_defined_is_0() -> None:
    ones, mixed = np.ones(4, int), np.array([0, 1, 1, 0])
    assert METRICS["matthews"](ones, mixed) == 0
    assert METRICS["f1"](1 - ones, 1 - ones) == 0
    for name in ("pearson", "spearman"):
        assert METRICS[name](ones, mixed) == METRICS[name](mixed, ones) == 0


def test_a_task_s_score_is_the_mean_of_its_metrics() -> None:
    scores = GLUE["mrpc"].score(np.array([1, 1, 0, 1]), np.array([1, 0, 0, 1]))
    assert scores == pytest.approx({"accuracy": 75.0, "f1": 80.0, "score": 77.5})
    assert set(GLUE["stsb"].score([0.1, 0.2, 0.3], [1, 2, 3])) == {"pearson", "spearman", "score"}


def test_an_empty_development_set() -> None:
    with pytest.raises(PotstillError, match="development set of RTE is empty"):
        GLUE["rte"].score([], [])
