"""The layers that BERT and RoBERTa have in common, under the same names."""

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from potstill.student.fused import LinearGelu, is_exact_gelu
from potstill.student.interface import Family, LayerWidths
from potstill.student.rows import Rows
from potstill.student.states import LAST_HIDDEN, AttentionInputs, Reads, States, run_layers


class BertLayers(Family):
    """A family of encoders with BERT's embeddings and layers."""

    dropouts = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    widths: LayerWidths | None = LayerWidths(
        heads_out=("attention.self.query", "attention.self.key", "attention.self.value"),
        heads_in=("attention.output.dense",),
        neurons_out=("intermediate.dense",),
        neurons_in=("output.dense",),
        head_counts=("attention.self.num_attention_heads",),
        head_spans=("attention.self.all_head_size",),
    )
    exports_plainly = True

    def unsupported(self, config: PreTrainedConfig) -> str | None:
        """See `Family.unsupported`."""
        if config.is_decoder or config.add_cross_attention:
            return "is a decoder (is_decoder or add_cross_attention is set) and not an encoder"
        # Configs written before transformers 5 may ask for what version 5 no longer computes, and would ignore.
        position_embedding_type = getattr(config, "position_embedding_type", "absolute")
        if position_embedding_type != "absolute":
            return f"has {position_embedding_type!r} positions, which transformers 5 does not compute"
        return None

    def embed(self, model: PreTrainedModel, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """See `Family.embed`. Positions (B, L) that are given replace those that the model counts."""
        return model.base_model.embeddings(input_ids=input_ids, position_ids=position_ids)

    def encode(self, model: PreTrainedModel, input_ids: Tensor, keep: Reads = LAST_HIDDEN) -> States:
        """See `Family.encode`; the model's own forward would make a mask of ones while a CUDA graph is recorded."""
        return run_layers(self.layers(model), self.embed(model, input_ids), keep, self.attention_inputs)

    def encode_rows(self, model: PreTrainedModel, input_ids: Tensor, rows: Rows, keep: Reads = LAST_HIDDEN) -> States:
        """See `Family.encode_rows`. Positions that are counted from padding on begin later in every text.

        A family whose layers read nothing but hidden states and a mask sets `reads_rows`.
        """
        usable = self.usable_length(model.config) or model.config.max_position_embeddings
        hidden = self.embed(model, input_ids, rows.positions + model.config.max_position_embeddings - usable)
        mask = rows.mask(hidden.dtype)
        layers = self.layers(model)
        return run_layers(layers, hidden, keep, self.attention_inputs, lambda layer, hidden: layer(hidden, mask))

    def attention_inputs(self, layer: nn.Module, hidden: Tensor, asking: Tensor | None = None) -> AttentionInputs:
        """See `Family.attention_inputs`."""
        attention = layer.attention.self
        query = attention.query(hidden if asking is None else asking)
        return AttentionInputs(query, attention.key(hidden), attention.value(hidden), attention.num_attention_heads)

    def attention_dropout(self, layer: nn.Module) -> float:
        """See `Family.attention_dropout`."""
        return layer.attention.self.dropout.p

    def after_attention(self, layer: nn.Module, mixed: Tensor, hidden: Tensor) -> Tensor:
        """See `Family.after_attention`."""
        attended = layer.attention.output(mixed, hidden)
        return layer.output(layer.intermediate(attended), attended)

    def fuse_gelu(self, model: PreTrainedModel) -> None:
        """See `Family.fuse_gelu`."""
        for layer in self.layers(model):
            if is_exact_gelu(layer.intermediate.intermediate_act_fn):
                layer.intermediate = LinearGelu(layer.intermediate.dense)
