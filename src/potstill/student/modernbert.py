"""ModernBERT, and with it the Ettin encoders and mmBERT: layers of global and of local attention in turn."""

from __future__ import annotations

from types import MappingProxyType

import torch
from torch import Tensor, nn
from transformers import ModernBertConfig, PreTrainedConfig, PreTrainedModel

from potstill.errors import PotstillError
from potstill.student.byte_level import ByteLevel
from potstill.student.interface import LayerWidths, Shape, VocabularyHead
from potstill.student.same_class import SameClass
from potstill.student.states import LAST_HIDDEN, AttentionInputs, Reads, States, run_layers

GLOBAL, LOCAL = "full_attention", "sliding_attention"
"""The kinds of attention, as the `layer_types` of a config names them."""

STRIPE = 3
"""Of so many layers the first one is global and the others are local, if a config says nothing else."""

STATED_STRIPE = "global_attn_every_n_layers"
"""Where configs that were written before transformers 5 say that number; the kind of each layer follows from it."""

CHANGING_POSITIONS = ("dynamic", "longrope")
"""Kinds of rotary positions that depend on the length of the text."""


class ModernBert(SameClass):
    """The family of `ModernBertForMaskedLM` (Warner et al. 2024).

    A token sees the whole text in a global layer, and its neighbours in a local one. Each kind has rotary positions of
    its own. The first layer has no LayerNorm before its attention, for the one of the embeddings comes right before.
    """

    model_type = "modernbert"
    layer_prefix = "model.layers."
    dropouts = ("embedding_dropout", "attention_dropout", "mlp_dropout")
    tokenizer = ByteLevel()
    widths = LayerWidths(
        heads_out=("attn.Wqkv",), heads_in=("attn.Wo",), neurons_out=("mlp.Wi",), neurons_in=("mlp.Wo",)
    )
    stand_ins = MappingProxyType({"model.layers.0.attn_norm": "model.embeddings.norm"})

    def unsupported(self, config: PreTrainedConfig) -> str | None:
        """See `Family.unsupported`."""
        for kind in dict.fromkeys(config.layer_types):
            rope_type = config.rope_parameters[kind]["rope_type"]
            if rope_type in CHANGING_POSITIONS:  # the frequencies would be computed anew in the middle of a recording
                return f"has {rope_type!r} rotary positions, which change with the length of the text"
        return super().unsupported(config)

    def embed(self, model: PreTrainedModel, input_ids: Tensor) -> Tensor:
        """See `Family.embed`."""
        return model.base_model.embeddings(input_ids)

    def encode(self, model: PreTrainedModel, input_ids: Tensor, keep: Reads = LAST_HIDDEN) -> States:
        """See `Family.encode`."""
        encoder, config = model.base_model, model.config
        hidden = self.embed(model, input_ids)
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        rotary = {kind: encoder.rotary_emb(hidden, positions, kind) for kind in dict.fromkeys(config.layer_types)}
        # Flash attention is told the window by the layer, and would take a mask for padding.
        windowed = "flash" in config._attn_implementation
        masks = {GLOBAL: None, LOCAL: None if windowed else _window_mask(hidden, config.sliding_window)}

        def run(layer: nn.Module, hidden: Tensor) -> Tensor:
            kind = layer.attention_type
            return layer(hidden, attention_mask=masks[kind], position_embeddings=rotary[kind])

        return run_layers(self.layers(model), hidden, keep, self.attention_inputs, run, encoder.final_norm)

    def attention_inputs(self, layer: nn.Module, hidden: Tensor, asking: Tensor | None = None) -> AttentionInputs:
        """See `Family.attention_inputs`. Queries and keys are those before the rotation by their positions."""
        attention = layer.attn

        def project(hidden: Tensor) -> tuple[Tensor, ...]:
            return attention.Wqkv(layer.attn_norm(hidden)).chunk(3, dim=-1)

        query, key, value = project(hidden)
        if asking is not None:
            query = project(asking)[0]
        return AttentionInputs(query, key, value, query.shape[-1] // attention.head_dim)

    def attended(self, config: PreTrainedConfig, layer: int, length: int) -> float:
        """See `Family.attended`."""
        reach = config.sliding_window
        if config.layer_types[layer] == GLOBAL or length <= reach:
            return super().attended(config, layer, length)
        # Each token and `reach` on either side of it, less what would lie beyond the two ends.
        return 2 * reach + 1 - reach * (reach + 1) / length

    def head(self, model: PreTrainedModel) -> VocabularyHead:
        """See `Family.head`."""
        return VocabularyHead(model.head, model.decoder.weight, model.decoder.bias)

    def adjust_layers(self, config: PreTrainedConfig, layers: list[int]) -> list[int]:
        """See `Family.adjust_layers`.

        The student has the kinds of the teacher's first layers, so that they come in the same order and at the same
        distance. The first layer is the teacher's first. Of all choices in ascending order that have this, it is the
        one that lies nearest to the layers given, by the sum of the distances, and the lowest of those as near.
        """
        kinds = config.layer_types
        # The least distance, and the layers, of the choices so far that end with a certain layer.
        best: dict[int, tuple[int, list[int]]] = {0: (0, [0])}
        for place, near in enumerate(layers[1:], start=1):
            best = {
                layer: min(
                    (moved + abs(layer - near), [*before, layer])
                    for last, (moved, before) in best.items()
                    if last < layer
                )
                for layer in range(min(best) + 1, len(kinds))
                if kinds[layer] == kinds[place]
            }
        return min(best.values())[1]

    def grown_from(self, config: PreTrainedConfig, place: int) -> int:
        """See `Family.grown_from`: the nearest layer of the place's kind, if there is one of that kind."""
        over_again, wanted = super().grown_from(config, place), _kind_at(config, place)
        candidates = [layer for layer, kind in enumerate(config.layer_types) if kind == wanted]
        return min(candidates or [over_again], key=lambda layer: (abs(layer - over_again), layer))

    def grown_config(self, config: PreTrainedConfig, depth: int) -> PreTrainedConfig:
        """See `Family.grown_config`: the stripe goes on."""
        grown = super().grown_config(config, depth)
        grown.layer_types = [_kind_at(config, place) for place in range(depth)]
        return grown

    def student_config(self, teacher_config: PreTrainedConfig, layers: list[int]) -> PreTrainedConfig:
        """See `Family.student_config`.

        Raises:
            PotstillError: The teacher's first layer is not the first of the student, or is another one too.
        """
        if layers[0] != 0 or 0 in layers[1:]:
            raise PotstillError(
                f"layers {','.join(map(str, layers))} of a ModernBERT give no student that computes what they do: its "
                "layer 0 alone has no LayerNorm before its attention, so list it first and nowhere else"
            )
        config = super().student_config(teacher_config, layers)
        if getattr(config, STATED_STRIPE, None) != _stripe(config):  # it would contradict `layer_types`
            vars(config).pop(STATED_STRIPE, None)
        return config

    def new_config(self, shape: Shape) -> PreTrainedConfig:
        """See `Family.new_config`."""
        width = shape.hidden_size // shape.num_attention_heads
        if width % 2:
            raise PotstillError(
                f"The attention heads of a ModernBERT must have an even width, but {shape.hidden_size} / "
                f"{shape.num_attention_heads} is {width}: change --hidden_size or --num_attention_heads."
            )
        return ModernBertConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            num_hidden_layers=shape.num_hidden_layers,
            num_attention_heads=shape.num_attention_heads,
            intermediate_size=shape.intermediate_size,
            max_position_embeddings=shape.usable_length,
            embedding_dropout=shape.dropout,
            attention_dropout=shape.dropout,
            mlp_dropout=shape.dropout,
            classifier_dropout=shape.dropout,
            pad_token_id=shape.pad_token_id,
            bos_token_id=shape.bos_token_id,
            eos_token_id=shape.eos_token_id,
            cls_token_id=shape.bos_token_id,
            sep_token_id=shape.eos_token_id,
        )


def _window_mask(hidden: Tensor, reach: int) -> Tensor | None:
    """What is added to the attention scores so that a token sees no other that is more than `reach` tokens away.

    Args:
        hidden: (B, L, H).
        reach: tokens on either side.

    Returns:
        (B, 1, L, L), in the type of `hidden`; None where all tokens see each other.
    """
    batch, length = hidden.shape[:2]
    if length <= reach + 1:
        return None
    positions = torch.arange(length, device=hidden.device)
    far = (positions[:, None] - positions).abs() > reach
    mask = torch.zeros(length, length, dtype=hidden.dtype, device=hidden.device).masked_fill(far, float("-inf"))
    return mask.expand(batch, 1, length, length)


def _stripe(config: PreTrainedConfig) -> int | None:
    """The number of layers from one global layer to the next; None if the layers do not come in such an order.

    A model of few layers may not show it. It is then what the config says, or the usual number.
    """
    stated = getattr(config, STATED_STRIPE, None) or STRIPE
    kinds = config.layer_types
    for every in (stated, *range(1, len(kinds) + 1)):
        if kinds == [_kind(layer, every) for layer in range(len(kinds))]:
            return every
    return None


def _kind(layer: int, every: int) -> str:
    return LOCAL if layer % every else GLOBAL


def _kind_at(config: PreTrainedConfig, place: int) -> str:
    """The kind of a layer in a model that goes on as the layers of this config begin."""
    every, kinds = _stripe(config), config.layer_types
    return kinds[place % len(kinds)] if every is None else _kind(place, every)
