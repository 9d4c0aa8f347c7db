"""Matches the labels of a task teacher with those of the task, by their names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import softmax

from potstill.errors import PotstillError
from potstill.finetuning.rows import Array, Pieces
from potstill.tasks.labels import is_number, match_names, spelling

SHOWN = 8
"""How many labels a message names."""

AT_A_TIME = 2**16
"""How many rows of logits are looked at together."""

_NUMBERED = re.compile(r"label[_\s-]?\d+", re.IGNORECASE)


@dataclass(frozen=True)
class TeacherLabels:
    """Where a teacher has the labels of the task.

    Attributes:
        places: (C,) the place of each label of the task among the teacher's; None if nothing tells, because one of the
            two only numbers its labels. They are then in the same order, or another check finds out that they are not.
        left_out: names of the teacher's labels that the task does not have.
    """

    places: list[int] | None
    left_out: tuple[str, ...] = ()

    @property
    def named(self) -> bool:
        """Whether the labels are matched by their names."""
        return self.places is not None

    def in_order(self, logits: Array) -> Any:
        """Return logits (…, teacher's labels) in the order of the task's labels, (…, C), without any others.

        They are an array, or `Pieces` if they are mapped into memory.

        Their softmax is the teacher's probability of each label if it is known to be one of the task's.
        """
        if self.places is None or self.places == [*range(np.shape(logits)[-1])]:
            return logits
        # Logits that are mapped into memory may be those of all words of a corpus.
        return Pieces([logits], self.places) if isinstance(logits, np.memmap) else np.asarray(logits)[..., self.places]

    def probability_left_out(self, logits: Array) -> float:
        """Return the mean probability, 0 to 1, that the teacher gives to the labels that are left out."""
        if not self.left_out or self.places is None:
            return 0.0
        kept = 0.0
        for start in range(0, len(logits), AT_A_TIME):  # all words of a corpus would fill the memory
            part = softmax(np.asarray(logits[start : start + AT_A_TIME], np.float64), axis=-1)
            kept += float(part[..., self.places].sum(axis=-1).sum())
        return 1 - kept / (np.size(logits) // np.shape(logits)[-1])


def label_names(teacher: str, config: Any) -> tuple[str, ...]:
    """Return the names of a teacher's labels, for a task whose labels only the teacher tells.

    The names of a teacher that only numbers its labels (`LABEL_0`) are the numbers, from 0.

    Args:
        teacher: its folder or name, for messages.
        config: its config.

    Raises:
        PotstillError: it has fewer than two labels, or one name more than once.
    """
    names = tuple(str(config.id2label.get(number, "")) for number in range(config.num_labels))
    if len(names) < 2:
        raise PotstillError(
            f"the teacher {teacher!r} has {len(names)} label, so it tells no labels apart: give one that is fine-tuned "
            "on this task"
        )
    _check_different(teacher, names, names)
    return tuple(map(str, range(len(names)))) if _only_numbered(names) else names


def teacher_labels(teacher: str, config: Any, labels: Sequence[str], role: str = "teacher") -> TeacherLabels:
    """Match a teacher's labels with those of the task. Capitals, hyphens and blanks make no difference.

    Args:
        teacher: its folder or name, for messages.
        config: its config.
        labels: (C,) names of the task's labels.
        role: the word for it in messages.

    Raises:
        PotstillError: the teacher lacks a label of the task, or only numbers its labels and has more or fewer.
    """
    names = [str(config.id2label.get(number, "")) for number in range(config.num_labels)]
    places = match_names(names, labels)
    if places is not None:
        return TeacherLabels(places)
    unnamed = _only_numbered(names)
    if unnamed or (all(map(is_number, labels)) and not any(map(is_number, names))):
        if len(names) == len(labels):
            return TeacherLabels(None)
        theirs = f"{len(names)} labels without names" if unnamed else f"the labels {listed(names)}"
        ours = f"the task has {len(labels)}" if unnamed else f"the task has {listed(labels)}"
        raise PotstillError(
            f"the {role} {teacher!r} has {theirs}, but {ours}: give one that is fine-tuned on this task, or name its "
            "labels in id2label of its config.json"
        )
    form = spelling if len({*map(spelling, labels)}) == len(labels) else str
    have, want = list(map(form, names)), list(map(form, labels))
    _check_different(teacher, names, have, role)
    missing = [name for name, key in zip(labels, want, strict=True) if key not in have]
    extra = [name for name, key in zip(names, have, strict=True) if key not in want]
    if missing:
        others = f", and has {listed(extra)}, which the task does not have" if extra else ""
        lacked = f"label{'s' * (len(missing) > 1)} {listed(missing)}"
        raise PotstillError(
            f"the {role} {teacher!r} lacks the task's {lacked}{others}: give one of the same labels, or correct "
            "the names in id2label of its config.json"
        )
    return TeacherLabels([have.index(key) for key in want], tuple(extra))


def _only_numbered(names: Sequence[str]) -> bool:
    """Return whether names say no more than the numbers of the labels. The names 1 to 5, of ratings, say more."""
    return all(map(_NUMBERED.fullmatch, names)) or [*names] == [*map(str, range(len(names)))]


def _check_different(teacher: str, names: Sequence[str], keys: Sequence[str], role: str = "teacher") -> None:
    """Raise a `PotstillError` if two labels have one key."""
    twice = next((name for name, key in zip(names, keys, strict=True) if keys.count(key) > 1), None)
    if twice is not None:
        raise PotstillError(
            f"the {role} {teacher!r} has the label {twice!r} more than once: give each label its own name in id2label "
            "of its config.json"
        )


def left_out_message(left_out: Sequence[str], probability: float) -> str:
    """Return the line that tells of a teacher's labels that are left out.

    Args:
        left_out: their names.
        probability: the mean probability that the teacher gives them, 0 to 1.
    """
    these = "label" if len(left_out) == 1 else "labels"
    return (
        f"the teacher's {these} {listed(left_out)} {'is' if len(left_out) == 1 else 'are'} left out, because the task "
        f"does not have {'it' if len(left_out) == 1 else 'them'}; the teacher gave {100 * probability:.1f} % of its "
        f"probability to {'it' if len(left_out) == 1 else 'them'}"
    )


def listed(names: Sequence[str]) -> str:
    """Return names in quotation marks with commas between, but not more than `SHOWN` of them."""
    shown = ", ".join(map(repr, names[:SHOWN]))
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
