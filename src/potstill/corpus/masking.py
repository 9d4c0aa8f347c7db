"""Which tokens of a block are hidden, and what stands in their place (DistilBERT's dynamic masking).

A mask is a pure function of the seed and the sample index. A sample is one sight of one block, so a block is masked
anew every epoch. The result depends neither on the number of data-loading workers, nor on ranks, nor on how a batch is
split into micro-batches, nor, up to the rounding of a logarithm, on the device. So the random numbers come from a
counter-based hash written in tensor operations rather than from a stateful generator.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from potstill.corpus.labelling import LabelledBlocks

MaskingRule = Literal["frequency", "uniform"]
IGNORED = -100  # the label of a position that is not to be predicted; the ecosystem's convention

_HIDE, _REPLACE, _RANDOM_TOKEN = 1, 2, 3  # separate streams of random numbers for one sample


def labelled_per_block(causal: bool, block_size: int, mlm_probability: float) -> int:
    """Return how many tokens of every block are predicted: the masked ones, or all but the last of a causal model."""
    return block_size - 1 if causal else masked_per_block(block_size, mlm_probability)


def masked_per_block(block_size: int, mlm_probability: float) -> int:
    """Return how many tokens of every block are masked: the same number each time, so that shapes never change."""
    return max(1, round(block_size * mlm_probability))


class Masking:
    """Draw 15 % of each block's tokens without replacement and hide them (80 % [MASK], 10 % random, 10 % kept).

    Under the rule ``frequency`` a token is drawn with probability proportional to ``count(token) ** -smoothing``, as
    DistilBERT's training scripts do after XLM, so that rare words are predicted more often; under ``uniform`` every
    token is equally likely, as in BERT. Control tokens are never drawn; a placeholder of the text (<url>) is content.

    Args:
        token_counts: (V,) occurrences of each token in the corpus.
        special_ids: ids that are never masked ([CLS], [SEP], [PAD], [UNK], [MASK]): `tokenizer.control_ids`.
        mask_id: id of [MASK].
        seed: with the sample_index, decides every mask.
        rule: ``frequency`` or ``uniform``.
        mlm_probability: share of a block's tokens to mask.
        smoothing: exponent of the frequency rule (0.7 in DistilBERT).
        random_token_limit: random replacements are drawn from ids below this; defaults to V.
    """

    def __init__(
        self,
        token_counts: Tensor,
        special_ids: list[int],
        mask_id: int,
        seed: int,
        rule: MaskingRule = "frequency",
        mlm_probability: float = 0.15,
        smoothing: float = 0.7,
        random_token_limit: int | None = None,
    ) -> None:
        counts = token_counts.to(torch.float64).clamp(min=1)
        weights = counts**-smoothing if rule == "frequency" else torch.ones_like(counts)
        weights[torch.tensor(special_ids, dtype=torch.long)] = 0
        self.log_weights = weights.log().float()  # -inf for the special tokens
        self.mask_id = mask_id
        self.seed = seed
        self.mlm_probability = mlm_probability
        self.random_token_limit = random_token_limit or len(counts)

    def to(self, device: torch.device | str) -> Masking:
        """Move the weights of the rule to the device where the batches will lie, and return self."""
        self.log_weights = self.log_weights.to(device)
        return self

    def __call__(self, input_ids: Tensor, sample_index: Tensor) -> LabelledBlocks:
        """Mask a batch on the device where it lies, without a synchronisation with the host.

        Args:
            input_ids: (B, L) int64.
            sample_index: (B,) int64, one number for each sight of a block.

        Returns:
            The blocks with the masked positions replaced by [MASK], a random token or themselves. The labels are the
            original tokens there; -100 where a block has fewer than K maskable tokens.
        """
        count = masked_per_block(input_ids.shape[1], self.mlm_probability)
        # Gumbel top-k: the k largest of log w + Gumbel noise are a draw without replacement with probability ∝ w
        # (Yellott 1977), which needs no loop and no host decision, unlike torch.multinomial over the batch.
        hide = self._uniform(sample_index, input_ids.shape[1], _HIDE)
        scores = self.log_weights[input_ids] - torch.log(-torch.log(hide))
        top = scores.topk(count, dim=1)
        positions, order = top.indices.sort(dim=1)
        maskable = top.values.gather(1, order) > -torch.inf

        original = input_ids.gather(1, positions)
        fate = self._uniform(sample_index, count, _REPLACE)
        random_token = (self._uniform(sample_index, count, _RANDOM_TOKEN) * self.random_token_limit).long()
        replacement = torch.where(fate < 0.8, self.mask_id, torch.where(fate < 0.9, random_token, original))
        replacement = torch.where(maskable, replacement, original)
        return LabelledBlocks(
            input_ids=input_ids.scatter(1, positions, replacement),
            positions=positions,
            labels=torch.where(maskable, original, IGNORED),
        )

    def _uniform(self, sample_index: Tensor, columns: int, stream: int) -> Tensor:
        """Return (B, columns) float32 in the open interval (0, 1): a function of seed, sample, column and stream."""
        key = _mix(sample_index + _mix_int(self.seed * 4 + stream))
        counter = torch.arange(1, columns + 1, device=sample_index.device, dtype=torch.int64)
        bits = _mix(key[:, None] + counter * _GOLDEN)
        # 23 bits and the half after them fill float32's significand exactly: one bit more would round up to 1 at times,
        # and a random token would then lie outside the vocabulary.
        return (_shift_right(bits, 41).float() + 0.5) * 2.0**-23


# SplitMix64 (Steele, Lea and Flood 2014): its finaliser turns any counter into 64 well-mixed bits. int64 arithmetic
# wraps around in torch on every device, which is what the algorithm wants; only the right shift must be made logical.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MULTIPLIER_2 = 0x94D049BB133111EB - (1 << 64)


def _shift_right(value: Tensor, bits: int) -> Tensor:
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix(value: Tensor) -> Tensor:
    value = (value ^ _shift_right(value, 30)) * _MULTIPLIER_1
    value = (value ^ _shift_right(value, 27)) * _MULTIPLIER_2
    return value ^ _shift_right(value, 31)


def _mix_int(value: int) -> int:
    """Return the same mix of a Python integer, as a signed 64-bit one."""
    mask = (1 << 64) - 1
    value &= mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    value ^= value >> 31
    return value - (1 << 64) if value >= 1 << 63 else value
