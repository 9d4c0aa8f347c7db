"""Scores of labels against counts by hand, on fresh random labels."""

from __future__ import annotations

import numpy as np
import pytest

from potstill.tasks.class_scores import THRESHOLDS, best_threshold, class_scores, number_scores, set_scores
from potstill.tasks.tag_scores import score_tags

NAMES = ["a", "b", "c", "never"]


def figures(right: int, found: int, wanted: int) -> dict[str, float]:
    return {
        "precision": 100 * right / found if found else 0,
        "recall": 100 * right / wanted if wanted else 0,
        "f1": 200 * right / (found + wanted) if found + wanted else 0,
        "support": wanted,
    }


def test_one_label() -> None:
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(3, size=200), rng.normal(size=(200, 4))
    logits[:, 3] = -9
    found = logits.argmax(1)
    scored = class_scores(logits, labels, NAMES)
    pairs = list(zip(labels.tolist(), found.tolist(), strict=True))
    counts = [[pairs.count((row, column)) for column in range(4)] for row in range(4)]
    assert scored["confusion"] == {"labels": NAMES, "counts": counts}
    for number, name in enumerate(NAMES):
        wanted = figures(counts[number][number], sum(row[number] for row in counts), sum(counts[number]))
        assert scored["per_label"][name] == pytest.approx(wanted)
    assert scored["accuracy"] == scored["micro_f1"] == pytest.approx(sum(counts[n][n] for n in range(4)) / 2)
    assert scored["macro_f1"] == pytest.approx(np.mean([scored["per_label"][name]["f1"] for name in NAMES[:3]]))
    assert set(scored) == {"accuracy", "macro_f1", "micro_f1", "matthews", "per_label", "confusion"}


@pytest.mark.parametrize("metric", ["micro_f1", "macro_f1"])
def test_several_labels(metric: str) -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((150, 3)) < [0.5, 0.2, 0.05]).astype(np.float32)
    logits = rng.normal(size=(150, 3)) + labels
    probabilities = 1 / (1 + np.exp(-logits))

    def f1_at(threshold: float) -> float:
        found = probabilities >= threshold
        each = [
            figures(int((f & (w > 0)).sum()), int(f.sum()), int(w.sum()))["f1"]
            for f, w in zip(found.T, labels.T, strict=True)
        ]
        every = figures(int((found & (labels > 0)).sum()), int(found.sum()), int(labels.sum()))["f1"]
        return every if metric == "micro_f1" else float(np.mean(each))

    scored = set_scores(logits, labels, NAMES[:3], metric)
    assert scored[metric] == pytest.approx(f1_at(scored["threshold"]))
    assert scored[metric] == pytest.approx(max(map(f1_at, THRESHOLDS.tolist())))
    precisions = []
    for scores, wanted in zip(probabilities.T, labels.T, strict=True):
        ranked = wanted[np.argsort(-scores)]
        precisions.append(np.mean([ranked[: rank + 1].mean() for rank in np.flatnonzero(ranked)]))
    assert scored["mean_average_precision"] == pytest.approx(100 * np.mean(precisions))
    assert set_scores(logits, labels, NAMES[:3], metric, 0.9)[metric] == pytest.approx(f1_at(0.9))


def test_equal_thresholds_are_as_near_to_a_half_as_can_be() -> None:
    assert best_threshold(np.array([[0.9, 0.1]]), np.array([[True, False]]), "micro_f1") == 0.5


def test_numbers() -> None:
    scores, wanted = np.random.default_rng(0).normal(size=(2, 50))
    found = number_scores(scores, wanted)
    assert found["mae"] == pytest.approx(sum(abs(a - b) for a, b in zip(scores, wanted, strict=True)) / 50)
    assert found["pearson"] == pytest.approx(100 * np.corrcoef(scores, wanted)[0, 1])


def test_kinds_of_entities_and_parts_of_speech() -> None:
    names = ["O", "B-X", "I-X", "B-Y"]
    scored = score_tags([[1, 2, 0, 3], [0, 3]], [[1, 2, 3, 0], [1, 3]], names)
    assert scored.per_label == {"X": pytest.approx(figures(1, 1, 2)), "Y": pytest.approx(figures(1, 2, 2))}
    assert scored.metrics == pytest.approx({"accuracy": 50, "f1": 400 / 7, "score": 400 / 7})
    scored = score_tags([[0, 1], [1]], [[0, 0], [1]], ["NOUN", "VERB"])
    assert scored.per_label == {"NOUN": pytest.approx(figures(1, 1, 2)), "VERB": pytest.approx(figures(1, 2, 1))}
    assert scored.metrics == pytest.approx({"accuracy": 200 / 3, "score": 200 / 3})
