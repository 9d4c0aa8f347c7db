"""Which heads and neurons of a model are kept, and which ones go next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from potstill.errors import PotstillError
from potstill.student.parts import Located
from potstill.wording import agreeing

Scores = Sequence[Tensor]
"""For each layer, how much each of its heads or neurons matters, (A,) or (I,)."""


@dataclass(frozen=True)
class Kept:
    """The heads, or the neurons, that are kept.

    Attributes:
        of_layers: for each layer (A,) bool, True for what is kept.
    """

    of_layers: tuple[Tensor, ...]

    @classmethod
    def all_of(cls, numbers: Sequence[int]) -> Kept:
        """Keep everything.

        Args:
            numbers: of heads or neurons in each layer.
        """
        return cls(tuple(torch.ones(number, dtype=torch.bool) for number in numbers))

    @classmethod
    def from_numbers(cls, kept: Sequence[Sequence[int]], sizes: Sequence[int]) -> Kept:
        """Return what `numbers` describes, for layers of these sizes."""
        found = cls(tuple(torch.zeros(size, dtype=torch.bool) for size in sizes))
        for mask, numbers in zip(found.of_layers, kept, strict=True):
            mask[list(numbers)] = True
        return found

    @property
    def numbers(self) -> list[Tensor]:
        """For each layer, the numbers of what is kept, in ascending order."""
        return [mask.nonzero().flatten() for mask in self.of_layers]

    @property
    def removed(self) -> int:
        """How many are removed, over all layers."""
        return sum(int((~mask).sum()) for mask in self.of_layers)

    @property
    def total(self) -> int:
        """How many there were, over all layers."""
        return sum(len(mask) for mask in self.of_layers)

    @property
    def share_removed(self) -> float:
        """The share that is removed, 0 to 1."""
        return self.removed / max(self.total, 1)

    def without(self, scores: Scores, count: int, uniform: bool, normalise: bool) -> Kept:
        """Remove those that matter least. Every layer keeps at least one.

        Args:
            scores: how much each matters. A score of what is removed already does not count.
            count: how many to remove over all layers.
            uniform: remove equally many in each layer. `count` is then a multiple of the number of layers.
            normalise: divide the scores of a layer by their length √Σ I², over those that are left (Michel et al. 2019,
                section 4.1). Otherwise layers with large gradients keep more.
        """
        masks = [mask.clone() for mask in self.of_layers]
        order = []
        for layer, (mask, layer_scores) in enumerate(zip(masks, scores, strict=True)):
            left = layer_scores.double().cpu()[mask]
            length = left.norm() if normalise else torch.ones(())
            values = left / length if length > 0 else left
            order.append(
                [(value, layer, int(part)) for value, part in zip(values.tolist(), mask.nonzero(), strict=True)]
            )
        if uniform:
            each = count // len(masks)
            chosen = [one for of_layer in order for one in sorted(of_layer)[:each]]
        else:
            chosen, rest = [], [len(of_layer) for of_layer in order]
            for one in sorted(one for of_layer in order for one in of_layer):
                if len(chosen) < count and rest[one[1]] > 1:
                    chosen.append(one)
                    rest[one[1]] -= 1
        for _, layer, part in chosen:
            masks[layer][part] = False
        return Kept(tuple(masks))


def number_to_remove(asked: float, numbers: Sequence[int], what: str, uniform: bool) -> int:
    """Return how many heads or neurons to remove in all.

    Args:
        asked: below 1 a share, from 1 on a number.
        numbers: how many each layer has.
        what: "heads" or "neurons".
        uniform: whether each layer loses equally many. A share is then rounded to a multiple of the number of layers.

    Raises:
        PotstillError: there are not so many, no layer may lose its last one, or the number cannot be divided evenly.
    """
    total, layers = sum(numbers), len(numbers)
    if asked >= 1 and asked != int(asked):
        raise PotstillError(f"--{what} is {asked:g}: from 1 on it is a whole number of {what}, and below 1 a share.")
    if uniform:
        if len(set(numbers)) > 1:
            raise PotstillError(
                f"--uniform cannot remove equally many {what} of each layer, because the layers have different numbers "
                "of them: give the model from before it was pruned, or --uniform none."
            )
        count = round(asked * numbers[0]) * layers if asked < 1 else int(asked)
    else:
        count = round(asked * total) if asked < 1 else int(asked)
    if count > total:
        raise PotstillError(f"--{what} is {asked:g}, but the model has only {total:,} {what}: lower it.")
    if count > total - layers:
        raise PotstillError(
            f"--{what} is {asked:g}, which would remove {count:,} of {total:,} {what}, but "
            f"{agreeing(layers, 'the only layer', f'each of the {layers} layers')} keeps at least one: at most "
            f"{total - layers:,} can be removed."
        )
    if count % layers and uniform:
        below = math.floor(count / layers) * layers
        raise PotstillError(
            f"--{what} is {asked:g}, which cannot be divided evenly among {layers} layers: give {below or layers} or "
            f"{below + layers}, or let the layers differ with --uniform."
        )
    if count == 0:
        raise PotstillError(f"--{what} is {asked:g}, which removes nothing of {total:,} {what}: raise it.")
    return count


def removed_by(step: int, steps: int, count: int, layers: int, uniform: bool) -> int:
    """Return how many heads or neurons are removed after a step, of `count` after all of them."""
    return count * step // (steps * layers) * layers if uniform else count * step // steps


def kept_of(located: Located) -> tuple[Kept, Kept]:
    """Return all heads and all neurons of a model as kept."""
    return Kept.all_of(located.heads), Kept.all_of(located.neurons)
