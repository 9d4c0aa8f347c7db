"""Factors of the outputs of attention heads and of neurons, while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from potstill.student.parts import Located


@contextmanager
def masked(located: Located, heads: Sequence[Tensor] | None, neurons: Sequence[Tensor] | None) -> Iterator[None]:
    """Multiply the outputs of heads and neurons by masks while the body runs.

    The output of a head is what it mixed of the values, before the matrix that reads it. That of a neuron is its
    activation, times its gate if it has one. A mask of 0 is the removal of a head or neuron.

    Args:
        located: the model.
        heads: for each layer (A,) factors of its heads, or (B, A) for each row of a batch; None for no factors.
        neurons: likewise, (I,) or (B, I).
    """
    handles = []
    try:
        for names, masks, width in (
            (located.widths.heads_in, heads, located.head_size),
            (located.widths.neurons_in, neurons, 1),
        ):
            if masks is None:
                continue
            for layer, mask in zip(located.layers, masks, strict=True):
                for name in names:
                    hook = _multiplying(mask, width)
                    handles.append(layer.get_submodule(name).register_forward_pre_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _multiplying(mask: Tensor, width: int) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        outputs = inputs[0]  # (B, L, A · width)
        factors = mask.to(outputs.dtype).repeat_interleave(width, dim=-1)
        if factors.dim() == 2:
            factors = factors[:, None, :]
        return (outputs * factors, *inputs[1:])

    return hook
