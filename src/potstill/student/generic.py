"""The generic path: language models of any architecture that transformers has, run by their own forward pass.

A known family is faster: its head is computed only where a loss reads it, and no layer above what is read is run.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from potstill.errors import PotstillError, first_line
from potstill.student.generic_check import unusable
from potstill.student.generic_run import layer_lists, replaced_forward, run, watched
from potstill.student.interface import LayerWidths, VocabularyHead, is_headless
from potstill.student.same_class import SameClass
from potstill.student.states import LAST_HIDDEN, AttentionInputs, Reads, States
from potstill.student.task_models import only_for_tasks

COUNTED_FROM_PADDING = "create_position_ids_from_input_ids"
"""What transformers calls the function that counts positions from the id of padding + 1 on, wherever it does."""


def counts_from_padding(config: PreTrainedConfig) -> bool:
    """Whether a model counts positions from the id of padding + 1 on, as its code in transformers shows."""
    model = _first(MODEL_MAPPING, type(config))
    if model is None:
        return False
    module = sys.modules[model.__module__]
    return any(hasattr(part, COUNTED_FROM_PADDING) for part in (module, *vars(module).values()))


LIKE_LLAMA = LayerWidths(
    heads_out=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    heads_in=("self_attn.o_proj",),
    neurons_out=("mlp.gate_proj", "mlp.up_proj"),
    neurons_in=("mlp.down_proj",),
)
"""Where heads and neurons lie in layers with the names of Llama's modules, as those of EuroBERT have them."""

OF_A_RUN = ("training", "gradient_checkpointing")
"""What a module says of a run and not of what it computes."""


@cache
def generic_family(model_type: str | None) -> Generic:
    """The generic family of a type that transformers has a language model of.

    Raises:
        PotstillError: It has none, or one of an encoder and a decoder, or one that reads something else than text.
    """
    if (reason := only_for_tasks(model_type)) is not None:
        raise PotstillError(f"the model {reason}")
    refused = f"models of type {model_type!r} are not supported"
    config_class: Any = _config_class(model_type)
    if config_class is None:
        raise PotstillError(f"{refused}: transformers {transformers.__version__} has no models of this type")
    if config_class.is_encoder_decoder:
        raise PotstillError(f"{refused}: they are encoder-decoders, and only an encoder or a decoder can be distilled")
    read = getattr(_first(MODEL_MAPPING, config_class), "main_input_name", "input_ids")
    if read != "input_ids":
        raise PotstillError(f"{refused}: they read {read} (images or sound), and only models of text can be distilled")
    if config_class not in MODEL_FOR_MASKED_LM_MAPPING and config_class not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise PotstillError(f"{refused}: transformers has no language-model head for them")
    return Generic(model_type)


class Generic(SameClass):
    """A family of any architecture with one list of layers and output embeddings.

    The model's own forward pass is run. Its output embeddings are the identity meanwhile, so the last hidden state is
    what they multiply, and the transform of the head is part of `encode`.

    Args:
        model_type: of its configs.
    """

    layer_prefix = ""  # a model says it: see `prefix_in`
    dropouts = ()
    encodes_whole = True
    shows_attention = False

    def __init__(self, model_type: str | None) -> None:
        self.model_type = model_type or ""
        self.causal = _config_class(model_type) not in MODEL_FOR_MASKED_LM_MAPPING
        self.auto_class = AutoModelForCausalLM if self.causal else AutoModelForMaskedLM

    def removable(self, config: PreTrainedConfig) -> LayerWidths:
        """See `Family.removable`. A model whose modules have other names cannot be pruned."""
        return LIKE_LLAMA

    def unsupported(self, config: PreTrainedConfig) -> str | None:
        """See `Family.unsupported`."""
        if config.is_encoder_decoder:
            return "is an encoder-decoder (is_encoder_decoder is set): only an encoder or a decoder can be distilled"
        if not self.causal and getattr(config, "is_decoder", False):
            return f"is a decoder (is_decoder is set), and models of type {self.model_type!r} are used as encoders"
        if config.get_text_config() is not config:
            return "is a model of text and of something else, and only models of text can be distilled"
        for name in ("vocab_size", "hidden_size", "num_hidden_layers"):
            if not isinstance(getattr(config, name, None), int):
                return f"has no {name} in its config"
        return None

    def usable_length(self, config: PreTrainedConfig) -> int | None:
        """See `Family.usable_length`. Positions that its code counts from padding on are fewer than its embeddings."""
        positions = getattr(config, "max_position_embeddings", None)
        if not isinstance(positions, int) or positions < 1:
            return None
        from_padding = counts_from_padding(config)
        return positions - (getattr(config, "pad_token_id", None) or 0) - 1 if from_padding else positions

    def takes_token_types(self, config: PreTrainedConfig) -> bool:
        """See `Family.takes_token_types`."""
        if getattr(config, "type_vocab_size", 2) < 2:
            return False
        model = _first(MODEL_MAPPING, type(config))
        return model is None or "token_type_ids" in inspect.signature(model.forward).parameters

    def unusable(self, model: PreTrainedModel) -> str | None:
        """See `Family.unusable`; the model is run on a few random tokens."""
        return unusable(self, model)

    def prefix_in(self, model: PreTrainedModel) -> str:
        """See `Family.prefix_in`.

        Raises:
            PotstillError: There is not exactly one list of as many layers as the config says.
        """
        found = layer_lists(model)
        if len(found) != 1:
            raise PotstillError(f"a model of type {self.model_type!r} has {len(found)} lists of layers, and not one")
        return f"{found[0]}."

    def embed(self, model: PreTrainedModel, input_ids: Tensor) -> Tensor:
        """See `Family.embed`."""
        with watched(self.layers(model), {0}) as seen:
            self._run(model, input_ids)
        return seen[0].given

    def encode(self, model: PreTrainedModel, input_ids: Tensor, keep: Reads = LAST_HIDDEN) -> States:
        """See `Family.encode`. All layers are run, and the head up to its projection."""
        if keep.attention:
            raise PotstillError(self._hidden_attention())
        layers = self.layers(model)
        depth = len(layers)
        with watched(layers, {layer % depth for layer in keep.hidden} - {depth - 1}) as seen:
            last = self._run(model, input_ids)
        outputs = {number: layer.made for number, layer in seen.items()} | {depth - 1: last}
        return States({layer: outputs[layer % depth] for layer in keep.hidden}, {})

    def attention_inputs(self, layer: nn.Module, hidden: Tensor, asking: Tensor | None = None) -> AttentionInputs:
        """See `Family.attention_inputs`: not known here."""
        raise PotstillError(self._hidden_attention())

    def head(self, model: PreTrainedModel) -> VocabularyHead:
        """See `Family.head`."""
        output: Any = model.get_output_embeddings()
        return VocabularyHead(_identity, output.weight, getattr(output, "bias", None))

    def student_config(self, teacher_config: PreTrainedConfig, layers: list[int]) -> PreTrainedConfig:
        """See `Family.student_config`. Lists with an entry for each layer keep those of the layers that are copied.

        Raises:
            PotstillError: Transformers builds no model of these layers.
        """
        config = _with_layers(teacher_config, layers)
        lists = _per_layer(teacher_config)
        refused = f"a model of type {self.model_type!r} has no student of the layers {', '.join(map(str, layers))}"
        try:
            reloaded = type(config).from_dict(config.to_dict())
            with torch.device("meta"), torch.random.fork_rng(devices=[]):
                model = self.auto_class.from_config(reloaded)
        except Exception as error:  # of the many that configs and models raise
            raise PotstillError(f"{refused}: transformers does not build it ({first_line(error)})") from error
        for name in ("num_hidden_layers", *lists):
            if getattr(reloaded, name, None) != getattr(config, name):
                raise PotstillError(f"{refused}: its config would not keep {name}")
        if len(self.layers(model)) != len(layers):
            raise PotstillError(f"{refused}: it would be built with {len(self.layers(model))} layers")
        return config

    def grown_config(self, config: PreTrainedConfig, depth: int) -> PreTrainedConfig:
        """See `Family.grown_config`. Lists with an entry for each layer go on as they began."""
        return _with_layers(config, [self.grown_from(config, place) for place in range(depth)])

    def copy_weights(
        self, teacher: PreTrainedModel, student: PreTrainedModel, layers: list[int], fold_token_types: bool
    ) -> None:
        """See `Family.copy_weights`.

        Raises:
            PotstillError: A layer cannot take the place of another, because it is built or wired otherwise.
        """
        theirs, ours = self.layers(teacher), self.layers(student)
        for new, old in enumerate(layers):
            if (difference := _difference(theirs[old], ours[new], old, new)) is not None:
                raise PotstillError(
                    f"layer {old} of the teacher cannot be layer {new} of the student: {difference}; choose layers "
                    "that are alike with --layers"
                )
        super().copy_weights(teacher, student, layers, fold_token_types)

    def _run(self, model: PreTrainedModel, input_ids: Tensor) -> Tensor:
        """Return what the output embeddings would multiply, (B, L, E); the last hidden states without a head."""
        if is_headless(model):
            return run(model, input_ids).last_hidden_state
        output: Any = model.get_output_embeddings()
        with replaced_forward(output, _identity):
            return run(model, input_ids).logits

    def _hidden_attention(self) -> str:
        return (
            f"the loss attention_relations cannot read a model of type {self.model_type!r}, of which potstill does not "
            "know where its layers make queries and keys: leave it out of losses"
        )


def _identity(hidden: Tensor) -> Tensor:
    return hidden


def _config_class(model_type: str | None) -> Any:
    """Return transformers' class for configs of a type; None if it has none."""
    known = model_type in CONFIG_MAPPING  # its `get` would not load the class
    return CONFIG_MAPPING[model_type] if known else None


def _first(mapping: Any, config_class: type[PreTrainedConfig]) -> Any:
    """Return the class that a mapping of transformers has for a config; None if it has none."""
    found = mapping.get(config_class, None)
    return found[0] if isinstance(found, tuple | list) else found


def _with_layers(config: PreTrainedConfig, layers: list[int]) -> PreTrainedConfig:
    """Return a config of these layers of a model, with what its own config says of each of them."""
    changed = copy.deepcopy(config)
    changed.num_hidden_layers = len(layers)
    for name in _per_layer(config):
        value = getattr(config, name)
        setattr(changed, name, type(value)(value[layer] for layer in layers))
    return changed


def _per_layer(config: PreTrainedConfig) -> list[str]:
    """Return the names of the lists in a config that have an entry for each layer."""
    found = []
    for name, value in vars(config).items():
        other = name.startswith("_") or name.endswith(("_token_id", "_token_ids")) or hasattr(PreTrainedConfig, name)
        if isinstance(value, list | tuple) and len(value) == config.num_hidden_layers and not other:
            found.append(name)
    return found


def _difference(theirs: nn.Module, ours: nn.Module, old: int, new: int) -> str | None:
    """Return how two layers are not alike; None if they are, but for their numbers."""
    shapes = [{name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()} for layer in (theirs, ours)]
    if shapes[0] != shapes[1]:
        names = [name for name in {**shapes[0], **shapes[1]} if shapes[0].get(name) != shapes[1].get(name)]
        return f"{names[0]} is of another shape, or in one of them alone"
    others = dict(ours.named_modules())
    for path, module in theirs.named_modules():
        for name, value in vars(module).items():
            if name.startswith("_") or name in OF_A_RUN or not _is_plain(value):
                continue
            other = vars(others[path]).get(name)
            if other != value and (value, other) != (old, new):
                return f"its {f'{path}.' if path else ''}{name} is {value!r} and not {other!r}"
    return None


def _is_plain(value: Any) -> bool:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return all(_is_plain(part) for part in value)
    return value is None or isinstance(value, bool | int | float | str)
