"""A model with fewer of its own layers, whatever its head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from potstill.errors import PotstillError
from potstill.student.build import initialised_from, layers_to_copy
from potstill.student.headless import copy_layers, shallower_config
from potstill.student.layers import AUTO, LAYER_RULES


def chosen_layers(
    config: PreTrainedConfig, num_hidden_layers: int | None, layers: str | Sequence[int] | None
) -> list[int] | None:
    """Return the layers that a shallower model keeps; None if neither their number nor their choice is given.

    Args:
        config: of the whole model.
        num_hidden_layers: how many layers; None for as many as `layers` lists.
        layers: a rule or a list, see `choose_layers`; None for ``alternate``.

    Raises:
        PotstillError: the model has no such layers, or nothing says how many.
    """
    if num_hidden_layers is None and layers is None:
        return None
    if layers == AUTO:
        raise PotstillError(
            f"--layers auto needs a corpus, which `potstill distill` has: give {', '.join(LAYER_RULES)} or a list of "
            "layers."
        )
    if num_hidden_layers is None and layers in LAYER_RULES:
        raise PotstillError(
            f"--layers {layers} does not say how many layers to keep: give --num_hidden_layers too, or a list such as "
            "0,2,4."
        )
    if not isinstance(getattr(config, "num_hidden_layers", None), int):
        raise PotstillError("The config of the model does not say its layers: leave --num_hidden_layers out.")
    try:
        return layers_to_copy(config, num_hidden_layers, layers or "alternate")
    except PotstillError as error:
        raise PotstillError(f"the layers of --model (here the teacher) cannot be chosen like this: {error}") from error


def shallower(model: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """Return a model of the same class with some of the layers of a model, and with everything else of it.

    Args:
        model: left as it is.
        layers: the layer that each layer of the new model copies, from 0.

    Raises:
        PotstillError: the layers of the model cannot be told apart, or a layer cannot take the place of another.
    """
    chosen = [*layers]
    config = shallower_config(model.config, chosen)
    kind: Any = type(model)
    with initialised_from(0):
        found: PreTrainedModel = kind(config)
    found.to(dtype=model.dtype, device=model.device)
    copy_layers(model, found, chosen)
    return found.train(model.training)
