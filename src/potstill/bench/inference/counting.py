"""What a model is made of and what one request costs, by count: parameters, weights that are read, FLOPs."""

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
    """What is counted of a model.

    Attributes:
        parameters: in all, those that are used twice counted once.
        encoder_parameters: without the head, but with BERT's pooler: what papers state.
        matrix_weights: parameters of two dimensions or more that every request reads: of matrix products, and not of
            embedding tables, of which it reads some rows.
        vector_weights: the others that every request reads: biases, LayerNorms.
        flops: length in tokens → operations of a request's matrix products, a multiplication and an addition being two.
    """

    parameters: int
    encoder_parameters: int
    matrix_weights: int
    vector_weights: int
    flops: dict[int, int]

    def bytes_read(self, weight_bits: int) -> int:
        """Return the bytes of weights that one request has to read, each of them once.

        Args:
            weight_bits: of a weight of a matrix; vectors are of float32 in any case.
        """
        return self.matrix_weights * weight_bits // 8 + self.vector_weights * FLOAT_BYTES


def count(
    model: nn.Module, encoder: nn.Module, lengths: Iterable[int], inputs: Callable[[int], tuple[Tensor, ...]]
) -> Counted:
    """Count what a model is made of and what requests of some lengths cost.

    Args:
        model: in evaluation mode; on the meta device, where nothing is computed, this takes no time to speak of.
        encoder: what of it is not the head.
        lengths: of requests, in tokens.
        inputs: length → what the model takes for a request of that length.
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
    """Count at every length; where all but three are few more, from the parabola that attention makes of them.

    It goes through the counts at three lengths, and is only used if a fourth and a fifth lie on it exactly.
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
