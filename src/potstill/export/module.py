"""The model as it is exported: it computes the same logits by operations that every runtime has, and nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from potstill.bilstm.model import BiLSTMForSequenceClassification
from potstill.sentences.encoder import SentenceEncoder
from potstill.student.family import family_or_none
from potstill.student.interface import Family
from potstill.student.last_layer import run_at

ATTENTION = "potstill_export"
HIDDEN = -1e4
"""Added to the score of a padded token. exp(-10000) is 0 in any precision; float16 cannot hold numbers far below."""


class ExportModule(nn.Module):
    """The module that is exported. It takes the model's inputs in order and returns its logits in order.

    Three things change if the model's family allows it (`Family.exports_plainly`). The mask of padding is computed by
    an addition, while transformers looks it up by index. Attention is written as plain operations, which all runtimes
    can fuse. If the head reads only the first token, the last layer computes only that token. This changes the given
    model: do not use it for anything else afterwards.

    Args:
        model: in evaluation mode. It is changed.
        inputs: names of its inputs, among them `input_ids` and `attention_mask`, each (B, L).
        outputs: names of its logits.
        reads_first_token: whether the head reads only the first token.
    """

    def __init__(
        self, model: PreTrainedModel, inputs: tuple[str, ...], outputs: tuple[str, ...], reads_first_token: bool
    ) -> None:
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, outputs
        if isinstance(model, BiLSTMForSequenceClassification):
            model.encoder.lstm.for_onnx()
        family = family_or_none(model.config)
        self.plain = family is not None and family.exports_plainly
        if family is None or not self.plain:
            return
        model.set_attn_implementation(ATTENTION)
        if reads_first_token:
            layers = family.layers(model)
            layers[-1] = _FirstToken(layers[-1], family)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the logits for (B, L) inputs."""
        inputs = dict(zip(self.inputs, tensors, strict=True))
        if self.plain:  # transformers uses a mask with four dimensions unchanged
            seen = inputs["attention_mask"][:, None, None, :].to(torch.float32)
            inputs["attention_mask"] = (1.0 - seen) * HIDDEN
        outputs = self.model(**inputs)
        return tuple(outputs[name] for name in self.outputs)


class EncoderModule(ExportModule):
    """A sentence encoder as it is exported: it returns the last hidden states and the embeddings.

    Args:
        encoder: in evaluation mode. It is changed: do not use it for anything else afterwards.
        inputs: see `ExportModule`.
        outputs: names of the last hidden states and of the embeddings.
    """

    def __init__(self, encoder: SentenceEncoder, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        if getattr(encoder.model, "pooler", None) is not None:
            encoder.model.pooler = None  # the last hidden states do not pass through it
        super().__init__(encoder.model, inputs, outputs[:1], reads_first_token=False)
        encoder.model = nn.Identity()  # the weights have one name each
        self.encoder = encoder

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the last hidden states (B, L, H) and the embeddings (B, D) for (B, L) inputs."""
        (hidden,) = super().forward(*tensors)
        mask = tensors[self.inputs.index("attention_mask")]
        return hidden, self.encoder.finish(self.encoder.pool(hidden, mask))


class _FirstToken(nn.Module):
    """A layer that computes only the first token: (B, L, H) in, (B, 1, H) out."""

    def __init__(self, layer: nn.Module, family: Family) -> None:
        super().__init__()
        self.layer, self.family = layer, family

    def forward(self, hidden: Tensor, attention_mask: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return _attention(self.layer, query, key, value, attention_mask, scaling=query.shape[-1] ** -0.5)[0]

        return run_at(self.family, self.layer, hidden, hidden[:, :1], attend)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **kwargs: Any
) -> tuple[Tensor, None]:
    """Compute attention: (B, heads, L, width) in, (B, L, heads, width) out, as transformers defines it."""
    scores = (query * scaling) @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores + mask
    return (scores.softmax(dim=-1) @ value).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attention)
