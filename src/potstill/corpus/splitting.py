"""Blocks cut into shorter ones: most steps read short blocks and some long ones, as BERT was trained."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from potstill.corpus.tokenizer import TokenizerSpec
from potstill.errors import PotstillError


class BlockSplitter:
    """Cuts the blocks of some steps into pieces that are blocks themselves.

    BERT reads 128 tokens in 90 % of its steps, which cost less attention, and 512 in the others, which teach it the
    positions beyond (Devlin et al. 2018, A.2). It does so in two phases; here the long steps are spread evenly over the
    training, so that what is learnt at one length is not forgotten at the other.

    Args:
        block_size: L, tokens of a whole block.
        size: S, tokens of a piece; divides L.
        share: of the steps whose blocks are cut, above 0 and at most 1.
        spec: of the corpus's tokenizer: every piece begins and ends as a block does, in place of what stood there.

    Raises:
        PotstillError: the size does not divide the blocks, or leaves no room for text.
    """

    def __init__(self, block_size: int, size: int, share: float, spec: TokenizerSpec) -> None:
        if not 2 < size < block_size or block_size % size:
            raise PotstillError(
                f"--short_block_size is {size}, but it must divide the blocks of the corpus, which have {block_size} "
                "tokens, into several of 3 tokens or more."
            )
        self.size, self.share = size, share
        self.pieces = block_size // size
        self.prefix, self.suffix = spec.prefix, spec.suffix

    def applies(self, step: int) -> bool:
        """Whether the blocks of a step are cut: the same for all processes, and after a resumption.

        Args:
            step: of the optimiser, counted from 0.
        """
        return math.floor((step + 1) * self.share) > math.floor(step * self.share)

    def __call__(self, input_ids: Tensor, sample_index: Tensor) -> tuple[Tensor, Tensor]:
        """Cut a batch.

        Args:
            input_ids: (B, L) int64.
            sample_index: (B,) int64.

        Returns:
            (B · L / S, S) int64, and as many sample indices, each of one piece of one sight of a block.
        """
        pieces = input_ids.reshape(-1, self.size).clone()
        if self.prefix is not None:
            pieces[:, 0] = self.prefix
        if self.suffix is not None:
            pieces[:, -1] = self.suffix
        sample_indices = sample_index[:, None] * self.pieces + torch.arange(self.pieces, device=sample_index.device)
        return pieces, sample_indices.flatten()
