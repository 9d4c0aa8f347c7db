"""The softmax part of the vocabulary pass in plain PyTorch: losses of a chunk of logits, gradient in place."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.objective.divergences import DIVERGENCES

Divergence = Literal["forward_kl", "reverse_kl", "jensen_shannon"]


CACHED = 2**17
"""Logits of a thread that are compared at a time on a CPU: in float32 they and a few copies stay in its cache."""


class SoftmaxOptions(NamedTuple):
    """The losses to compute from a row of logits.

    Attributes:
        temperature: T of the soft targets.
        soft_scale: factor on the gradient of a row's divergence at temperature T with respect to logits / T; 0 leaves
            the divergence out.
        hard_scale: factor on the gradient of a row's cross-entropy; 0 leaves the cross-entropy out.
        masked_only: if True, the divergence of rows without a label is 0.
        with_gradient: whether to compute the gradient.
        divergence: a name in `DIVERGENCES`.
        squared_scale: factor on the gradient of a row's mean squared difference of logits; 0 leaves it out.
        squared_masked_only: if True, the squared difference of rows without a label is 0.
    """

    temperature: float
    soft_scale: float
    hard_scale: float
    masked_only: bool
    with_gradient: bool
    divergence: Divergence = "forward_kl"
    squared_scale: float = 0.0
    squared_masked_only: bool = False


def softmax_losses_(
    student: Tensor,
    teacher: Tensor | None,
    labels: Tensor,
    losses: Tensor,
    vocab_size: int,
    options: SoftmaxOptions,
    weights: Tensor | None = None,
) -> None:
    """Write the losses of n tokens, and the gradient of their scaled sum with respect to the student's logits.

    Args:
        student: (n, V') logits at temperature 1, V' ≥ V; overwritten by the gradient, 0 in columns from V on.
        teacher: (n, V') logits at temperature 1, or None if no loss compares with a teacher.
        labels: (n,) int64 token to predict, or -100.
        losses: (3, n) float32 or wider, or (2, n) if `squared_scale` is 0; overwritten. Row 0 gets the divergence of
            both softmaxes at temperature T, row 1 the cross-entropy at temperature 1, row 2 the mean squared difference
            of the logits. A token without a loss gets 0.
        vocab_size: V; columns from there on are padding.
        options: see `SoftmaxOptions`.
        weights: (n,) float32 or wider, factor of the divergence of each row and of its gradient; None for 1.
    """
    size = len(student)
    if student.device.type == "cpu":  # a dozen passes over these logits, all but the first from the cache
        size = max(1, CACHED * torch.get_num_threads() // student.shape[1])
    for start in range(0, len(student), size):
        rows = slice(start, start + size)
        targets, factors = (None if tensor is None else tensor[rows] for tensor in (teacher, weights))
        _compare_rows_(student[rows], targets, labels[rows], losses[:, rows], vocab_size, options, factors)


def _compare_rows_(
    student: Tensor,
    teacher: Tensor | None,
    labels: Tensor,
    losses: Tensor,
    vocab_size: int,
    options: SoftmaxOptions,
    weights: Tensor | None,
) -> None:
    """Do the work of `softmax_losses_` for some of its rows."""
    dtype = losses.dtype
    padding, student = student[:, vocab_size:], student[:, :vocab_size]
    labelled = labels >= 0
    hard_rows = labelled.nonzero().squeeze(1) if options.hard_scale else labels[:0]
    targets = labels[hard_rows, None]
    log_probs = F.log_softmax(student[hard_rows].to(dtype), dim=-1)
    losses[1] = 0
    losses[1, hard_rows] = -log_probs.gather(1, targets).squeeze(1)
    gradient = None
    if teacher is not None and options.soft_scale:
        target = F.log_softmax(teacher[:, :vocab_size].to(dtype) / options.temperature, dim=-1)
        soft = F.log_softmax(student.to(dtype) / options.temperature, dim=-1)
        losses[0], gradient = DIVERGENCES[options.divergence](target, soft, options.with_gradient)
        if gradient is not None:
            gradient.mul_(options.soft_scale)
        if options.masked_only:
            losses[0] *= labelled
            gradient = None if gradient is None else gradient.mul_(labelled[:, None])
        if weights is not None:
            losses[0] *= weights
            gradient = None if gradient is None else gradient.mul_(weights[:, None])
    if teacher is not None and options.squared_scale:
        difference = student.to(dtype) - teacher[:, :vocab_size].to(dtype)
        if options.squared_masked_only:
            difference *= labelled[:, None]
        losses[2] = torch.linalg.vecdot(difference, difference) / vocab_size
        difference *= 2 * options.squared_scale / vocab_size
        gradient = difference if gradient is None else gradient.add_(difference)
    if not options.with_gradient:
        return
    if gradient is None:
        gradient = torch.zeros_like(student, dtype=dtype)
    hard = log_probs.exp_()
    hard.scatter_add_(1, targets, hard.new_full(targets.shape, -1.0))
    gradient.index_add_(0, hard_rows, hard, alpha=options.hard_scale)
    student.copy_(gradient)
    padding.zero_()
