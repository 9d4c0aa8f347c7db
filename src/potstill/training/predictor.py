"""Run a model of a known family in parts: the encoder first, and a head, if there is one, where logits are needed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from potstill.objective import Encoded
from potstill.precision.simulated import as_exported
from potstill.student import Reads, States, VocabularyHead, family_of, is_headless, last_layer_at
from potstill.student.padded_vocabulary import known_head

COMPILATIONS = 64
"""Times that the code of a layer may be compiled. It is compiled for each kind of layer, for each length of block, for
training and for evaluation, and for student and teacher; beyond torch's own limit of 8 layers would run uncompiled."""


class Predictor:
    """Turns blocks of tokens into the states of a model that the objective reads.

    Args:
        model: a model of a known family.
        reads: the states to keep.

    Attributes:
        model: as given.
        encoder: the module whose forward pass runs the model up to its head.
    """

    def __init__(self, model: PreTrainedModel, reads: Reads) -> None:
        self.model = model
        self.encoder, self._transform = _Encoder(model, reads), _Transform(model)
        self._reads = reads
        self._headless = is_headless(model)
        self._layers = list(family_of(model).layers(model))
        self.refresh()

    def refresh(self) -> None:
        """Look up the model's parameters again. This is necessary after any of them was replaced by another.

        They are not looked up at every call, because that would take longer than the layers of a small model.
        """
        head = None if self._headless else family_of(self.model).head(self.model)
        # Buffers stay as they are: frequencies of rotary positions, for example, are no use in 16 bits. A tied matrix
        # appears under both of its names, because the embeddings are looked up by one and the head by the other.
        tensors = dict(self.encoder.named_parameters(remove_duplicate=False))
        whole = self._headless or family_of(self.model).encodes_whole
        prefix = "model." if whole else f"model.{self.model.base_model_prefix}."
        self._encoder_tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        self._head_tensors = {
            name: tensor
            for name, tensor in tensors.items()
            if head is not None
            and not name.startswith(prefix)
            and tensor is not head.weight
            and tensor is not head.bias
        }

    @property
    def recomputes(self) -> bool:
        """Whether layers drop their activations and compute them again in the backward pass."""
        return getattr(self._layers[0], "gradient_checkpointing", False)

    def last_at(self, positions: Tensor, sampled: Tensor | None = None) -> Tensor | None:
        """Return the tokens (B, R) that the last layer can be run at alone; None for all of them.

        Args:
            positions: (B, K), of the masked tokens.
            sampled: (B, S), of the sampled tokens; None if there are none.
        """
        if self.encoder.last_layer is None or self.recomputes:
            return None
        return self._reads.last_at(positions, sampled)

    def __call__(self, input_ids: Tensor, dtype: torch.dtype | None = None, at: Tensor | None = None) -> Encoded:
        """Run the encoder over (B, L) blocks without padding; the head is left to the objective.

        Args:
            input_ids: (B, L) int64.
            dtype: compute in this type, on copies of the parameters; gradients flow through the copies to the
                parameters. The projection onto the vocabulary is returned without a copy.
            at: what `last_at` returned. The result has the last hidden states of these tokens alone.
        """
        states, head = self._run(input_ids, dtype, at)
        block_size = None if at is None else input_ids.shape[1]
        return Encoded(states.hidden, states.attention, head, at=at, block_size=block_size)

    def _run(
        self, input_ids: Tensor, dtype: torch.dtype | None, at: Tensor | None
    ) -> tuple[States, VocabularyHead | None]:
        head = None if self._headless else known_head(self.model)
        if dtype is None:
            own = None
            if head is not None:
                own = as_exported(self.model, VocabularyHead(self._transform, head.weight, head.bias))
            return self.encoder(input_ids, at), own

        # The projection may be tied, but it is not called here. So the slow search for tied weights is switched off.
        def transform(hidden: Tensor) -> Tensor:
            return functional_call(self._transform, _cast(self._head_tensors, dtype), (hidden,), tie_weights=False)

        copies = _cast(self._encoder_tensors, dtype)
        states = functional_call(self.encoder, copies, (input_ids, at), tie_weights=False)
        return states, None if head is None else VocabularyHead(transform, head.weight, head.bias)

    def compile(self, **options: Any) -> None:
        """Compile the layers, with the options of `torch.compile`.

        Layers of one kind are alike, so the compiled code of the first one serves all of them. This takes a fraction of
        the time that the whole model would take. No speed is lost, because fusion ends at the matrix products anyway.
        """
        limit = torch._dynamo.config.recompile_limit
        torch._dynamo.config.recompile_limit = max(limit, COMPILATIONS)
        for layer in self._layers:
            layer.compile(**options)
        if self.encoder.last_layer is not None:
            self.encoder.last_layer.compile(**options)


class _Encoder(nn.Module):
    def __init__(self, model: PreTrainedModel, reads: Reads) -> None:
        super().__init__()
        self.model = model
        self.reads = reads
        self.last_layer = last_layer_at(model, reads)

    def forward(self, input_ids: Tensor, at: Tensor | None = None) -> States:
        if at is not None:
            assert self.last_layer is not None
            return self.last_layer.encode(input_ids, at, self.reads)
        return family_of(self.model).encode(self.model, input_ids, self.reads)


class _Transform(nn.Module):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, hidden: Tensor) -> Tensor:
        return family_of(self.model).head(self.model).transform(hidden)


def _cast(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}
