"""How a card tells of labels: the table, the most confused pairs, and the picture."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hostile import NAMES, rendered
from PIL import Image

from potstill.report.label_card import MOST_DRAWN, MOST_ROWS, PICTURE, confused_pairs, is_drawn, label_section
from potstill.report.markdown import visible
from potstill.report.plots import confusion_plot
from potstill.tasks.per_label import class_details


def test_the_worst_label_comes_first_and_the_most_frequent_confusion() -> None:
    true, said = [0] * 10 + [1] * 5 + [2] * 4, [0] * 7 + [1] * 3 + [1] * 5 + [0, 2, 2, 2]
    details = class_details(["a", "b", "c"], said, true)
    pairs = confused_pairs(**details["confusion"])
    assert pairs == [("a", "b", 3, 30.0), ("c", "a", 1, 25.0)]
    page = rendered("\n\n".join(label_section(details)))
    assert page.headings == ["Labels"]
    assert page.tables[0][0] == ["label", "precision", "recall", "F1", "support"]
    assert page.tables[0][1:] == [
        ["b", "62.5", "100.0", "76.9", "5"],
        ["a", "87.5", "70.0", "77.8", "10"],
        ["c", "100.0", "75.0", "85.7", "4"],
    ]
    assert "a is taken for b in 3 rows (30.0 %)." in page.text


def test_nothing_for_a_result_without_labels_and_the_lowest_of_very_many() -> None:
    assert label_section({"per_label": None}) == []
    names = [f"label {number}" for number in range(MOST_ROWS + 20)]
    numbers = np.arange(len(names))
    section = "\n\n".join(label_section(class_details(names, np.where(numbers < 5, 6, numbers), numbers)))
    assert len(rendered(section).tables[0]) == MOST_ROWS + 1
    assert "The 20 labels with a higher F1 are in `results.json`." in section


def test_a_matrix_of_too_many_labels_is_not_drawn() -> None:
    names = [f"label {number}" for number in range(MOST_DRAWN + 1)]
    details = class_details(names, [1, 1], [0, 1])
    section = "\n\n".join(label_section(details))
    assert not is_drawn(details["confusion"])
    assert PICTURE not in section
    assert "label 0 is taken for label 1 in 1 row" in section
    assert PICTURE in "\n\n".join(label_section(class_details(names[:2], [1, 1], [0, 1])))


@pytest.mark.parametrize("name", NAMES)
def test_names_are_shown_as_they_are(name: str) -> None:
    page = rendered("\n\n".join(label_section(class_details([name, "b"], [1, 1], [0, 1]))))
    assert page.tables[0][1][0] == visible(name)
    assert f"{visible(name)} is taken for b in 1 row" in page.text


@pytest.mark.parametrize("count", [2, 25])
def test_the_picture_is_darkest_where_labels_are_right(count: int) -> None:
    counts = np.eye(count, dtype=int) * 9
    counts[0, 1] = 1
    png = confusion_plot(["$x_$" if number else "号" * 99 for number in range(count)], counts.tolist())
    picture = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
    assert picture.min() < 100
    assert max(picture.shape) < 2400
    assert confusion_plot([f"{number}" for number in range(count)], (counts * 0).tolist()) != png
