"""Which heads and neurons go next."""

import pytest
import torch

from potstill import PotstillError
from potstill.compress.kept import Kept, number_to_remove, removed_by


def numbers(kept: Kept) -> list[list[int]]:
    return [one.tolist() for one in kept.numbers]


def test_the_least_important_of_all_layers_go_first() -> None:
    kept = Kept.all_of([3, 3])
    scores = [torch.tensor([1.0, 5.0, 6.0]), torch.tensor([2.0, 0.5, 7.0])]
    assert numbers(kept.without(scores, 3, uniform=False, normalise=False)) == [[1, 2], [2]]
    assert numbers(kept.without(scores, 4, uniform=True, normalise=False)) == [[2], [2]]


def test_scores_of_a_layer_are_divided_by_their_length_over_what_is_left() -> None:
    kept = Kept.from_numbers([[0, 1], [0, 1, 2]], [3, 3])
    # Without the removed head the first layer's are 0.6 and 0.8; those of the second 0.6, 0 and 0.8, times 10.
    scores = [torch.tensor([3.0, 4.0, 100.0]), torch.tensor([30.0, 0.1, 40.0])]
    assert numbers(kept.without(scores, 1, uniform=False, normalise=True)) == [[0, 1], [0, 2]]
    scores[1] = torch.tensor([25.0, 25.0, 60.0])
    assert numbers(kept.without(scores, 2, uniform=False, normalise=True)) == [[0, 1], [2]]
    assert numbers(kept.without(scores, 1, uniform=False, normalise=False)) == [[1], [0, 1, 2]]


def test_every_layer_keeps_one() -> None:
    kept = Kept.all_of([2, 2, 2])
    scores = [torch.tensor([0.0, 0.0]), torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])]
    assert numbers(kept.without(scores, 3, uniform=False, normalise=False)) == [[1], [1], [1]]
    assert numbers(kept.without(scores, 2, uniform=False, normalise=True)) == [[1], [1], [0, 1]]


@pytest.mark.parametrize("uniform", [False, True])
def test_steps_remove_what_is_asked_for_in_all(uniform: bool) -> None:
    after = [removed_by(step, 5, 48, 6, uniform) for step in range(6)]
    assert after == ([0, 6, 18, 24, 36, 48] if uniform else [0, 9, 19, 28, 38, 48])


@pytest.mark.parametrize(
    ("asked", "uniform", "expected"),
    [(0.3, False, 22), (20, False, 20), (0.3, True, 24), (12, True, 12), (66, False, 66)],
)
def test_shares_and_numbers(asked: float, uniform: bool, expected: int) -> None:
    assert number_to_remove(asked, [12] * 6, "heads", uniform) == expected


@pytest.mark.parametrize(
    ("asked", "uniform", "message"),
    [
        (73, False, "the model has only 72 heads"),
        (70, False, "at most 66 can be removed"),
        (0.99, False, "at most 66 can be removed"),
        (0.99, True, "at most 66 can be removed"),
        (2.5, False, "from 1 on it is a whole number of heads"),
        (20, True, "cannot be divided evenly among 6 layers: give 18 or 24"),
        (0.001, False, "removes nothing of 72 heads"),
    ],
)
def test_impossible_numbers_are_refused(asked: float, uniform: bool, message: str) -> None:
    with pytest.raises(PotstillError, match=message):
        number_to_remove(asked, [12] * 6, "heads", uniform)


def test_layers_that_differ_cannot_lose_equally_many() -> None:
    with pytest.raises(PotstillError, match="the layers have different numbers"):
        number_to_remove(0.5, [3, 2], "heads", True)
