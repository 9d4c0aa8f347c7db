"""The last layer of a model at the few tokens that a loss reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.student.family import family_of
from potstill.student.interface import Family
from potstill.student.states import Reads, States, run_layers


class LastLayer:
    """Runs the last layer of an encoder for some tokens of each block alone.

    Their queries attend to all tokens. So keys and values are made of all tokens, and queries, the output of attention
    and the feed-forward layers of some. Without dropout the outputs are those of the whole layer.

    Args:
        model: one for which `last_layer_at` says yes.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model, self._family = model, family_of(model)
        self._run: Callable[[Family, nn.Module, Tensor, Tensor], Tensor] = _run

    def compile(self, **options: Any) -> None:
        """Compile it, with the options of `torch.compile`."""
        self._run = torch.compile(_run, **options)

    def encode(self, input_ids: Tensor, at: Tensor, keep: Reads) -> States:
        """Return what the family's `encode` returns, but the last hidden states (B, R, H) of some tokens alone.

        Args:
            input_ids: (B, L) int64.
            at: (B, R) int64, positions of these tokens.
            keep: what is read.
        """
        layers, embedded = self._family.layers(self._model), self._family.embed(self._model, input_ids)

        def run_last(hidden: Tensor) -> Tensor:
            return self._run(self._family, layers[-1], hidden, at)

        return run_layers(layers, embedded, keep, self._family.attention_inputs, run_last=run_last)


def last_layer_at(model: PreTrainedModel, reads: Reads) -> LastLayer | None:
    """Return what runs the last layer of a model at the tokens that are read; None if it has to run at all of them.

    It does so if all tokens are read, if the model's family does not know the parts of a layer, and if rounded numbers
    depend on all tokens (`--quantization`, `--fp8`).
    """
    family = family_of(model)
    layers = family.layers(model)
    if reads.last not in ("masked", "sampled") or len(layers) - 1 in reads.hidden or not family.exports_plainly:
        return None
    assert family.widths is not None
    names = (*family.widths.heads_out, *family.widths.heads_in, *family.widths.neurons_in)
    plain = all(type(layers[-1].get_submodule(name)) is nn.Linear for name in names)
    return LastLayer(model) if plain and model.config._attn_implementation == "sdpa" else None


def at_tokens(values: Tensor, at: Tensor) -> Tensor:
    """Return the rows of (B, L, D) values at (B, R) positions, as (B, R, D)."""
    return values.gather(1, at[..., None].expand(-1, -1, values.shape[-1]))


def _run(family: Family, layer: nn.Module, hidden: Tensor, at: Tensor) -> Tensor:
    some = at_tokens(hidden, at)
    inputs = family.attention_inputs(layer, hidden, asking=some)
    query, key, value = (
        tensor.unflatten(-1, (inputs.heads, -1)).transpose(1, 2) for tensor in (inputs.query, inputs.key, inputs.value)
    )
    dropout = family.attention_dropout(layer) if layer.training else 0.0
    mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    return family.after_attention(layer, mixed.transpose(1, 2).flatten(2), some)
