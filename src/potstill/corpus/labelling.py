"""Blocks with what is to be predicted of them: the labels of a causal language model, or none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LabelledBlocks:
    """A batch of B blocks of L tokens as the models see it, with K labels for each block.

    Attributes:
        input_ids: (B, L) int64.
        positions: (B, K) int64, where a token is predicted, in ascending order; K is the same for every block.
        labels: (B, K) int64, the tokens to predict there; -100 where there is none.
        sampled: (B, S) int64, a random sample of the other positions, for losses that read some of them; None without
            such a loss.
    """

    input_ids: Tensor
    positions: Tensor
    labels: Tensor
    sampled: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors in order, without those that are None."""
        found = (self.input_ids, self.positions, self.labels, self.sampled)
        return tuple(tensor for tensor in found if tensor is not None)


Labelling = Callable[[Tensor, Tensor], LabelledBlocks]
"""Turns blocks (B, L) and their sample indices (B,) into labelled blocks."""


def unlabelled(input_ids: Tensor, sample_index: Tensor) -> LabelledBlocks:
    """Leave the blocks as they are, with nothing to predict: K is 0.

    Args:
        input_ids: (B, L) int64.
        sample_index: (B,) int64; it changes nothing.
    """
    none = input_ids.new_empty((len(input_ids), 0))
    return LabelledBlocks(input_ids, none, none)


def next_tokens(input_ids: Tensor, sample_index: Tensor) -> LabelledBlocks:
    """Label each token with the one that follows, as a causal language model predicts it: K is L − 1.

    Args:
        input_ids: (B, L) int64.
        sample_index: (B,) int64; it changes nothing.
    """
    count = input_ids.shape[1] - 1
    positions = torch.arange(count, device=input_ids.device).expand(len(input_ids), count)
    return LabelledBlocks(input_ids, positions, input_ids[:, 1:])
