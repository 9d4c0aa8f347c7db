"""Which of the teacher's layers the student starts from."""

import re
from collections.abc import Sequence

from potstill.errors import PotstillError
from potstill.wording import agreeing, counted

LAYER_RULES = ("alternate", "first", "last", "even")
AUTO = "auto"
"""The layers are chosen by measurement, which needs a corpus: see `potstill.training.layer_search.find_layers`."""


def choose_layers(teacher_layers: int, student_layers: int, rule: str | Sequence[int] = "alternate") -> list[int]:
    """The teacher layer, counted from 0, that each student layer is initialised from.

    ============  ================================================  ==============
    rule          layers                                            12 → 6
    ============  ================================================  ==============
    `alternate`   evenly spaced from the first to the last, halves  0 2 4 7 9 11
                  rounded up; one layer alone is the first
    `even`        floor(i · teacher / student)                      0 2 4 6 8 10
    `first`       the lowest                                        0 1 2 3 4 5
    `last`        the highest                                       6 7 8 9 10 11
    explicit      as given: any order, repeats allowed              `0,2,4,7,9,11`
    ============  ================================================  ==============

    `alternate` on 12 → 6 is the map of the released DistilBERT (Sanh et al. 2019, section 3, "Student initialization").

    Args:
        teacher_layers: Number of layers of the teacher.
        student_layers: Number of layers of the student.
        rule: A rule's name, or the layers themselves as integers or as a string such as `"0,2,4"`.

    Returns:
        `student_layers` integers in `[0, teacher_layers)`.

    Raises:
        PotstillError: Either depth is below 1; the rule is unknown; a rule is asked for more layers than the teacher
            has; an explicit list has the wrong length or names a layer the teacher does not have.
    """
    for model, depth in (("teacher", teacher_layers), ("student", student_layers)):
        if not _is_integer(depth) or depth < 1:
            raise PotstillError(f"a {model} needs a whole number of layers, at least 1, but was given {depth!r}")
    explicit = explicit_layers(rule)
    if explicit is not None:
        return _checked(explicit, teacher_layers, student_layers)
    if student_layers > teacher_layers:
        raise PotstillError(
            f"the rule {rule!r} cannot fill {counted(student_layers, 'student layer')} from a teacher of "
            f"{teacher_layers}: ask for at most {teacher_layers}, or list the layers to copy (repeats are allowed)"
        )
    if rule == "alternate":
        return _evenly_spaced(teacher_layers, student_layers)
    if rule == "even":
        return [i * teacher_layers // student_layers for i in range(student_layers)]
    if rule == "first":
        return list(range(student_layers))
    return list(range(teacher_layers - student_layers, teacher_layers))


def student_layers(
    teacher_layers: int, num_hidden_layers: int | None, rule: str | Sequence[int] = "alternate"
) -> list[int]:
    """The teacher layers to copy: as `choose_layers`, with a depth that may be left out.

    Args:
        teacher_layers: Number of layers of the teacher.
        num_hidden_layers: Number of layers of the student; None for as many as `rule` lists, or for half the teacher's
            (rounded down, at least 1) where it lists none.
        rule: See `choose_layers`.

    Raises:
        PotstillError: See `choose_layers`.
    """
    if num_hidden_layers is None:
        listed = explicit_layers(rule)
        num_hidden_layers = default_depth(teacher_layers) if listed is None else len(listed)
    return choose_layers(teacher_layers, num_hidden_layers, rule)


def default_depth(teacher_layers: int) -> int:
    """The depth of a student if none is given: half of its teacher's, rounded down, and at least 1."""
    return max(1, teacher_layers // 2)


def explicit_layers(rule: str | Sequence[int]) -> list[int] | None:
    """The layers that `rule` lists itself, or None when it is the name of a rule.

    Raises:
        PotstillError: `rule` is neither a rule's name nor a list of integers.
    """
    if isinstance(rule, str):
        if rule in LAYER_RULES:
            return None
        if re.fullmatch(r"\s*-?\d+\s*(,\s*-?\d+\s*)*", rule):
            return [int(part) for part in rule.split(",")]
        if rule == AUTO:
            raise PotstillError(
                "the choice of layers 'auto' is measured on a corpus: call find_layers, and give the layers it finds"
            )
    elif isinstance(rule, Sequence) and all(_is_integer(layer) for layer in rule):
        return [int(layer) for layer in rule]
    raise PotstillError(
        f"the choice of layers {rule!r} is neither a rule ({', '.join((AUTO, *LAYER_RULES))}) "
        "nor a list of layer numbers such as 0,2,4"
    )


def _checked(layers: list[int], teacher_layers: int, student_layers: int) -> list[int]:
    if len(layers) != student_layers:
        raise PotstillError(
            f"{counted(len(layers), 'teacher layer')} {agreeing(len(layers), 'is', 'are')} listed "
            f"({', '.join(map(str, layers))}) for a student of "
            f"{student_layers}: list exactly one for each student layer"
        )
    for layer in layers:
        if not 0 <= layer < teacher_layers:
            raise PotstillError(
                f"teacher layer {layer} does not exist: the teacher has {counted(teacher_layers, 'layer')}, "
                f"numbered 0 to {teacher_layers - 1}"
            )
    return layers


def _evenly_spaced(teacher_layers: int, student_layers: int) -> list[int]:
    if student_layers == 1:
        return [0]
    # Integers throughout: `round` rounds halves to even, which would choose by the parity of the layer.
    gaps = student_layers - 1
    return [(2 * i * (teacher_layers - 1) + gaps) // (2 * gaps) for i in range(student_layers)]


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
