"""DeBERTa of the versions 2 and 3; its students are of the same class, for only its own layers attend as they do."""

from collections.abc import Collection
from dataclasses import replace

import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from potstill.student.bert_layers import BertLayers
from potstill.student.counting import matrix_weights
from potstill.student.interface import LayerWidths, VocabularyHead
from potstill.student.same_class import SameClass
from potstill.student.states import LAST_HIDDEN, AttentionInputs, Reads, States, run_layers


class DebertaV2(BertLayers, SameClass):
    """The family of `DebertaV2ForMaskedLM` (He et al. 2021).

    Attention compares contents with contents, contents with distances and distances with contents. The embeddings of
    the distances are the encoder's, one table for all layers. Some models have a convolution beside their first layer.
    """

    model_type = "deberta-v2"
    layer_prefix = "deberta.encoder.layer."
    exports_plainly = False
    widths = LayerWidths(
        heads_out=("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"),
        heads_in=("attention.output.dense",),
        neurons_out=("intermediate.dense",),
        neurons_in=("output.dense",),
        head_counts=("attention.self.num_attention_heads",),
        head_spans=("attention.self.all_head_size",),
    )

    def removable(self, config: PreTrainedConfig) -> LayerWidths:
        """See `Family.removable`. Some models have projections of the distances too, which are heads side by side."""
        kinds = config.pos_att_type or [] if config.relative_attention and not config.share_att_key else []
        names = {"c2p": "attention.self.pos_key_proj", "p2c": "attention.self.pos_query_proj"}
        positions = tuple(name for kind, name in names.items() if kind in kinds)
        return replace(self.widths, heads_out=positions + self.widths.heads_out)

    def unsupported(self, config: PreTrainedConfig) -> str | None:
        """See `Family.unsupported`."""
        return None

    def read_names(self, config: PreTrainedConfig, names: Collection[str]) -> str | None:
        """See `Family.read_names`. The published files have the newer head, which their configs do not say."""
        if any(name.startswith("lm_predictions.") for name in names):
            config.legacy = False
        return None

    def headless_because(self, config: PreTrainedConfig, names: Collection[str]) -> str | None:
        """See `Family.headless_because`."""
        if any(name.startswith("mask_predictions.") for name in names):
            return (
                "is a discriminator (its weights hold mask_predictions), which is an encoder without a trained "
                "masked-LM head: use a model that was trained with masked language modelling"
            )
        if not config.legacy and Version(transformers.__version__) < Version("5.20"):
            return "has a head that transformers loads from 5.20 on: install a newer transformers"
        return None

    def encode(self, model: PreTrainedModel, input_ids: Tensor, keep: Reads = LAST_HIDDEN) -> States:
        """See `Family.encode`; the model's own forward copies numbers to the device, and waits for that."""
        encoder = model.base_model.encoder
        embedded = self.embed(model, input_ids)
        distances, positions = _distances(encoder, embedded), encoder.get_rel_embedding()
        visible = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=embedded.device)

        def run(layer: nn.Module, hidden: Tensor) -> Tensor:
            output = layer(hidden, visible, relative_pos=distances, rel_embeddings=positions)[0]
            if encoder.conv is not None and layer is encoder.layer[0]:
                every_token = torch.ones(hidden.shape[:2], device=hidden.device)
                output = encoder.conv(hidden, output, every_token)
            return output

        return run_layers(self.layers(model), embedded, keep, self.attention_inputs, run)

    def attention_inputs(self, layer: nn.Module, hidden: Tensor, asking: Tensor | None = None) -> AttentionInputs:
        """See `Family.attention_inputs`. What is compared with distances is not among them."""
        attention = layer.attention.self
        query = attention.query_proj(hidden if asking is None else asking)
        key, value = attention.key_proj(hidden), attention.value_proj(hidden)
        return AttentionInputs(query, key, value, attention.num_attention_heads)

    def layer_flops(self, model: PreTrainedModel, layer: int, length: int) -> float:
        """See `Family.layer_flops`.

        A token is compared with each distance of a block. The projections of the distances are made once for a whole
        batch, so they do not count.
        """
        whole, config = super().layer_flops(model, layer, length), model.config
        if not config.relative_attention:
            return whole
        attention = self.layers(model)[layer].attention.self
        once = sum(matrix_weights(part) for name, part in attention.named_children() if "pos_" in name)
        kinds = sum(kind in (config.pos_att_type or []) for kind in ("c2p", "p2c"))
        compared = min(length, 2 * attention.pos_ebd_size)
        return whole - 2 * once + 2 * kinds * compared * config.hidden_size

    def head(self, model: PreTrainedModel) -> VocabularyHead:
        """See `Family.head`. The newer head multiplies by the word embeddings, whether or not its config ties them."""
        if model.legacy:
            predictions = model.cls.predictions
            return VocabularyHead(predictions.transform, predictions.decoder.weight, predictions.decoder.bias)
        lm_head = model.lm_predictions.lm_head

        def transform(hidden: Tensor) -> Tensor:
            return lm_head.LayerNorm(lm_head.transform_act_fn(lm_head.dense(hidden)))

        return VocabularyHead(transform, model.get_input_embeddings().weight, lm_head.bias)


def _distances(encoder: nn.Module, hidden: Tensor) -> Tensor | None:
    """Return (1, L, L) int64: the distance of each token from each other, in buckets where the model has them.

    As transformers computes them, to the last bit. It makes one number of them on the CPU, though, for which a device
    would have to wait.
    """
    if not encoder.relative_attention:
        return None
    places = torch.arange(hidden.shape[1], device=hidden.device)
    distance = places[:, None] - places[None, :]
    buckets, longest = encoder.position_buckets, encoder.max_relative_positions
    if buckets > 0 and longest > 0:
        middle = buckets // 2
        near = (distance < middle) & (distance > -middle)
        size = torch.where(near, middle - 1, distance.abs())
        # A logarithm of a tensor on the CPU, as in transformers: in float32, and a number for the device.
        scale = torch.log(torch.tensor((longest - 1) / middle))
        logarithmic = torch.ceil(torch.log(size / middle) / scale * (middle - 1)) + middle
        distance = torch.where(size <= middle, distance.type_as(logarithmic), logarithmic * torch.sign(distance))
    return distance.to(torch.int64).unsqueeze(0)
