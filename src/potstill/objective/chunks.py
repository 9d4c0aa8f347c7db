"""One pass over the vocabulary: losses and gradients from the logits of both heads, a chunk of tokens at a time."""

from __future__ import annotations

import functools
import os
import shutil
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from potstill.objective.softmax import SoftmaxOptions, softmax_losses_

ONES = 8  # columns added to the hidden states: one column of ones, the rest zeros for alignment


CAST_ROWS = 256
"""Rows of a product in 16 bits that are added to a total in float32 at a time on a CPU."""


class Targets(Protocol):
    """The source of the logits that the student is compared with, for N tokens and a vocabulary of V."""

    @property
    def matrices(self) -> int:
        """Number of matrices of logits that are in memory at once."""

    def prepared(self, dtype: torch.dtype, alignment: int) -> Targets:
        """Return the same in a dtype, with the vocabulary padded to V', a multiple of the alignment."""

    def logits(self, chunk: slice) -> Tensor:
        """Return the (n, V') logits of a chunk of n tokens at temperature 1. The caller may overwrite them."""


class Projection(NamedTuple):
    """The factors of the logits `hidden @ weight.T + bias`, of shapes (N, H), (V, H) and (V,) or None."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None

    @property
    def matrices(self) -> int:
        """See `Targets.matrices`."""
        return 1

    def prepared(self, dtype: torch.dtype, alignment: int) -> Projection:
        """See `Targets.prepared`. The padding is 0."""
        hidden, weight, bias = (None if t is None else t.detach().to(dtype) for t in self)
        assert hidden is not None
        assert weight is not None
        padding = -len(weight) % alignment
        if padding:
            weight = F.pad(weight, (0, 0, 0, padding))
            bias = None if bias is None else F.pad(bias, (0, padding))
        return Projection(hidden, weight, bias)

    def logits(self, chunk: slice) -> Tensor:
        """See `Targets.logits`."""
        return F.linear(self.hidden[chunk], self.weight, self.bias)


class VocabularyPass(torch.autograd.Function):
    """The losses of N tokens. Their gradients are computed in the forward pass, so that no (N, V) matrix ever exists.

    The gradient of a softmax loss with respect to the logits is available as soon as the loss is. It is added to the
    gradients of hidden states and projection while its chunk is in memory, and then dropped. The backward pass only
    scales these gradients, so nothing has to be kept or computed again for it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        teacher: Targets | None,
        labels: Tensor,
        options: SoftmaxOptions,
        dtype: torch.dtype,
        chunk_size: int,
        alignment: int,
        weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the scaled sum of all losses, a scalar, and for the log the sum of each loss over all tokens.

        The sums are (3,): divergence, cross-entropy and mean squared difference of logits; or (2,) without the last.

        Args:
            ctx: context of autograd.
            hidden: (N, H) hidden states of the student, after the transform of its head.
            weight: (V, H) weight of the student.
            bias: (V,) bias of the student, or None.
            teacher: source of the teacher's logits; None if no loss compares with a teacher.
            labels: (N,) int64 token to predict, or -100.
            options: the losses to compute; their `with_gradient` is ignored.
            dtype: type of the matrix products.
            chunk_size: number of tokens whose logits are in memory at once.
            alignment: the vocabulary is padded to a multiple of this.
            weights: (N,) float32 or wider, factor of each token's divergence; None for 1.
        """
        count, (vocab_size, width) = len(hidden), weight.shape
        options = options._replace(with_gradient=any(ctx.needs_input_grad[:3]))
        sum_dtype = torch.promote_types(dtype, torch.float32)
        student = Projection(hidden, weight, bias).prepared(dtype, alignment)
        teacher = None if teacher is None else teacher.prepared(dtype, alignment)
        losses = hidden.new_zeros((3 if options.squared_scale else 2, count), dtype=sum_dtype)
        if options.with_gradient:
            grad_hidden = torch.empty_like(student.hidden)
            # A column of ones next to the hidden states makes the bias one more column of the weight.
            hidden_and_ones = F.pad(student.hidden, (0, ONES))
            hidden_and_ones[:, width] = 1
        grad_weight: Tensor | None = None
        for start in range(0, count, chunk_size):
            chunk = slice(start, start + chunk_size)
            logits = student.logits(chunk)
            targets = None if teacher is None else teacher.logits(chunk)
            weighted = None if weights is None else weights[chunk]
            softmax(logits.device.type)(logits, targets, labels[chunk], losses[:, chunk], vocab_size, options, weighted)
            if options.with_gradient:  # the logits have been overwritten by their gradient
                torch.mm(logits, student.weight, out=grad_hidden[chunk])
                grad_weight = _plus_product(grad_weight, logits.T, hidden_and_ones[chunk], sum_dtype)
        if options.with_gradient:
            if grad_weight is None:  # there are no tokens
                grad_weight = hidden.new_zeros((len(student.weight), width + ONES), dtype=sum_dtype)
            ctx.save_for_backward(grad_hidden, grad_weight)
            ctx.vocab_size, ctx.width = vocab_size, width
            ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (hidden, weight, bias)]
        sums = losses.sum(1)
        ctx.mark_non_differentiable(sums)
        total = sums[0] * (options.soft_scale * options.temperature) + sums[1] * options.hard_scale
        if options.squared_scale:
            total = total + sums[2] * options.squared_scale
        return total, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients that the forward pass computed."""
        grad_hidden, grad_weight = ctx.saved_tensors
        grads = (
            grad_hidden,
            grad_weight[: ctx.vocab_size, : ctx.width],
            grad_weight[: ctx.vocab_size, ctx.width],
        )
        scaled = [
            (grad * part.to(grad.dtype)).to(dtype) if needed else None
            for part, dtype, needed in zip(grads, ctx.dtypes, ctx.needs_input_grad, strict=False)
        ]
        return (*scaled, None, None, None, None, None, None, None)


@functools.cache
def softmax(device_type: str) -> Callable[..., None]:
    """Return the implementation of the softmax part for a type of device: see `softmax_losses_`."""
    if device_type != "cuda":
        return softmax_losses_
    missing = []
    try:
        from potstill.objective.triton_softmax import triton_softmax_losses_
    except ImportError:
        missing.append("the package triton")
    if not any(shutil.which(name) for name in (os.environ.get("CC") or "gcc", "gcc", "clang")):
        missing.append("a C compiler (gcc or clang)")
    if not missing:
        return triton_softmax_losses_
    warnings.warn(
        f"the pass over the vocabulary is slower than it could be: {' and '.join(missing)} is missing", stacklevel=2
    )
    return softmax_losses_


def _plus_product(total: Tensor | None, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `total + left @ right`, of a type that may be wider than theirs. The total, None for 0, is overwritten."""
    if dtype == left.dtype:
        return left @ right if total is None else total.addmm_(left, right)
    if left.is_cuda:
        if total is None:
            return torch.mm(left, right, out_dtype=dtype)
        return torch.addmm(total, left, right, out_dtype=dtype, out=total)
    product = left @ right
    if total is None:
        return product.to(dtype)
    for part, summand in zip(total.split(CAST_ROWS), product.split(CAST_ROWS), strict=True):
        part += summand  # PyTorch makes a copy of the summand in the wider type
    return total
