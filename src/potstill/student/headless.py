"""Models without a head, of any architecture: where their layers are, and the config of a shallower one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from potstill.errors import PotstillError
from potstill.student.family import family_or_none
from potstill.student.same_class import SameClass, with_config_layers
from potstill.student.tensors import with_layers


def layer_prefix(model: PreTrainedModel) -> str | None:
    """What the name of every tensor of a layer begins with, up to the layer's number.

    A model of no family says it itself: its layers are its only list of as many modules as its config has layers.

    Returns:
        The prefix, such as "encoder.layer."; None if there is no such list, or more than one.
    """
    if (family := family_or_none(model.config)) is not None:
        return family.prefix_in(model)
    depth = getattr(model.config, "num_hidden_layers", None)
    lists = [name for name, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part) == depth]
    # A layer may hold such a list too, of its experts for example.
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    return f"{outer[0]}." if len(outer) == 1 else None


def shallower_config(config: PreTrainedConfig, layers: list[int]) -> PreTrainedConfig:
    """Config of a model of the same class with as many layers as `layers` lists; see `Family.student_config`.

    Args:
        config: Of a model with or without a head; left as it is.
        layers: The layer that each layer of the new model copies.
    """
    family = family_or_none(config)
    if isinstance(family, SameClass):
        return family.student_config(config, layers)
    return with_config_layers(config, layers)


def copy_layers(teacher: PreTrainedModel, student: PreTrainedModel, layers: list[int]) -> None:
    """Write every weight of `student` from `teacher`, which is of the same class.

    Args:
        teacher: Left as it is. Its layers are where `layer_prefix` says.
        student: A model of `shallower_config`.
        layers: The teacher layer that each student layer copies.

    Raises:
        PotstillError: A layer has other tensors than the layer that it is to be copied to.
    """
    family = family_or_none(teacher.config)
    if isinstance(family, SameClass):
        family.copy_weights(teacher, student, layers, fold_token_types=False)
        return
    prefix = layer_prefix(teacher)
    assert prefix is not None
    state, places = with_layers(teacher.state_dict(), prefix, layers), student.state_dict()
    wrong = sorted({name for name in {*state, *places} if _shape(state, name) != _shape(places, name)})
    if wrong:
        raise PotstillError(
            f"the layers {', '.join(map(str, layers))} of the teacher do not make a {type(student).__name__}: its "
            f"layers are not all alike ({wrong[0]}); choose others with --layers"
        )
    student.load_state_dict(state)


def _shape(state: Mapping[str, Tensor], name: str) -> torch.Size | None:
    return state[name].shape if name in state else None
