"""Labels of teachers that are numbers: names, such as ratings from 1 to 5, or no names at all."""

from __future__ import annotations

import pytest
from transformers import BertConfig

from potstill.errors import PotstillError
from potstill.finetuning.teacher_labels import label_names, teacher_labels

RATINGS = ("1", "2", "3", "4", "5")


def config_of(names: tuple[str, ...]) -> BertConfig:
    return BertConfig(id2label=dict(enumerate(names)), label2id={name: number for number, name in enumerate(names)})


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (RATINGS, RATINGS),
        (("10", "2"), ("10", "2")),
        (("0", "1", "2"), ("0", "1", "2")),
        (("LABEL_0", "LABEL_1"), ("0", "1")),
        (("label 1", "label 2"), ("0", "1")),
        (("LABEL_0", "other"), ("LABEL_0", "other")),
    ],
)
def test_the_labels_that_a_teacher_tells(names: tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert label_names("teacher", config_of(names)) == expected


@pytest.mark.parametrize(
    ("names", "labels", "places"),
    [
        (RATINGS, ("1", "2", "3", "4"), [0, 1, 2, 3]),  # the teacher's 5 is left out
        (RATINGS, ("5", "4", "3", "2", "1"), [4, 3, 2, 1, 0]),
        (("-1", "0", "1"), ("0", "1"), [1, 2]),
        (("1", "2", "other"), ("1", "2"), [0, 1]),
        (("0", "1"), ("bad", "good"), None),
        (("LABEL_0", "LABEL_1"), ("1", "2"), None),
        (("bad", "good"), ("0", "1"), None),
    ],
)
def test_numbers_are_matched_by_name_if_they_are_names(
    names: tuple[str, ...], labels: tuple[str, ...], places: list[int] | None
) -> None:
    assert teacher_labels("teacher", config_of(names), labels).places == places


@pytest.mark.parametrize(
    ("names", "labels", "message"),
    [
        (RATINGS, ("0", "1", "2", "3", "4"), "lacks the task's label '0', and has '5', which the task does not have"),
        (RATINGS, ("bad", "fair", "good", "fine", "great"), "lacks the task's labels 'bad', 'fair'"),
        (("-1", "0", "1"), ("0", "1", "2"), "lacks the task's label '2', and has '-1', which the task does not have"),
        (("no", "yes"), ("1", "2", "3"), "has the labels 'no', 'yes', but the task has '1', '2', '3': give one"),
        (("0", "1", "2"), ("0", "1"), "has 3 labels without names, but the task has 2: give one"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(names: tuple[str, ...], labels: tuple[str, ...], message: str) -> None:
    with pytest.raises(PotstillError, match=message):
        teacher_labels("teacher", config_of(names), labels)
