"""Running a model of a known family in parts: its encoder now, its head when and where the objective wants logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from potstill.objective import Predictions
from potstill.student import VocabularyHead, family_of


class Predictor:
    """Turns blocks of tokens into `Predictions` of a model.

    Args:
        model: of a known family.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._encoder, self._transform = _Encoder(model), _Transform(model)

    def __call__(self, input_ids: Tensor, dtype: torch.dtype | None = None) -> Predictions:
        """Run the encoder over (B, L) blocks without padding; the head is left to the objective.

        Args:
            input_ids: (B, L) int64.
            dtype: compute in this type, on copies of the parameters through which gradients reach them. The projection
                onto the vocabulary is handed out as it is.
        """
        parameters = {} if dtype is None else _copies(self._encoder, dtype)
        head = family_of(self.model).head(self.model)

        def transform(hidden: Tensor) -> Tensor:
            return functional_call(self._transform, parameters, (hidden,))

        hidden = functional_call(self._encoder, parameters, (input_ids,))
        return Predictions(hidden, VocabularyHead(transform, head.weight, head.bias))

    def compile(self, **options: Any) -> None:
        """Compile the model in parts, with the options of `torch.compile`.

        All layers are alike, so the first one's compilation serves every one of them: a fraction of the time that the
        model as a whole takes, and nothing is lost, for what can be fused ends at the matrix products.
        """
        layers = self.model.get_submodule(family_of(self.model).layer_prefix.rstrip("."))
        for part in (self.model.base_model.embeddings, *layers.children(), self._transform):
            part.compile(**options)


class _Encoder(nn.Module):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        return family_of(self.model).encode(self.model, input_ids)


class _Transform(_Encoder):
    def forward(self, hidden: Tensor) -> Tensor:
        return family_of(self.model).head(self.model).transform(hidden)


def _copies(encoder: _Encoder, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return copies of all parameters in another type, by name."""
    return {name: parameter.to(dtype) for name, parameter in encoder.named_parameters()}
