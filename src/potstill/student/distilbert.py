"""DistilBERT: what a student is, and a teacher in its own right for a shallower one."""

from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.student.fused import LinearGelu, is_exact_gelu
from potstill.student.interface import LayerWidths, VocabularyHead
from potstill.student.rows import Rows
from potstill.student.same_class import SameClass
from potstill.student.states import LAST_HIDDEN, AttentionInputs, Reads, States, run_layers


class DistilBert(SameClass):
    """The family of `DistilBertForMaskedLM`."""

    model_type = "distilbert"
    layer_prefix = "distilbert.transformer.layer."
    dropouts = ("dropout", "attention_dropout")
    reads_rows = True
    widths = LayerWidths(
        heads_out=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        heads_in=("attention.out_lin",),
        neurons_out=("ffn.lin1",),
        neurons_in=("ffn.lin2",),
        head_counts=("attention.n_heads",),
    )
    intermediate_name = "hidden_dim"
    exports_plainly = True

    def embed(self, model: PreTrainedModel, input_ids: Tensor) -> Tensor:
        """See `Family.embed`."""
        return model.base_model.embeddings(input_ids)

    def encode(self, model: PreTrainedModel, input_ids: Tensor, keep: Reads = LAST_HIDDEN) -> States:
        """See `Family.encode`; the model's own forward would make a mask of ones while a CUDA graph is recorded."""
        return run_layers(self.layers(model), self.embed(model, input_ids), keep, self.attention_inputs)

    def encode_rows(self, model: PreTrainedModel, input_ids: Tensor, rows: Rows, keep: Reads = LAST_HIDDEN) -> States:
        """See `Family.encode_rows`."""
        hidden = model.base_model.embeddings(input_ids=input_ids, position_ids=rows.positions)
        mask = rows.mask(hidden.dtype)
        layers = self.layers(model)
        return run_layers(layers, hidden, keep, self.attention_inputs, lambda layer, hidden: layer(hidden, mask))

    def attention_inputs(self, layer: nn.Module, hidden: Tensor, asking: Tensor | None = None) -> AttentionInputs:
        """See `Family.attention_inputs`."""
        attention = layer.attention
        query = attention.q_lin(hidden if asking is None else asking)
        return AttentionInputs(query, attention.k_lin(hidden), attention.v_lin(hidden), attention.n_heads)

    def attention_dropout(self, layer: nn.Module) -> float:
        """See `Family.attention_dropout`."""
        return layer.attention.dropout.p

    def after_attention(self, layer: nn.Module, mixed: Tensor, hidden: Tensor) -> Tensor:
        """See `Family.after_attention`."""
        attended = layer.sa_layer_norm(layer.attention.out_lin(mixed) + hidden)
        return layer.output_layer_norm(layer.ffn(attended) + attended)

    def head(self, model: PreTrainedModel) -> VocabularyHead:
        """See `Family.head`."""

        def transform(hidden: Tensor) -> Tensor:
            return model.vocab_layer_norm(model.activation(model.vocab_transform(hidden)))

        return VocabularyHead(transform, model.vocab_projector.weight, model.vocab_projector.bias)

    def fuse_gelu(self, model: PreTrainedModel) -> None:
        """See `Family.fuse_gelu`."""
        for layer in self.layers(model):
            if is_exact_gelu(layer.ffn.activation):
                layer.ffn.lin1, layer.ffn.activation = LinearGelu(layer.ffn.lin1), nn.Identity()
