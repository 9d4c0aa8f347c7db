"""Turn the labels of files into class numbers and scores. A whole number is a class number; text is a class name."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from potstill.errors import PotstillError
from potstill.tasks.rows import print_message


def canonical(value: Any) -> Any:
    """Return a label in the form in which it is looked up: an int or a text; None for anything else.

    A float with a whole value becomes an int, because pandas writes whole numbers as floats if one of a column is
    missing. True and False become None, because a dictionary would take them for 1 and 0.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def score_of(value: Any) -> float | None:
    """Return a score as a finite number, or None if it is not one: `nan`, `inf`, blank, true, or too large."""
    if isinstance(value, bool) or (isinstance(value, str) and "_" in value):  # float("1_0") is 10
        return None
    try:
        score = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    with np.errstate(over="ignore"):
        return score if math.isfinite(np.float32(score)) else None  # models compute in float32


@dataclass(frozen=True)
class ClassNames:
    """The classes of a model. Files give them by name or by number.

    Attributes:
        names: names of the classes, in the order of their numbers.
    """

    names: tuple[str, ...]

    def as_written(self, labels: Iterable[Any], typed: bool, where: str) -> Mapping[Any, int]:
        """Return label as a file may write it → number of the class.

        Whole numbers are class numbers, and text is a class name. A text of digits is a class number only if no class
        has a name of digits that differ from its number. If a class has one, a file does not always tell the name 1
        from the number 1: a .tsv has only text, and other programs write names of digits as numbers. The labels of the
        whole file then decide, if they can.

        Args:
            labels: the labels of the whole file.
            typed: whether the file distinguishes numbers from text, as JSON and parquet do.
            where: the file, for messages.

        Raises:
            PotstillError: the labels can be read both as names and as numbers, and the classes would differ; or one can
                only be a name and another only a number.
        """
        counts = Counter(self.names)
        names = {name: number for number, name in enumerate(self.names) if counts[name] == 1}
        numbers = {str(number): number for number in range(len(self.names))}
        words = {name: number for name, number in names.items() if not is_number(name)}
        integers: dict[Any, int] = {number: number for number in numbers.values()}
        if len(words) == len(names):
            return integers | numbers | names
        rule = "write the rows as .jsonl, with names as text and numbers as numbers"
        whole: dict[Any, str] = {}
        if typed:
            found = {canonical(label) for label in labels}
            if found & (names.keys() - words.keys()):  # it has names of digits as text, so its numbers are numbers
                return integers | names
            whole = {label: str(label) for label in found if isinstance(label, int)}
            labels, rule = whole.values(), "write names as text, such as '1'"
        digits = {label for label in labels if label in names or label in numbers} - words.keys()
        if digits - names.keys() and digits - numbers.keys():
            raise PotstillError(
                f"{where}: the label {min(digits - numbers.keys())!r} is only the name of a class, and "
                f"{min(digits - names.keys())!r} is only the number of a class: {rule}."
            )
        if self._are_names(digits, names, numbers, where, rule):
            return names | {label: names[name] for label, name in whole.items() if name in names}
        return integers | names if typed else words | numbers

    def _are_names(
        self, digits: set[str], names: Mapping[str, int], numbers: Mapping[str, int], where: str, rule: str
    ) -> bool:
        """Return whether labels of digits are names of classes, and not their numbers; and say so, if it is not plain.

        Raises:
            PotstillError: they can be both, and the classes would differ. The message ends with the rule.
        """
        as_names, as_numbers = digits <= names.keys(), digits <= numbers.keys()
        if as_names and as_numbers and any(names[label] != numbers[label] for label in digits):
            some = ", ".join(sorted(digits)[:5])
            raise PotstillError(
                f"{where}: the labels {some} can be names of classes or numbers of other classes, because the model "
                f"calls its classes {', '.join(self.names)}: {rule}."
            )
        if as_names != as_numbers:
            what = "names" if as_names else "numbers"
            print_message(f"{where}: labels such as {min(digits)} are read as {what} of classes.")
        return as_names


def is_number(text: str) -> bool:
    """Return whether a label is a whole number in digits."""
    return text.removeprefix("-").isdecimal()


def spelling(name: str) -> str:
    """Return the form in which names are compared: "Not entailment" and "not_entailment" are the same."""
    return re.sub(r"[-_\s]+", "_", name.strip().casefold())


def match_names(names: Sequence[str], wanted: Sequence[str]) -> list[int] | None:
    """Return the position in `names` of each name in `wanted`. Return None if they are not the same names, each once.

    Capitals, hyphens, blanks and underscores make no difference: "Not entailment" equals "not_entailment".
    """
    have, want = ([spelling(name) for name in some] for some in (names, wanted))
    if len(set(have)) < len(have) or sorted(have) != sorted(want):
        return None
    return [have.index(name) for name in want]


def in_words(rows: Iterable[tuple[int, dict[Any, Any]]], column: Any, names: Sequence[str]) -> None:
    """Replace the class numbers in a column of rows, or in its lists, by the names of the classes in the file."""

    def word(value: Any) -> Any:
        if isinstance(value, list):
            return [word(item) for item in value]
        number = canonical(value)
        return names[number] if isinstance(number, int) and 0 <= number < len(names) else value

    for _, row in rows:
        if column in row:
            row[column] = word(row[column])
