"""One pass over the vocabulary: losses and gradients of both heads' logits, a chunk of tokens at a time."""

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

ONES = 8  # columns added to the hidden states, one of them ones: the matrix product stays aligned


class Targets(Protocol):
    """What the logits of N tokens are made of that the student is compared with."""

    @property
    def matrices(self) -> int:
        """How many matrices of logits have to be held at once."""

    def prepared(self, dtype: torch.dtype, alignment: int) -> Targets:
        """Return the same for a dtype, with the vocabulary padded to a multiple of the alignment."""

    def logits(self, chunk: slice) -> Tensor:
        """Return the (n, V') logits of some tokens at temperature 1; the caller may overwrite them."""


class Projection(NamedTuple):
    """What logits are made of: `hidden @ weight.T + bias`, of shapes (N, H), (V, H) and (V,) or None."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None

    @property
    def matrices(self) -> int:
        """See `Targets.matrices`."""
        return 1

    def prepared(self, dtype: torch.dtype, alignment: int) -> Projection:
        """See `Targets.prepared`; the padding is 0."""
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
    """The losses of N tokens, with gradients that are made on the way, so that no (N, V) matrix ever exists.

    The gradient of a softmax loss with respect to the logits is at hand once the loss is. It goes into the gradients
    of hidden states and projection while its chunk is there, and is forgotten: nothing has to be kept or computed
    again for the backward pass, which only scales what is there already.
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
    ) -> tuple[Tensor, Tensor]:
        """Return the scaled sum of all losses, a scalar, and for the log their sums, each over all tokens.

        The sums are (3,): divergence, cross-entropy and mean squared difference of logits; or (2,) without the last.

        Args:
            ctx: of autograd.
            hidden: (N, H) of the student, as its head's transform returns them.
            weight: (V, H) of the student.
            bias: (V,) of the student, or None.
            teacher: what it is compared with; None when it is compared with nothing.
            labels: (N,) int64 token to predict, or -100.
            options: what to compute of the logits; `with_gradient` is overruled.
            dtype: of the matrix products.
            chunk_size: tokens whose logits are held at once.
            alignment: the vocabulary is padded to a multiple of this.
        """
        count, (vocab_size, width) = len(hidden), weight.shape
        options = options._replace(with_gradient=any(ctx.needs_input_grad[:3]))
        exact = torch.promote_types(dtype, torch.float32)
        student = Projection(hidden, weight, bias).prepared(dtype, alignment)
        teacher = None if teacher is None else teacher.prepared(dtype, alignment)
        losses = hidden.new_zeros((3 if options.squared_scale else 2, count), dtype=exact)
        if options.with_gradient:
            grad_hidden = torch.empty_like(student.hidden)
            # With a column of ones beside the hidden states, the bias is one more column of the weight.
            beside = F.pad(student.hidden, (0, ONES))
            beside[:, width] = 1
            grad_weight = hidden.new_zeros((len(student.weight), width + ONES), dtype=exact)
        for start in range(0, count, chunk_size):
            chunk = slice(start, start + chunk_size)
            logits = student.logits(chunk)
            targets = None if teacher is None else teacher.logits(chunk)
            softmax(logits.device.type)(logits, targets, labels[chunk], losses[:, chunk], vocab_size, options)
            if options.with_gradient:  # the logits are their own gradient now
                torch.mm(logits, student.weight, out=grad_hidden[chunk])
                _add_product(grad_weight, logits.T, beside[chunk])
        if options.with_gradient:
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
        """Scale the gradients that the forward pass has made."""
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
        return (*scaled, None, None, None, None, None, None)


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
    lacks = " and ".join(missing)
    warnings.warn(f"the pass over the vocabulary is slower than it could be: it misses {lacks}", stacklevel=2)
    return softmax_losses_


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add `left @ right` to `total`, which may be wider than they are."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    elif total.is_cuda:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total += left @ right
