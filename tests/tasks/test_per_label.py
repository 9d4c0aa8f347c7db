"""The figures of each label, against scikit-learn and a count by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from potstill.tasks.per_label import MOST_CONFUSED, class_details, set_details


@pytest.mark.parametrize("seed", range(3))
def test_classes_as_scikit_learn_counts_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = [f"class {number}" for number in range(7)]
    true, said = rng.integers(6, size=90), rng.integers(7, size=90)  # one class is never correct
    said[said == 2] = 3  # and one is never predicted
    found = class_details(names, said, true)
    expected = precision_recall_fscore_support(true, said, labels=range(7), zero_division=0)
    for number, name in enumerate(names):
        precision, recall, f1, support = (float(column[number]) for column in expected)
        figures = {"precision": 100 * precision, "recall": 100 * recall, "f1": 100 * f1, "support": support}
        assert found["per_label"][name] == pytest.approx(figures)
    assert found["confusion"]["labels"] == names
    assert found["confusion"]["counts"] == confusion_matrix(true, said, labels=range(7)).tolist()


def test_many_classes_have_no_matrix_but_the_same_figures() -> None:
    rng = np.random.default_rng(0)
    true, said = rng.integers(9, size=90), rng.integers(9, size=90)
    few = class_details([f"{number}" for number in range(9)], said, true)
    many = class_details([f"{number}" for number in range(MOST_CONFUSED + 1)], said, true)
    assert "confusion" not in many
    assert {name: many["per_label"][name] for name in few["per_label"]} == few["per_label"]


def test_sets_as_scikit_learn_counts_them() -> None:
    rng = np.random.default_rng(3)
    true, said = rng.random((50, 4)) < 0.3, rng.random((50, 4)) < 0.4
    found = set_details("abcd", said, true)
    expected = precision_recall_fscore_support(true, said, zero_division=0)
    for number, name in enumerate("abcd"):
        figures = [found["per_label"][name][key] for key in ("precision", "recall", "f1")]
        assert figures == pytest.approx([100 * float(column[number]) for column in expected[:3]])
        assert found["per_label"][name]["support"] == true[:, number].sum()
    assert "confusion" not in found
