"""Models without a head, of any architecture: where their layers are, and the config of a shallower one."""

from __future__ import annotations

from transformers import PreTrainedConfig, PreTrainedModel

from potstill.student.family import family_of, family_or_none
from potstill.student.generic_run import layer_lists
from potstill.student.same_class import SameClass, with_config_layers
from potstill.student.tensors import leave_out_parts, with_layers


def layer_prefix(model: PreTrainedModel) -> str | None:
    """What the name of every tensor of a layer begins with, up to the layer's number, such as "encoder.layer.".

    Returns:
        The prefix; None for a model of no family that has not exactly one list of as many layers as its config says.
    """
    if (family := family_or_none(model.config)) is not None:
        return family.prefix_in(model)
    lists = layer_lists(model)
    return f"{lists[0]}." if len(lists) == 1 else None


def shallower_config(config: PreTrainedConfig, layers: list[int]) -> PreTrainedConfig:
    """Config of a model of the same class with as many layers as `layers` lists; see `Family.student_config`.

    Args:
        config: Of a model with or without a head; left as it is.
        layers: The layer that each layer of the new model copies.

    Raises:
        PotstillError: No family has this architecture, or it has no model of these layers.
    """
    family = family_of(config)
    # The student of a language model may be of another class than its teacher.
    return (
        family.student_config(config, layers) if isinstance(family, SameClass) else with_config_layers(config, layers)
    )


def new_encoder(like: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """Make a model of the class of another one, with new weights; without a pooler if that one has none.

    Args:
        like: a model without a head.
        config: of the new model.
    """
    made: PreTrainedModel = type(like)(config)
    leave_out_parts(like, made)
    return made


def copy_layers(teacher: PreTrainedModel, student: PreTrainedModel, layers: list[int]) -> None:
    """Write every weight of `student` from `teacher`, which is of the same class.

    Args:
        teacher: Left as it is.
        student: A model of `shallower_config`.
        layers: The teacher layer that each student layer copies.

    Raises:
        PotstillError: A layer cannot take the place of another.
    """
    family = family_of(teacher)
    if isinstance(family, SameClass):
        family.copy_weights(teacher, student, layers, fold_token_types=False)
    else:
        student.load_state_dict(with_layers(teacher.state_dict(), family.prefix_in(teacher), layers))
