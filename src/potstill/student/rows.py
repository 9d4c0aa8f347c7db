"""Blocks that hold several whole texts: which text each token belongs to, and attention that stays inside of a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # an older PyTorch
    varlen_attn = None

ATTENTION = "potstill_rows"
"""The name under which transformers knows the attention of this module."""


@dataclass(frozen=True)
class Rows:
    """The texts in B blocks of L tokens, at most S in a block.

    Attributes:
        texts: (B, L) int64, the number of each token's text in the batch, from 0 to B · S − 1; B · S at padding.
        positions: (B, L) int64, the place of each token in its text, from 0.
        slots: S.
        per_block: average number of texts in a block of the corpus. Losses divide by it, and not by the number in the
            batch, so that the mean over micro-batches is the loss of the whole batch.
    """

    texts: Tensor
    positions: Tensor
    slots: int
    per_block: float = 1.0

    @classmethod
    def of(cls, input_ids: Tensor, first: int, padding: int, slots: int, per_block: float = 1.0) -> Rows:
        """Find the texts in blocks, without synchronisation with the host.

        Args:
            input_ids: (B, L) int64, as `prepare --unit` writes them.
            first: id of the token that begins each text, [CLS].
            padding: id of [PAD].
            slots: S, the largest number of texts in a block.
            per_block: average number of texts in a block of the corpus.
        """
        count, length = input_ids.shape
        begins = input_ids == first
        in_block = begins.cumsum(1) - 1
        texts = in_block + torch.arange(count, device=input_ids.device)[:, None] * slots
        place = torch.arange(length, device=input_ids.device).expand(count, length)
        begun = torch.where(begins, place, 0).cummax(1).values
        return cls(torch.where(input_ids == padding, count * slots, texts), place - begun, slots, per_block)

    @property
    def inside(self) -> Tensor:
        """(B, L) bool, true at the tokens of a text and false at padding."""
        return self.texts < len(self.texts) * self.slots

    @property
    def filled(self) -> Tensor:
        """(B · S,) bool, whether there is a text of this number."""
        counts = torch.zeros(len(self.texts) * self.slots + 1, dtype=torch.bool, device=self.texts.device)
        return counts.index_fill(0, self.texts.flatten(), True)[:-1]

    def mean_over_texts(self, values: Tensor) -> Tensor:
        """Return the mean of (B · S,) values over the texts, as a batch of average texts would have it."""
        return torch.where(self.filled, values, 0).sum() / (len(self.texts) * self.per_block)

    def mean_over_tokens(self, values: Tensor) -> Tensor:
        """Return the sum of (B, L) values over the tokens of texts, divided by the B · L tokens of the batch."""
        return torch.where(self.inside, values, 0).sum() / values.numel()

    def mask(self, dtype: torch.dtype) -> Tensor:
        """Return what the attention of `ATTENTION` takes as its mask.

        Args:
            dtype: of the hidden states.

        Returns:
            On a GPU in 16 bits the places where texts begin, (B · (S + 1) + 1,) int32, for attention over texts of
            different lengths. Elsewhere (B, 1, L, L) bool, true where two tokens belong to the same text.
        """
        if varlen_attn is None or not self.texts.is_cuda or dtype not in (torch.float16, torch.bfloat16):
            return (self.texts[:, :, None] == self.texts[:, None, :])[:, None]
        count, length = self.texts.shape
        begins = F.pad(self.texts[:, 1:] != self.texts[:, :-1], (1, 0), value=True)  # padding counts as a text
        places = begins.flatten().nonzero_static(size=count * (self.slots + 1), fill_value=count * length)
        return F.pad(places[:, 0], (0, 1), value=count * length).to(torch.int32)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attend inside of texts: (B, heads, L, width) in, (B, L, heads, width) out, as transformers requires."""
    if mask.dim() == 4:
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
        return mixed.transpose(1, 2), None
    count, _, length, _ = query.shape
    flat = [tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value)]
    mixed = varlen_attn(*flat, mask, mask, length, length, scale=scaling)
    return mixed.unflatten(0, (count, length)), None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attention)
