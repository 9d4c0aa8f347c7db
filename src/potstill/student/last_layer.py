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
        model: see `last_layer_at`.
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


def needs_few_tokens(model: PreTrainedModel, reads: Reads) -> bool:
    """Return whether some tokens of a model's last layer are enough. If so, its family knows the parts of the layer."""
    family = family_of(model)
    layers = family.layers(model)
    known = family.exports_plainly and family.widths is not None and family.attention_dropout(layers[-1]) is not None
    return known and reads.last in ("masked", "sampled") and len(layers) - 1 not in reads.hidden


def last_layer_at(model: PreTrainedModel, reads: Reads) -> LastLayer | None:
    """Return what runs the last layer of a model at the tokens that are read; None if it has to run at all of them.

    So it is if more tokens are needed, with another attention than PyTorch's own, and where rounded numbers depend on
    all tokens (`--quantization`, `--fp8`).
    """
    if not needs_few_tokens(model, reads) or model.config._attn_implementation != "sdpa":
        return None
    family = family_of(model)
    last, widths = family.layers(model)[-1], family.widths
    assert widths is not None
    names = (*widths.heads_out, *widths.heads_in, *widths.neurons_in)
    return LastLayer(model) if all(type(last.get_submodule(name)) is nn.Linear for name in names) else None


def at_tokens(values: Tensor, at: Tensor) -> Tensor:
    """Return the rows of (B, L, D) values at (B, R) positions, as (B, R, D)."""
    return values.gather(1, at[..., None].expand(-1, -1, values.shape[-1]))


def run_at(
    family: Family, layer: nn.Module, hidden: Tensor, some: Tensor, attend: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """Run a layer for some tokens, whose queries attend to all tokens.

    Args:
        family: of the layer's model.
        layer: its family knows its parts: see `needs_few_tokens`.
        hidden: (B, L, H), what the layer reads.
        some: (B, R, H), the rows of these tokens.
        attend: computes attention from queries (B, heads, R, width) and keys and values (B, heads, L, width), as
            (B, R, heads, width).

    Returns:
        (B, R, H), the layer's output of these tokens.
    """
    inputs = family.attention_inputs(layer, hidden, asking=some)
    query, key, value = (
        tensor.unflatten(-1, (inputs.heads, -1)).transpose(1, 2) for tensor in (inputs.query, inputs.key, inputs.value)
    )
    return family.after_attention(layer, attend(query, key, value).flatten(2), some)


def _run(family: Family, layer: nn.Module, hidden: Tensor, at: Tensor) -> Tensor:
    dropout = family.attention_dropout(layer) if layer.training else None

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout or 0.0).transpose(1, 2)

    return run_at(family, layer, hidden, at_tokens(hidden, at), attend)
