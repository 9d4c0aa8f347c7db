"""DistilBERT: what a student is, and a teacher in its own right for a shallower one."""

import copy

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from potstill.student.fused import LinearGelu, is_exact_gelu
from potstill.student.interface import VocabularyHead
from potstill.student.states import LAST_HIDDEN, AttentionInputs, Reads, States, run_layers
from potstill.student.tensors import with_layers


class DistilBert:
    """The family of `DistilBertForMaskedLM`."""

    model_type = "distilbert"
    layer_prefix = "distilbert.transformer.layer."
    token_types = False

    def unsupported(self, config: PreTrainedConfig) -> str | None:
        """See `Family.unsupported`: nothing a DistilBERT config can say is out of reach."""
        return None

    def restore(self, model: PreTrainedModel, missing: set[str]) -> set[str]:
        """See `Family.restore`: nothing is left out."""
        return set()

    def embed(self, model: PreTrainedModel, input_ids: Tensor) -> Tensor:
        """See `Family.embed`."""
        return model.base_model.embeddings(input_ids)

    def encode(self, model: PreTrainedModel, input_ids: Tensor, keep: Reads = LAST_HIDDEN) -> States:
        """See `Family.encode`; the model's own forward would make a mask of ones while a CUDA graph is recorded."""
        return run_layers(model.base_model.transformer.layer, self.embed(model, input_ids), keep, self.attention_inputs)

    def attention_inputs(self, layer: nn.Module, hidden: Tensor) -> AttentionInputs:
        """See `Family.attention_inputs`."""
        attention = layer.attention
        query, key, value = attention.q_lin(hidden), attention.k_lin(hidden), attention.v_lin(hidden)
        return AttentionInputs(query, key, value, attention.n_heads)

    def head(self, model: PreTrainedModel) -> VocabularyHead:
        """See `Family.head`."""

        def transform(hidden: Tensor) -> Tensor:
            return model.vocab_layer_norm(model.activation(model.vocab_transform(hidden)))

        return VocabularyHead(transform, model.vocab_projector.weight, model.vocab_projector.bias)

    def fuse_gelu(self, model: PreTrainedModel) -> None:
        """See `Family.fuse_gelu`."""
        for layer in model.distilbert.transformer.layer:
            if is_exact_gelu(layer.ffn.activation):
                layer.ffn.lin1, layer.ffn.activation = LinearGelu(layer.ffn.lin1), nn.Identity()

    def student_config(self, teacher_config: PreTrainedConfig, num_hidden_layers: int) -> PreTrainedConfig:
        """See `Family.student_config`: the student of a DistilBERT is a shallower DistilBERT."""
        config = copy.deepcopy(teacher_config)
        config.num_hidden_layers = num_hidden_layers
        return config

    def copy_weights(
        self, teacher: PreTrainedModel, student: PreTrainedModel, layers: list[int], fold_token_types: bool
    ) -> None:
        """See `Family.copy_weights`. There are no segments, hence nothing to fold."""
        student.load_state_dict(with_layers(teacher.state_dict(), self.layer_prefix, layers))
