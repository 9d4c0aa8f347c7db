"""Collect the labels of a user's rows, check them, and number them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.errors import PotstillError
from potstill.tasks.labels import ClassNames, canonical, score_of, spelling
from potstill.tasks.rows import BadRows, print_message, text_lines

SHOWN = 5
"""Number of labels that a message names."""

_WHOLE = re.compile(r"[-+]?\d+")


@dataclass(frozen=True)
class Written:
    """A label as a file writes it.

    Attributes:
        name: the label as text; a whole number without a fraction.
        is_number: whether it is a number; None if a file of text has a whole number, which may be a name too.
    """

    name: str
    is_number: bool | None


def written(value: Any) -> Written | None:
    """Return a label of a row; None if the value is no label, as null and blank text."""
    if isinstance(value, bool):
        return Written(str(value).lower(), False)
    if isinstance(value, str):
        name = value.strip()
        return Written(name, None if _WHOLE.fullmatch(name) else False) if name else None
    whole = canonical(value)
    if isinstance(whole, int):
        return Written(str(whole), True)
    return Written(repr(value), True) if isinstance(value, float) and score_of(value) is not None else None


def read_names(path: str) -> tuple[str, ...]:
    """Return the names of labels in a file, one a line.

    Raises:
        PotstillError: there is no such file, it has fewer than two names, or one of them twice.
    """
    if not Path(path).expanduser().is_file():
        raise PotstillError(f"There is no file {path} with the names of the labels: check --label_names.")
    file = str(Path(path).expanduser())
    names = [line.strip() for _, line in text_lines(file, BadRows()) if line.strip()]
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise PotstillError(f"{file} has the label {twice!r} twice: keep only one of them.")
    if len(names) < 2:
        raise PotstillError(f"{file} has fewer than two names of labels: write each on a line of its own.")
    return tuple(names)


def collect(labels: Iterable[Written], where: str, typed: bool) -> tuple[str, ...]:
    """Return the different labels in order: numbers by value, names by alphabet.

    Args:
        labels: those of all rows to train on.
        where: the file, for messages.
        typed: whether the file distinguishes numbers from text.

    Raises:
        PotstillError: there is one label only, they are of different types, or they are numbers with fractions.
    """
    found: dict[str, Written] = {}
    for label in labels:
        found.setdefault(label.name, label)
    check_types(found.values(), where, typed)
    if len(found) < 2:
        one = f"only the label {next(iter(found))!r}" if found else "no label"
        raise PotstillError(f"{where} has {one}: a model can only learn to tell two or more labels apart.")
    if all(_WHOLE.fullmatch(name) for name in found):
        return tuple(sorted(found, key=lambda name: (int(name), name)))
    return tuple(sorted(found))


def check_types(labels: Iterable[Written], where: str, typed: bool) -> None:
    """Check that all labels of a file are names, or that all are whole numbers.

    Raises:
        PotstillError: they are of both types, or they are numbers with fractions.
    """
    labels = list(labels)
    if labels and all(score_of(label.name) is not None for label in labels):
        fraction = next((label.name for label in labels if not _WHOLE.fullmatch(label.name)), None)
        if fraction is not None:
            raise PotstillError(
                f"{where} has the label {fraction}, a number with a fraction: give --task regression, or write names."
            )
    # In a file of text a whole number may be a name, but names and numbers side by side are most often a mistake.
    numbers: list[Written] = []
    names: list[Written] = []
    for label in labels:
        is_number = label.is_number or (label.is_number is None and not typed)
        (numbers if is_number else names).append(label)
    if numbers and names:
        raise PotstillError(
            f"{where} mixes numbers ({numbers[0].name}) and names ({names[0].name!r}) as labels: write one kind, or "
            "list all names in a file for --label_names."
        )


def numbers_of(names: tuple[str, ...], labels: Sequence[Written], listed: bool, where: str, typed: bool) -> Any:
    """Return the number of each label as a mapping from its name as the file writes it.

    Args:
        names: names of the labels, in order.
        labels: all labels of the file.
        listed: whether the names are from `--label_names`, so that the file may write numbers of names.
        where: the file, for messages.
        typed: whether the file distinguishes numbers from text.
    """
    if not listed:
        return {name: number for number, name in enumerate(names)}
    values: list[Any] = [int(label.name) if label.is_number else label.name for label in labels]
    known = ClassNames(names).as_written(values, typed, where)
    found: dict[str, int] = {}
    for label, value in zip(labels, values, strict=True):
        number = known.get(value)
        if number is not None and found.setdefault(label.name, number) != number:
            raise PotstillError(
                f"{where} has the label {label.name} as a number and as text, which would be two classes: write names "
                "as text in all rows."
            )
    return found


def tell_counts(counts: Counter[int], names: Sequence[str], where: str) -> None:
    """Print which labels have one example to learn from, and which have none."""
    for many, what in ((1, "one example"), (0, "no example")):
        rare = [name for number, name in enumerate(names) if counts[number] == many]
        if rare:
            has = f"label{'s' * (len(rare) > 1)} {'have' if len(rare) > 1 else 'has'} {what}"
            print_message(f"{where}: {len(rare):,} {has} to learn from: {some(rare)}.")


def tell_alike(names: Sequence[str], where: str) -> None:
    """Print which labels differ only in spelling or in zeros before them: most often they are one label."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(spelling(name.lstrip("0")), []).append(name)
    alike = [group for group in groups.values() if len(group) > 1]
    if alike:
        more = f" (and {len(alike) - 1:,} more such groups)" if len(alike) > 1 else ""
        print_message(f"{where}: {' and '.join(map(repr, alike[0]))} are taken for different labels{more}.")


def some(names: Sequence[str]) -> str:
    """Return the first names in words."""
    return ", ".join(map(repr, names[:SHOWN])) + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")
