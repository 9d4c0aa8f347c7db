"""Choose the masked tokens of a block and their replacements (DistilBERT's dynamic masking).

A mask is a pure function of the seed and the sample index. A sample is one block in one epoch, so each epoch masks a
block differently. The result does not depend on the number of data-loading workers, on ranks, or on the split of a
batch into micro-batches. It does not depend on the device either, except for the rounding of a logarithm. For this
reason the random numbers come from a counter-based hash in tensor operations, not from a stateful generator.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from potstill.corpus.labelling import LabelledBlocks

MaskingRule = Literal["frequency", "uniform"]
IGNORED = -100  # the usual label in PyTorch and transformers for a position that is not predicted

_SAMPLE, _HIDE, _REPLACE, _RANDOM_TOKEN = 0, 1, 2, 3  # separate streams of random numbers for one sample


def labelled_per_block(causal: bool, block_size: int, mlm_probability: float) -> int:
    """Return how many tokens of every block are predicted: the masked ones, or all but the last of a causal model."""
    return block_size - 1 if causal else masked_per_block(block_size, mlm_probability)


def masked_per_block(block_size: int, mlm_probability: float) -> int:
    """Return the number of masked tokens of a block. It is the same for all blocks, so that shapes never change."""
    return max(1, round(block_size * mlm_probability))


def sampled_per_block(block_size: int, masked: int, share: float) -> int:
    """Return how many of the tokens that are not masked are sampled in every block: at least one, if there is one.

    Args:
        block_size: L, tokens of a block.
        masked: K, masked tokens of a block.
        share: share of the L - K other tokens to sample.
    """
    others = block_size - masked
    return min(others, max(1, round(others * share)))


class Masking:
    """Sample 15 % of each block's tokens without replacement and mask them (80 % [MASK], 10 % random, 10 % kept).

    Under the rule ``frequency`` a token is sampled with probability proportional to ``count(token) ** -smoothing``, so
    that rare words are predicted more often. DistilBERT's training scripts do this, following XLM. Under ``uniform``
    every token is equally likely, as in BERT. Control tokens are never masked. A placeholder in the text, such as
    <url>, counts as content.

    Args:
        token_counts: (V,) occurrences of each token in the corpus.
        special_ids: ids that are never masked ([CLS], [SEP], [PAD], [UNK], [MASK]): `tokenizer.control_ids`.
        mask_id: id of [MASK].
        seed: decides every mask, together with the sample index.
        rule: ``frequency`` or ``uniform``.
        mlm_probability: share of a block's tokens to mask.
        smoothing: exponent of the frequency rule (0.7 in DistilBERT).
        random_token_limit: random replacements are sampled from ids below this; defaults to V.
        sampled_share: share of the tokens that are not masked to sample too, each with equal probability, special
            tokens included; 0 for none.
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
        sampled_share: float = 0.0,
    ) -> None:
        counts = token_counts.to(torch.float64).clamp(min=1)
        weights = counts**-smoothing if rule == "frequency" else torch.ones_like(counts)
        weights[torch.tensor(special_ids, dtype=torch.long)] = 0
        self.log_weights = weights.log().float()  # -inf for the special tokens
        self.mask_id = mask_id
        self.seed = seed
        self.mlm_probability = mlm_probability
        self.random_token_limit = random_token_limit or len(counts)
        self.sampled_share = sampled_share

    def to(self, device: torch.device | str) -> Masking:
        """Move the weights of the rule to the device of the batches, and return self."""
        self.log_weights = self.log_weights.to(device)
        return self

    def __call__(self, input_ids: Tensor, sample_index: Tensor) -> LabelledBlocks:
        """Mask a batch on its own device, without synchronisation with the host.

        Args:
            input_ids: (B, L) int64.
            sample_index: (B,) int64, a number that identifies each block in each epoch.

        Returns:
            The blocks with the masked positions replaced by [MASK], a random token or themselves. The labels are the
            original tokens there; -100 where a block has fewer than K maskable tokens.
        """
        count = masked_per_block(input_ids.shape[1], self.mlm_probability)
        # Gumbel top-k: the k largest values of log w + Gumbel noise are a sample without replacement with probability
        # ∝ w (Yellott 1977). Unlike torch.multinomial over the batch, it needs no loop and no decision of the host.
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
            sampled=self._sample(sample_index, input_ids.shape[1], positions) if self.sampled_share else None,
        )

    def _sample(self, sample_index: Tensor, length: int, masked: Tensor) -> Tensor:
        """Return (B, S) positions, drawn without replacement from those that are not among the (B, K) masked ones."""
        order = self._uniform(sample_index, length, _SAMPLE).scatter(1, masked, -1.0)
        return order.topk(sampled_per_block(length, masked.shape[1], self.sampled_share), dim=1).indices

    def _uniform(self, sample_index: Tensor, columns: int, stream: int) -> Tensor:
        """Return (B, columns) float32 in the open interval (0, 1): a function of seed, sample, column and stream."""
        key = _mix(sample_index + _mix_int(self.seed * 4 + stream))
        counter = torch.arange(1, columns + 1, device=sample_index.device, dtype=torch.int64)
        bits = _mix(key[:, None] + counter * _GOLDEN)
        # 23 bits and the 0.5 fill float32's significand exactly. With one bit more, a value could round up to 1, and a
        # random token would be outside the vocabulary.
        return (_shift_right(bits, 41).float() + 0.5) * 2.0**-23


# SplitMix64 (Steele, Lea and Flood 2014): its finaliser turns any counter into 64 well-mixed bits. The algorithm needs
# arithmetic that wraps around, as torch's int64 arithmetic does on every device, and a logical right shift.
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
    """Apply `_mix` to a Python integer and return a signed 64-bit integer."""
    mask = (1 << 64) - 1
    value &= mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    value ^= value >> 31
    return value - (1 << 64) if value >= 1 << 63 else value
