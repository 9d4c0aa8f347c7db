"""Whether a teacher can teach, by its answers to the training rows: checked on answers that are made up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from potstill.finetuning.rows import Rows
from potstill.finetuning.teaching import fit_of_classes, fit_of_scores, fit_of_spans

NAMES = ("entailment", "neutral", "contradiction")


def answers(labels: np.ndarray[Any, Any], right: float, classes: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Logits of a teacher that is right in such a share of the rows, and answers at random in the others."""
    rng = np.random.default_rng(seed)
    said = np.where(rng.random(len(labels)) < right, labels, rng.integers(classes, size=len(labels)))
    return np.eye(classes)[said] + rng.random((len(labels), classes)) * 0.1


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]])
@pytest.mark.parametrize("rows", [60, 3000])
def test_another_order_of_three_classes_is_told_from_the_right_one(order: list[int], rows: int) -> None:
    """Two of three swapped leave a third of the answers right, which is not below chance."""
    labels = np.random.default_rng(1).integers(3, size=rows)
    logits = answers(labels, 0.85, 3)[:, order]
    fit = fit_of_classes(logits, labels, NAMES, named=False)
    assert fit.measured["accuracy"] == pytest.approx(100 * (logits.argmax(1) == labels).mean())
    if order == [0, 1, 2]:
        assert fit.fault is None
    else:
        said = ", ".join(f"{place} as {NAMES[of]}" for place, of in enumerate(order))
        assert fit.fault is not None
        assert f"with its classes in another order ({said})" in fit.fault
        assert ", ".join(NAMES) in fit.fault
    assert fit_of_classes(logits, labels, NAMES, named=True).fault is None


@pytest.mark.parametrize("classes", [2, 3])
def test_a_teacher_that_knows_nothing_is_told_but_not_stopped(classes: int) -> None:
    labels = np.random.default_rng(2).choice(classes, size=2000, p=[0.6, 0.4] if classes == 2 else None)
    for logits in (np.eye(classes)[np.zeros(2000, int)], answers(labels, 0.0, classes)):
        fit = fit_of_classes(logits, labels, NAMES[:classes], named=False)
        assert fit.fault is None
        assert f"expected by chance: {fit.measured['by_chance']:.1f} %" in fit.message


def test_chance_is_what_the_shares_of_the_classes_give() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    said = np.array([0] * 80 + [1] * 10 + [0] * 10)
    fit = fit_of_classes(np.eye(2)[said], labels, ("no", "yes"), named=False)
    assert fit.measured == pytest.approx({"accuracy": 80.0, "by_chance": 82.0})


def test_scores() -> None:
    rng = np.random.default_rng(3)
    labels = rng.random(200) * 5
    scores = (labels + rng.normal(size=200))[:, None]
    fit = fit_of_scores(scores, labels)
    assert fit.fault is None
    assert fit.measured["pearson"] == pytest.approx(100 * np.corrcoef(scores[:, 0], labels)[0, 1])
    assert fit_of_scores(scores / 5, labels).message.count("±") == 2  # another scale shows
    assert fit_of_scores(-scores, labels).fault is not None
    assert fit_of_scores(np.ones((200, 1)), labels).fault is None


def test_spans() -> None:
    lengths = np.full(30, 9)
    first, last = np.arange(30) % 4 + 2, np.arange(30) % 4 + 4
    first[0] = last[0] = 0  # a window without the answer
    start, end = (np.eye(9)[places].ravel() for places in (first, last))
    mask = np.tile([1, *[0] * 1, *[1] * 7], 30)
    values = {"start_positions": first, "end_positions": last}
    rows = Rows({"input_ids": np.ones(270, int), "answer_mask": mask}, values, lengths)
    fit = fit_of_spans(start, end, rows)
    assert fit is not None
    assert (fit.measured, fit.fault) == ({"exact": 100.0}, None)
    turned = fit_of_spans(end, start, rows)
    assert turned is not None
    assert turned.measured == {"exact": 0.0}
    assert "its starts are where answers end" in str(turned.fault)
    none = Rows(rows.tokens, {name: np.zeros(30, int) for name in values}, lengths)
    assert fit_of_spans(start, end, none) is None
