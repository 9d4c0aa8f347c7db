"""What a label may be written as: numbers are class numbers, text is a name, and what is ambiguous is refused."""

import math
from typing import Any

import pytest

from potstill.errors import PotstillError
from potstill.tasks.labels import ClassNames, canonical, score_of
from potstill.tasks.own_labels import numbers_of, written

STARS = ClassNames(("1", "2", "3"))


def read(names: ClassNames, labels: list[Any], typed: bool) -> list[int | None]:
    written = names.as_written(labels, typed, "the file")
    return [written.get(canonical(label)) for label in labels]


@pytest.mark.parametrize(
    ("names", "labels", "expected"),
    [
        (("1", "2", "3"), [1, "1", 2, "3", 3, 0], [1, 0, 2, 2, None, 0]),
        (("-1", "0", "1"), [1, "1", "0", -1, "-1"], [1, 2, 1, None, 0]),
        (("neg", "pos"), [0, "0", "pos", 1.0, "neg"], [0, 0, 1, 1, 0]),
        (("0", "1"), ["1", 0, "0", 1], [1, 0, 0, 1]),
        (("a", "a", "b"), ["a", 1, "b"], [None, 1, 2]),  # which of the two is meant cannot be told
        (("a", "b"), [True, None, 0.5, math.nan, [1], "c", "-1"], [None] * 7),
    ],
)
def test_files_that_tell_numbers_from_text(names: tuple[str, ...], labels: list[Any], expected: list[Any]) -> None:
    assert read(ClassNames(names), labels, typed=True) == expected


def test_numbers_beside_classes_that_are_named_by_digits(capsys: pytest.CaptureFixture[str]) -> None:
    """A program that writes names of digits as numbers, in JSON, cannot be told from one that writes numbers."""
    assert read(STARS, [1, 3.0, 2], typed=True) == [0, 2, 1]
    assert capsys.readouterr().err == "the file: labels such as 1 are read as names of classes.\n"
    assert read(STARS, [0, 1, 2], typed=True) == [0, 1, 2]
    assert "labels such as 0 are read as numbers of classes" in capsys.readouterr().err
    with pytest.raises(
        PotstillError, match=r"the labels 1, 2 can be names .* or numbers .*: write names as text, such as '1'\."
    ):
        read(STARS, [1, 2, 2], typed=True)
    assert read(STARS, [1, "2", "word"], typed=True) == [1, 1, None]  # it tells one from the other
    assert read(STARS, [1, 99, 3], typed=True) == [0, None, 2]  # a stray label decides nothing
    with pytest.raises(PotstillError, match=r"'3' is only the name of a class, and '0' is only the number .* text"):
        read(STARS, [0, 3], typed=True)
    assert read(ClassNames(("-1", "0", "1")), [-1, 0, 1], typed=True) == [0, 1, 2]


def test_listed_names_of_digits() -> None:
    """With `--label_names` a file may write numbers of names. One label is then one class."""

    def numbers(values: list[Any]) -> Any:
        labels = [label for value in values if (label := written(value)) is not None]
        return numbers_of(STARS.names, labels, True, "the file", True)

    assert numbers([0, 1, 2]) == {"0": 0, "1": 1, "2": 2}
    assert numbers([1, 2, 3]) == numbers(["1", "2", "3"]) == {"1": 0, "2": 1, "3": 2}
    with pytest.raises(PotstillError, match="the file has the label 1 as a number and as text"):
        numbers([0, 1, "1"])


def test_a_table_of_text_is_decided_by_all_of_its_labels(capsys: pytest.CaptureFixture[str]) -> None:
    assert read(STARS, ["1", "2", "3"], typed=False) == [0, 1, 2]
    assert capsys.readouterr().err == "the file: labels such as 1 are read as names of classes.\n"
    assert read(STARS, ["0", "1", "2"], typed=False) == [0, 1, 2]
    assert "labels such as 0 are read as numbers of classes" in capsys.readouterr().err
    for labels in (["1", "2"], ["2", "2"]):
        with pytest.raises(PotstillError, match=r"the file: the labels .*2 can be names .* or numbers .* \.jsonl"):
            read(STARS, labels, typed=False)
    with pytest.raises(PotstillError, match=r"'3' is only the name of a class, and '0' is only the number"):
        read(STARS, ["0", "3"], typed=False)


@pytest.mark.parametrize("names", [("0", "1", "2"), ("neg", "pos", "none"), ("10", "20", "30")])
def test_where_names_and_numbers_are_the_same_classes_there_is_nothing_to_decide(
    names: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert read(ClassNames(names), [names[2], "zz", names[0]], typed=False) == [2, None, 0]
    if names[0] != "10":
        assert read(ClassNames(names), ["1", names[2]], typed=False) == [1, 2]
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "value", ["nan", "NaN", "inf", "-Infinity", math.nan, math.inf, None, "", " ", "x", True, "1_0", 1e39, 10**400, []]
)
def test_what_is_no_score(value: Any) -> None:
    assert score_of(value) is None


@pytest.mark.parametrize("value", [0, "2.50", " 3 ", -1e3, "1e-2"])
def test_what_is_a_score(value: Any) -> None:
    assert score_of(value) == float(value)
