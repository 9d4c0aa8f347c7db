"""How much each head and neuron matters: the gradient of the loss with respect to its mask (Michel et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from potstill.compress.kept import Kept
from potstill.compress.masks import masked
from potstill.student.parts import Located


@dataclass(frozen=True)
class Importance:
    """A score for each head and each neuron of each layer.

    Attributes:
        heads: (A,) float64 for each layer; None if it was not asked for.
        neurons: (I,) float64 for each layer; likewise.
    """

    heads: list[Tensor] | None
    neurons: list[Tensor] | None


def importance(
    located: Located,
    kept_heads: Kept | None,
    kept_neurons: Kept | None,
    batches: Iterable[tuple[int, Any]],
    loss: Callable[[Any], Tensor],
) -> Importance:
    """Return the mean over rows of |∂L/∂m|, for the loss L of a row and the mask m of a head or neuron.

    The mask is 1 for what is kept. What is removed already is masked by 0, and its score is 0. The absolute value is
    taken of each row, so that rows which pull a head in opposite directions do not cancel out. Source: Michel et al.
    2019, section 4.1, equation 2. The model should be in evaluation mode and its parameters need no gradients.

    Args:
        located: the model.
        kept_heads: what is kept; None to leave the heads alone.
        kept_neurons: likewise.
        batches: each is a number of rows, and what `loss` reads.
        loss: returns the sum of the losses of the rows of a batch. No row may change the loss of another one.
    """
    device = located.model.device
    groups = [kept for kept in (kept_heads, kept_neurons) if kept is not None]
    sums = [[torch.zeros(len(mask), dtype=torch.float64) for mask in kept.of_layers] for kept in groups]
    rows = 0
    for count, batch in batches:
        ones = [
            [torch.ones(count, len(mask), device=device, dtype=located.model.dtype) for mask in kept.of_layers]
            for kept in groups
        ]
        factors = []
        for kept, of_layers in zip(groups, ones, strict=True):
            for one in of_layers:
                one.requires_grad_(True)
            factors.append([one * mask.to(device) for one, mask in zip(of_layers, kept.of_layers, strict=True)])
        given = iter(factors)
        with masked(
            located,
            next(given) if kept_heads is not None else None,
            next(given) if kept_neurons is not None else None,
        ):
            value = loss(batch)
        gradients = iter(torch.autograd.grad(value, [one for of_layers in ones for one in of_layers]))
        for of_layers in sums:
            for total in of_layers:
                total += next(gradients).abs().sum(0).double().cpu()
        rows += count
    found = iter([[total / max(rows, 1) for total in of_layers] for of_layers in sums])
    return Importance(
        next(found) if kept_heads is not None else None, next(found) if kept_neurons is not None else None
    )
