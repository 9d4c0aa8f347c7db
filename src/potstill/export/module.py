"""The model as it is exported: the same logits by operations that every runtime has, and none that nobody reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ATTENTION = "potstill_export"
BERTS = ("bert", "roberta", "xlm-roberta", "camembert")
HIDDEN = -1e4
"""Added to the score of a padded token: exp(-10000) is 0 in any precision, and much less is no number in 16 bits."""


class ExportModule(nn.Module):
    """What is exported: takes what the model reads, in order, and returns its logits, in order.

    What padding hides is a plain sum, where transformers looks it up by index; and attention is written out, which all
    runtimes know how to fuse. Where only the first token is read of the last layer, it alone is computed there. The
    model is changed by this, so it is for nothing else afterwards.

    Args:
        model: in evaluation mode.
        inputs: names of what it reads, `input_ids` and `attention_mask` among them, each (B, L).
        outputs: names of its logits.
        reads_first_token: whether the head reads the first token alone.
    """

    def __init__(
        self, model: PreTrainedModel, inputs: tuple[str, ...], outputs: tuple[str, ...], reads_first_token: bool
    ) -> None:
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, outputs
        self.plain = model.config.model_type in (*BERTS, "distilbert")
        if not self.plain:
            return
        model.set_attn_implementation(ATTENTION)
        if reads_first_token:
            layers = model.base_model.transformer.layer if _is_distilbert(model) else model.base_model.encoder.layer
            layers[-1] = _FirstToken(layers[-1], _is_distilbert(model))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of (B, L) ids and the like."""
        inputs = dict(zip(self.inputs, tensors, strict=True))
        if self.plain:  # a mask of four dimensions is taken as it is
            seen = inputs["attention_mask"][:, None, None, :].to(torch.float32)
            inputs["attention_mask"] = (1.0 - seen) * HIDDEN
        outputs = self.model(**inputs)
        return tuple(outputs[name] for name in self.outputs)


class _FirstToken(nn.Module):
    """A layer of which only the first token is computed: (B, L, H) in, (B, 1, H) out."""

    def __init__(self, layer: Any, is_distilbert: bool) -> None:
        super().__init__()
        self.layer, self.is_distilbert = layer, is_distilbert

    def forward(self, hidden: Tensor, attention_mask: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer, first = self.layer, hidden[:, :1]
        of = layer.attention if self.is_distilbert else layer.attention.self
        projections = (of.q_lin, of.k_lin, of.v_lin) if self.is_distilbert else (of.query, of.key, of.value)
        query, key, value = (
            projection(read).unflatten(-1, (-1, of.attention_head_size)).transpose(1, 2)
            for projection, read in zip(projections, (first, hidden, hidden), strict=True)
        )
        context = _attention(of, query, key, value, attention_mask, scaling=of.scaling)[0].flatten(2)
        if self.is_distilbert:
            attended = layer.sa_layer_norm(of.out_lin(context) + first)
            return layer.output_layer_norm(layer.ffn(attended) + attended)
        attended = layer.attention.output(context, first)
        return layer.output(layer.intermediate(attended), attended)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attend: (B, heads, L, width) in, (B, L, heads, width) out, as transformers has it."""
    scores = (query * scaling) @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores + mask
    return (scores.softmax(dim=-1) @ value).transpose(1, 2), None


def _is_distilbert(model: PreTrainedModel) -> bool:
    return model.config.model_type == "distilbert"


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attention)
