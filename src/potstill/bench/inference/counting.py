"""Counts the parameters of a model, the weights that a request reads, and its FLOPs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Counted:
    """Counts of a model.

    Attributes:
        parameters: all of them. A parameter that is used twice counts once.
        encoder_parameters: without the head, but with BERT's pooler, as papers count them.
        matrix_weights: parameters with two dimensions or more that every request reads. Embedding tables do not count,
            because a request reads only some of their rows.
        vector_weights: the other parameters that every request reads: biases and LayerNorms.
        flops: length in tokens → operations of a request's matrix products. A multiplication and an addition are two.
    """

    parameters: int
    encoder_parameters: int
    matrix_weights: int
    vector_weights: int
    flops: dict[int, int]

    def bytes_read(self, weight_bits: int) -> int:
        """Return the bytes of weights that one request has to read, if it reads each weight once.

        Args:
            weight_bits: bits of a weight of a matrix. Vectors are always in float32.
        """
        return self.matrix_weights * weight_bits // 8 + self.vector_weights * FLOAT_BYTES


def count(
    model: nn.Module, encoder: nn.Module, lengths: Iterable[int], inputs: Callable[[int], tuple[Tensor, ...]]
) -> Counted:
    """Count the parameters of a model and the FLOPs of requests.

    Args:
        model: in evaluation mode. On the meta device nothing is computed, so counting is fast.
        encoder: the part of it that is not the head.
        lengths: of requests, in tokens.
        inputs: length → inputs of a request of that length.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    # A projection onto the vocabulary that is tied to the embeddings reads the whole table.
    embeddings -= {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    read = [parameter for parameter in model.parameters() if id(parameter) not in embeddings]
    return Counted(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        encoder_parameters=sum(parameter.numel() for parameter in encoder.parameters()),
        matrix_weights=sum(parameter.numel() for parameter in read if parameter.dim() > 1),
        vector_weights=sum(parameter.numel() for parameter in read if parameter.dim() <= 1),
        flops=_by_length(lambda length: _flops(model, inputs(length)), sorted(set(lengths))),
    )


@torch.inference_mode()
def _flops(model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    with FlopCounterMode(display=False) as counter:
        model(*inputs)
    return counter.get_total_flops()


def _by_length(flops: Callable[[int], int], lengths: list[int]) -> dict[int, int]:
    """Return length → FLOPs. For more than five lengths, most values are computed from a parabola.

    FLOPs are quadratic in the length because of attention. The parabola goes through the counts at three lengths. It is
    used only if the counts at two more lengths lie on it exactly. Otherwise every length is counted.
    """
    if len(lengths) <= 5:
        return {length: flops(length) for length in lengths}
    places = [0, len(lengths) // 4, len(lengths) // 2, 3 * len(lengths) // 4, len(lengths) - 1]
    counted = {lengths[place]: flops(lengths[place]) for place in places}
    through = [(length, counted[length]) for length in (lengths[place] for place in places[::2])]
    found = {length: _parabola(through, length) for length in lengths}
    if all(found[length] == value for length, value in counted.items()):
        return {length: int(value) for length, value in found.items()}
    return {length: counted.get(length) or flops(length) for length in lengths}


def _parabola(points: list[tuple[int, int]], at: int) -> Fraction:
    """Return the value of the parabola through three points, exactly."""
    total = Fraction(0)
    for x, y in points:
        term = Fraction(y)
        for other, _ in points:
            if other != x:
                term *= Fraction(at - other, x - other)
        total += term
    return total
