"""Split blocks into shorter ones. As in BERT's training, most steps read short blocks and some read long ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from potstill.corpus.tokenizer import TokenizerSpec
from potstill.errors import PotstillError


class BlockSplitter:
    """Split the blocks of some steps into pieces that are blocks themselves.

    BERT reads 128 tokens in 90 % of its steps, because attention costs less there. It reads 512 tokens in the others,
    to learn the later positions (Devlin et al. 2018, A.2). BERT does so in two phases. Here the long steps are spread
    evenly over the training, so that the model does not forget one length while it learns the other; or evenly over
    what follows a first part of short steps alone. If that part is as long as all short steps together, the training
    has BERT's two phases.

    Args:
        block_size: L, tokens of a block before the split.
        size: S, tokens of a piece; divides L.
        share: share of the steps whose blocks are split, above 0 and at most 1.
        spec: description of the corpus's tokenizer. Its [CLS] and [SEP] replace the first and last token of each piece.
        first: share of the training, at its start, in which all steps are split; at most `share`.

    Raises:
        PotstillError: the size does not divide the blocks, or leaves no room for text.
    """

    def __init__(self, block_size: int, size: int, share: float, spec: TokenizerSpec, first: float = 0.0) -> None:
        if not 2 < size < block_size or block_size % size:
            raise PotstillError(
                f"--short_block_size is {size}, but it must divide the blocks of the corpus, which have {block_size} "
                "tokens, into several of 3 tokens or more."
            )
        self.size, self.first = size, first
        self.share_of_rest = (share - first) / (1 - first) if first < 1 else 1.0
        self.pieces = block_size // size
        self.prefix, self.suffix = spec.prefix, spec.suffix

    def applies(self, step: int, progress: float) -> bool:
        """Return whether the blocks of a step are split. All processes agree, also after a resumption.

        Args:
            step: number of the optimiser step, from 0.
            progress: how far training has come before the step, from 0 to 1.
        """
        if progress < self.first:
            return True
        return math.floor((step + 1) * self.share_of_rest) > math.floor(step * self.share_of_rest)

    def __call__(self, input_ids: Tensor, sample_index: Tensor) -> tuple[Tensor, Tensor]:
        """Split a batch.

        Args:
            input_ids: (B, L) int64.
            sample_index: (B,) int64.

        Returns:
            (B · L / S, S) int64, and as many sample indices, which identify each piece of each block in each epoch.
        """
        pieces = input_ids.reshape(-1, self.size).clone()
        if self.prefix is not None:
            pieces[:, 0] = self.prefix
        if self.suffix is not None:
            pieces[:, -1] = self.suffix
        sample_indices = sample_index[:, None] * self.pieces + torch.arange(self.pieces, device=sample_index.device)
        return pieces, sample_indices.flatten()
