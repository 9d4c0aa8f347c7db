"""Models whose layers have different numbers of attention heads or feed-forward neurons.

The configs of transformers have one number of each for all layers, and the width of the attention of most architectures
is that of the hidden states. So a model without some of its heads needs a class of ours. It is the class that the model
had before, built with smaller layers; its config has the number of heads and of neurons of each layer. Its type is
`pruned-` and the type from before. All that potstill knows of the family holds for it.

    import potstill.pruned  # from here on the Auto classes of transformers load such models
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from potstill.errors import PotstillError
from potstill.student.family import FAMILIES, PRUNED, family_of, plain_type
from potstill.student.interface import LayerWidths
from potstill.student.parts import locate

IMPORT = "import potstill.pruned  # how a pruned model is loaded"
"""What a program says before it loads a pruned model with the Auto classes of transformers."""

HEADS, NEURONS = "layer_heads", "layer_neurons"
"""Fields of a config with the number of heads and of neurons of each layer."""

CLASS = "Pruned"
"""What the names of the classes begin with."""

AUTO: tuple[Any, ...] = (
    *(AutoModel, AutoModelForMaskedLM, AutoModelForCausalLM, AutoModelForSequenceClassification),
    *(AutoModelForTokenClassification, AutoModelForQuestionAnswering, AutoModelForMultipleChoice),
)


class Pruned:
    """What makes a class of transformers a pruned one: its layers have the heads and neurons that its config says."""

    def __init__(self, config: PreTrainedConfig, *args: Any, **options: Any) -> None:
        super().__init__(config, *args, **options)  # type: ignore[call-arg]
        model: Any = self
        resize(model, getattr(config, HEADS), getattr(config, NEURONS))


def is_pruned(config: PreTrainedConfig) -> bool:
    """Return whether the layers of a model have numbers of heads and neurons of their own."""
    return getattr(config, HEADS, None) is not None


def check_uniform(config: PreTrainedConfig, what: str = "the model") -> None:
    """Refuse a pruned model where the layers have to be alike.

    Args:
        config: of the model.
        what: what the model is called in the message.

    Raises:
        PotstillError: it is pruned.
    """
    if is_pruned(config):
        raise PotstillError(
            f"{what} is pruned, and its layers differ in heads or neurons, so no model of other layers can be "
            "made of it: give the model that it was pruned from"
        )


def register(model_type: str) -> None:
    """Let the Auto classes of transformers load the pruned models of a type.

    Args:
        model_type: of the models, with or without `pruned-`.
    """
    _register(plain_type(model_type) or "")


def register_of(config: Mapping[str, Any]) -> None:
    """Register the types of a raw config, and of the configs inside of it."""
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type.startswith(PRUNED) and plain_type(model_type) in CONFIG_MAPPING:
        register(model_type)
    for value in config.values():
        if isinstance(value, dict) and "model_type" in value:
            register_of(value)


def register_all() -> None:
    """Register the types of all families."""
    for family in FAMILIES:
        register(family.model_type)


@cache
def _register(model_type: str) -> None:
    made = _config_class(model_type)
    AutoConfig.register(made.model_type, made, exist_ok=True)
    for auto in AUTO:
        plain = auto._model_mapping.get(CONFIG_MAPPING[model_type], None)
        if plain is not None:
            auto.register(made, _model_class(plain[0] if isinstance(plain, tuple) else plain), exist_ok=True)


@cache
def _config_class(model_type: str) -> type[PreTrainedConfig]:
    plain = CONFIG_MAPPING[model_type]
    return type(f"{CLASS}{plain.__name__}", (plain,), {"model_type": f"{PRUNED}{model_type}", "__module__": __name__})


@cache
def _model_class(plain: type[PreTrainedModel]) -> type[PreTrainedModel]:
    of = _config_class(plain.config_class.model_type)
    return type(f"{CLASS}{plain.__name__}", (Pruned, plain), {"config_class": of, "__module__": __name__})


def pruned_config(config: PreTrainedConfig, heads: Sequence[int], neurons: Sequence[int]) -> PreTrainedConfig:
    """Return the config of a model with other numbers of heads and neurons in each layer.

    Args:
        config: of the model, which may be pruned already; left as it is.
        heads: heads of each layer.
        neurons: neurons of each layer.
    """
    kind = _config_class(plain_type(config.model_type) or "")
    values = {name: value for name, value in config.to_dict().items() if name != "model_type"}
    if config.architectures:
        values["architectures"] = [f"{CLASS}{name.removeprefix(CLASS)}" for name in config.architectures]
    values |= {HEADS: [*heads], NEURONS: [*neurons], family_of(config).intermediate_name: max(neurons)}
    return kind.from_dict(values, attn_implementation=config._attn_implementation)


def plain_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a pruned model's config under its old type, for programs that know the type and do not build the model."""
    if not is_pruned(config):
        return config
    values = {name: value for name, value in config.to_dict().items() if name != "model_type"}
    values["architectures"] = [name.removeprefix(CLASS) for name in config.architectures or []] or None
    plain: PreTrainedConfig = CONFIG_MAPPING[plain_type(config.model_type)].from_dict(values)
    return plain


def as_pruned(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config of a pruned model that `plain_config` gave its old type; any other config as it is."""
    if not is_pruned(config) or config.model_type.startswith(PRUNED):
        return config
    register(config.model_type)
    return pruned_config(config, getattr(config, HEADS), getattr(config, NEURONS))


def new_pruned(like: PreTrainedModel, heads: Sequence[int], neurons: Sequence[int]) -> PreTrainedModel:
    """Return a model of the class and the config of another one, but with its own heads and neurons; new weights.

    Args:
        like: a model, which may be pruned already.
        heads: heads of each layer.
        neurons: neurons of each layer.
    """
    register(like.config.model_type)
    plain: Any = next(kind for kind in type(like).__mro__ if not issubclass(kind, Pruned))
    return _model_class(plain)(pruned_config(like.config, heads, neurons))


def resize(model: PreTrainedModel, heads: Sequence[int], neurons: Sequence[int]) -> None:
    """Give each layer of a new model its number of heads and neurons. The first ones stay.

    Args:
        model: with layers that are all alike.
        heads: heads of each layer.
        neurons: neurons of each layer.

    Raises:
        PotstillError: a layer has fewer of them.
    """
    widths = family_of(model).removable(model.config)
    assert widths is not None
    located = locate(model, widths)
    size = located.head_size
    for layer, had, heads_left, had_neurons, neurons_left in zip(
        located.layers, located.heads, heads, located.neurons, neurons, strict=True
    ):
        if not (0 < heads_left <= had and 0 < neurons_left <= had_neurons):
            raise PotstillError(
                f"a layer has {had} heads and {had_neurons} neurons, and cannot keep {heads_left} and {neurons_left}"
            )
        for name in widths.heads_out:
            _resize(layer.get_submodule(name), had * size, heads_left * size, of_outputs=True)
        for name in widths.heads_in:
            _resize(layer.get_submodule(name), had * size, heads_left * size, of_outputs=False)
        for name in widths.neurons_out:
            _resize(layer.get_submodule(name), had_neurons, neurons_left, of_outputs=True)
        for name in widths.neurons_in:
            _resize(layer.get_submodule(name), had_neurons, neurons_left, of_outputs=False)
        _state(layer, widths, heads_left, heads_left * size)


def _state(layer: nn.Module, widths: LayerWidths, heads: int, span: int) -> None:
    """Set the attributes of a layer that depend on its number of heads."""
    for names, value in ((widths.head_counts, heads), (widths.head_spans, span)):
        for name in names:
            module, _, attribute = name.rpartition(".")
            setattr(layer.get_submodule(module), attribute, value)


def _resize(module: nn.Module, old: int, new: int, of_outputs: bool) -> None:
    """Cut each part of a linear layer, which has `old` outputs or inputs, to the first `new`."""
    transposed = isinstance(module, Conv1D)
    axis = int(of_outputs == transposed)
    whole = module.weight.shape[axis]
    index = torch.cat([torch.arange(start, start + new) for start in range(0, whole, old)]).to(module.weight.device)
    module.weight = nn.Parameter(module.weight.detach().index_select(axis, index))
    if of_outputs and module.bias is not None:
        module.bias = nn.Parameter(module.bias.detach().index_select(0, index))
    if transposed:
        module.nx, module.nf = module.weight.shape
    else:
        module.out_features, module.in_features = module.weight.shape
