"""MPNet; its students are of the same class, for a DistilBERT has no relative positions."""

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import gelu

from potstill.student.bert_layers import BertLayers
from potstill.student.interface import LayerWidths, VocabularyHead
from potstill.student.same_class import SameClass
from potstill.student.states import LAST_HIDDEN, AttentionInputs, Reads, States, run_layers

FIRST_POSITION = 2
"""Position of a text's first token: one more than the 1 that MPNet takes for the id of padding, whatever its config
says."""


class MPNet(BertLayers, SameClass):
    """The family of `MPNetForMaskedLM` (Song et al. 2020).

    All layers add one and the same bias to their attention scores, which depends on the distance of two tokens.
    """

    model_type = "mpnet"
    layer_prefix = "mpnet.encoder.layer."
    exports_plainly = False
    widths = None  # all layers add one bias for each head, so a head cannot be left out of one layer alone

    def removable(self, config: PreTrainedConfig) -> LayerWidths:
        """See `Family.removable`. There are no heads, for the reason that is given for `widths`."""
        return LayerWidths((), (), neurons_out=("intermediate.dense",), neurons_in=("output.dense",))

    def unsupported(self, config: PreTrainedConfig) -> str | None:
        """See `Family.unsupported`."""
        return None

    def usable_length(self, config: PreTrainedConfig) -> int:
        """See `Family.usable_length`."""
        return config.max_position_embeddings - FIRST_POSITION

    def takes_token_types(self, config: PreTrainedConfig) -> bool:
        """See `Family.takes_token_types`."""
        return False

    def encode(self, model: PreTrainedModel, input_ids: Tensor, keep: Reads = LAST_HIDDEN) -> States:
        """See `Family.encode`; the model's own forward would copy the bias for each block of the batch."""
        hidden = self.embed(model, input_ids)
        with hidden.device:  # transformers before 5.24 makes the positions on the CPU, which a CUDA graph cannot copy
            bias = model.base_model.encoder.compute_position_bias(hidden[:1])  # (1, heads, L, L)

        def run(layer: nn.Module, hidden: Tensor) -> Tensor:
            return layer(hidden, None, bias)[0]

        return run_layers(self.layers(model), hidden, keep, self.attention_inputs, run)

    def attention_inputs(self, layer: nn.Module, hidden: Tensor, asking: Tensor | None = None) -> AttentionInputs:
        """See `Family.attention_inputs`."""
        attention = layer.attention.attn
        query = attention.q(hidden if asking is None else asking)
        return AttentionInputs(query, attention.k(hidden), attention.v(hidden), attention.num_attention_heads)

    def head(self, model: PreTrainedModel) -> VocabularyHead:
        """See `Family.head`."""
        lm_head = model.lm_head

        def transform(hidden: Tensor) -> Tensor:
            return lm_head.layer_norm(gelu(lm_head.dense(hidden)))

        return VocabularyHead(transform, lm_head.decoder.weight, lm_head.decoder.bias)
