from fractions import Fraction

import pytest

from potstill.errors import PotstillError
from potstill.student import choose_layers


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("alternate", [0, 2, 4, 7, 9, 11]),
        ("even", [0, 2, 4, 6, 8, 10]),
        ("first", [0, 1, 2, 3, 4, 5]),
        ("last", [6, 7, 8, 9, 10, 11]),
        ([11, 3, 3, 0, 1, 2], [11, 3, 3, 0, 1, 2]),
        ((0, 1, 2, 3, 4, 5), [0, 1, 2, 3, 4, 5]),
        ("0,2,4,7,9,11", [0, 2, 4, 7, 9, 11]),
        (" 5, 4 ,3,2,1,0 ", [5, 4, 3, 2, 1, 0]),
    ],
)
def test_twelve_to_six(rule: str | list[int], expected: list[int]) -> None:
    assert choose_layers(12, 6, rule) == expected


def test_alternate_is_the_nearest_layer_to_even_spacing_at_every_depth() -> None:
    for teacher in range(2, 49):
        for student in range(2, teacher + 1):
            chosen = choose_layers(teacher, student)
            assert chosen[0] == 0
            assert chosen[-1] == teacher - 1
            assert chosen == sorted(set(chosen))
            for i, layer in enumerate(chosen):
                distance = layer - Fraction(i * (teacher - 1), student - 1)
                assert Fraction(-1, 2) < distance <= Fraction(1, 2), (teacher, student, i)


@pytest.mark.parametrize("rule", ["alternate", "even", "first", "last"])
def test_every_rule_gives_distinct_layers_of_the_teacher(rule: str) -> None:
    for teacher in range(1, 30):
        for student in range(1, teacher + 1):
            chosen = choose_layers(teacher, student, rule)
            assert len(chosen) == student
            assert chosen == sorted(set(chosen))
            assert set(chosen) <= set(range(teacher))
        assert choose_layers(teacher, teacher, rule) == list(range(teacher))


def test_one_layer() -> None:
    assert [choose_layers(12, 1, rule) for rule in ("alternate", "even", "first", "last")] == [[0], [0], [0], [11]]
    assert choose_layers(12, 1, "7") == [7]


def test_an_explicit_list_may_be_deeper_than_the_teacher() -> None:
    assert choose_layers(2, 4, "0,0,1,1") == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("teacher", "student", "rule", "says"),
    [
        (12, 3, [0, 5, 12], "teacher layer 12 does not exist"),
        (12, 3, "0,-1,5", "teacher layer -1 does not exist"),
        (12, 3, [0, 5], "2 teacher layers are listed"),
        (12, 3, [], "0 teacher layers are listed"),
        (4, 6, "alternate", "cannot fill 6 student layers from a teacher of 4"),
        (12, 0, "first", "student needs a whole number of layers, at least 1"),
        (0, 1, "first", "teacher needs a whole number of layers, at least 1"),
        (12, 2.5, "first", "2.5"),
        (12, 3, "every other", "alternate, first, last, even"),
        (12, 3, "0;2;4", "neither a rule"),
        (12, 3, [0, "2", 4], "neither a rule"),
        (12, 3, [0, True, 4], "neither a rule"),
        (12, 3, 3, "neither a rule"),
    ],
)
def test_what_cannot_be_chosen(teacher: int, student: int, rule: str | list[int], says: str) -> None:
    with pytest.raises(PotstillError, match=says):
        choose_layers(teacher, student, rule)
