"""Labels as files write them → class numbers and scores: whole numbers are class numbers, text is a class name."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from potstill.errors import PotstillError
from potstill.tasks.rows import say


def canonical(value: Any) -> Any:
    """Return a label as it is looked up: a whole float as an int, and nothing that Python takes for a number as one.

    True is 1 to a dictionary, and pandas writes whole numbers as floats where one of a column is missing.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def score_of(value: Any) -> float | None:
    """Return a score as a finite number, or None where it is not one: `nan`, `inf`, blank, true, or too large."""
    if isinstance(value, bool) or (isinstance(value, str) and "_" in value):  # float("1_0") is 10
        return None
    try:
        score = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    with np.errstate(over="ignore"):
        return score if math.isfinite(np.float32(score)) else None  # as models compute it


@dataclass(frozen=True)
class ClassNames:
    """The classes of a model, which files give by name or by number.

    Attributes:
        names: of the classes, in the order of their numbers.
    """

    names: tuple[str, ...]

    def as_written(self, labels: Iterable[Any], typed: bool, where: str) -> Mapping[Any, int]:
        """Return what the labels of a file may be written as → the number of the class.

        Whole numbers are class numbers, and text is a class name. Digits that are text are a class number only where
        no class is named by other digits than its number. A table of text alone cannot tell names such as 1 from
        numbers; there the labels of the whole file decide, if they can.

        Args:
            labels: of the whole file.
            typed: whether the file can tell numbers from text, as JSON and parquet can.
            where: the file, for messages.

        Raises:
            PotstillError: the labels can be read as names or as numbers, which are other classes.
        """
        counts = Counter(self.names)
        names = {name: number for number, name in enumerate(self.names) if counts[name] == 1}
        numbers = {str(number): number for number in range(len(self.names))}
        others = {name: number for name, number in names.items() if not _is_number(name)}
        whole: dict[Any, int] = {number: number for number in numbers.values()}
        if len(others) == len(names):
            return whole | numbers | names
        if typed:
            return whole | names
        digits = {label for label in labels if label in names or label in numbers} - others.keys()
        as_names, as_numbers = digits <= names.keys(), digits <= numbers.keys()
        if as_names and as_numbers and any(names[label] != numbers[label] for label in digits):
            some = ", ".join(sorted(digits)[:5])
            raise PotstillError(
                f"{where}: the labels {some} can be names of classes or numbers of other classes, for the model calls "
                f"its classes {', '.join(self.names)}: write the rows as .jsonl, names as text and numbers as numbers."
            )
        if not as_names and not as_numbers:
            raise PotstillError(
                f"{where}: the label {min(digits - numbers.keys())!r} is the name of a class, and "
                f"{min(digits - names.keys())!r} is no name but the number of one: write the rows as .jsonl, names as "
                "text and numbers as numbers."
            )
        if as_names != as_numbers:
            what = "names" if as_names else "numbers"
            say(f"{where}: labels such as {min(digits)} are read as {what} of classes.")
        return names if as_names else others | numbers


def _is_number(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def match_names(names: Sequence[str], wanted: Sequence[str]) -> list[int] | None:
    """Return where in `names` each wanted name stands; None if they are not the same names, each once.

    Capitals, hyphens, blanks and underscores make no difference: "Not entailment" is "not_entailment".
    """
    mine, theirs = (["_".join(re.split(r"[-_\s]+", name.strip().lower())) for name in some] for some in (names, wanted))
    if len(set(mine)) < len(mine) or sorted(mine) != sorted(theirs):
        return None
    return [mine.index(name) for name in theirs]


def in_words(rows: Iterable[tuple[int, dict[Any, Any]]], column: Any, names: Sequence[str]) -> None:
    """Replace the class numbers in a column of rows, or in its lists, by the names that the file itself gives them."""

    def word(value: Any) -> Any:
        if isinstance(value, list):
            return [word(item) for item in value]
        number = canonical(value)
        return names[number] if isinstance(number, int) and 0 <= number < len(names) else value

    for _, row in rows:
        if column in row:
            row[column] = word(row[column])
