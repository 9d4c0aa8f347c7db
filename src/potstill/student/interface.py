"""What one model family tells the rest of the package about its models."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from potstill.student.states import LAST_HIDDEN, AttentionInputs, Reads, States


@dataclass(frozen=True)
class VocabularyHead:
    """What turns last hidden states into logits: `transform(hidden) @ weight.T + bias`.

    The tensors are the model's own, so gradients reach it. Handing out the parts, not the logits, is what lets the
    objective go over the vocabulary in chunks and at selected tokens only.

    Attributes:
        transform: (..., H) → (..., H): dense, activation, LayerNorm.
        weight: (V, H); the word embeddings themselves where the model ties them.
        bias: (V,), or None.
    """

    transform: Callable[[Tensor], Tensor]
    weight: Tensor
    bias: Tensor | None


class Family(Protocol):
    """One architecture: how its models compute, and what a student made from one of them is.

    B is the number of blocks, L their length in tokens, H the hidden size, V the vocabulary.

    Attributes:
        model_type: The `model_type` of its configs.
        layer_prefix: What the name of every tensor of a layer begins with, up to the layer's number.
        token_types: Whether its models take `token_type_ids`.
    """

    model_type: str
    layer_prefix: str
    token_types: bool

    def unsupported(self, config: PreTrainedConfig) -> str | None:
        """Why a model with this config cannot be used, ready to follow "it …", or None when it can."""
        ...

    def restore(self, model: PreTrainedModel, missing: set[str]) -> set[str]:
        """Set those of the `missing` tensors that files of this family leave out by design; return their names."""
        ...

    def embed(self, model: PreTrainedModel, input_ids: Tensor) -> Tensor:
        """Embedding output (B, L, H) of `input_ids` (B, L), after LayerNorm and dropout: what layer 0 reads."""
        ...

    def encode(self, model: PreTrainedModel, input_ids: Tensor, keep: Reads = LAST_HIDDEN) -> States:
        """Hidden states and attention inputs of `input_ids` (B, L), those in `keep` alone: see `run_layers`.

        Every token attends to every token of its block (blocks hold no padding, so there is no mask), all tokens are
        segment 0, and the vocabulary head is not computed.
        """
        ...

    def attention_inputs(self, layer: nn.Module, hidden: Tensor) -> AttentionInputs:
        """Queries, keys and values that `layer`, one of a model's layers, makes of its input `hidden` (B, L, H)."""
        ...

    def head(self, model: PreTrainedModel) -> VocabularyHead:
        """The masked-LM head of `model`."""
        ...

    def fuse_gelu(self, model: PreTrainedModel) -> None:
        """Let the feed-forward layers of a frozen model compute their GELU in the matrix product: see `LinearGelu`.

        What has another activation stays as it is.
        """
        ...

    def student_config(self, teacher_config: PreTrainedConfig, num_hidden_layers: int) -> PreTrainedConfig:
        """Config of a student `num_hidden_layers` deep, everything else as the teacher's."""
        ...

    def copy_weights(
        self, teacher: PreTrainedModel, student: PreTrainedModel, layers: list[int], fold_token_types: bool
    ) -> None:
        """Write every weight of `student` from `teacher`.

        Args:
            teacher: The model copied from; left as it is.
            student: A model of `student_config`.
            layers: The teacher layer that each student layer copies.
            fold_token_types: Add the segment-0 embedding into the position embeddings, where the teacher has segments
                and the student has not.
        """
        ...
