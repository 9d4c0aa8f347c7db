"""Removing heads and neurons for real: the rows and columns of a model's matrices."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from potstill.compress.kept import Kept
from potstill.errors import PotstillError, first_line
from potstill.student.family import family_of, family_or_none
from potstill.student.parts import Located, locate
from potstill.student.pruned import is_pruned, new_pruned
from potstill.student.sizes import sizes_of
from potstill.student.tensors import leave_out_parts


def locate_removable(model: PreTrainedModel, heads: bool, neurons: bool) -> Located:
    """Find the heads and the neurons of a model that one of its layers alone can lose.

    Args:
        model: with or without a head.
        heads: whether heads are to be removed.
        neurons: whether neurons are to be removed.

    Raises:
        PotstillError: it is not known where they lie, or a layer cannot lose one alone.
    """
    family, kind = family_of(model), model.config.model_type
    try:
        located = locate(model, family.removable(model.config))
    except PotstillError as error:
        raise PotstillError(
            f"A model of type {kind!r} cannot be pruned, because potstill does not know where its heads and neurons "
            "are: give a model of another architecture."
        ) from error
    widths = located.widths
    if neurons and not widths.neurons_in:
        raise PotstillError(f"The neurons of a model of type {kind!r} cannot be removed: leave --neurons out.")
    if not heads:
        return located
    if not widths.heads_in:
        raise PotstillError(
            f"The heads of a model of type {kind!r} cannot be removed, because all its layers share what is computed "
            "for each head: leave --heads out, and remove neurons with --neurons."
        )
    for layer in located.layers:
        read = [layer.get_submodule(name).weight.shape for name in widths.heads_out]
        if len({tuple(shape) for shape in read}) > 1:
            raise PotstillError(
                f"The heads of this {kind!r} cannot be removed, because several of them share their keys and values: "
                "leave --heads out, and remove neurons with --neurons."
            )
    return located


def cut(located: Located, heads: Kept, neurons: Kept) -> PreTrainedModel:
    """Return a copy of a model without some of its heads and neurons.

    The copy is of the same class of transformers if its config can say what is left. Otherwise it is a model of
    `potstill.student.pruned`.

    Args:
        located: the model; left as it is.
        heads: what is kept.
        neurons: what is kept.

    Returns:
        A new model on the device, in the precision and in the mode of the old one, sharing no memory with it.

    Raises:
        PotstillError: no class can hold the model, because it is of no family.
    """
    model = located.model
    kept = ([one.to(model.device) for one in heads.numbers], [one.to(model.device) for one in neurons.numbers])
    state = {name: _sliced(located, name, tensor, *kept) for name, tensor in model.state_dict().items()}
    numbers = [len(one) for one in kept[0]], [len(one) for one in kept[1]]
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        made = _plain(located, *numbers, state)
        if made is None:
            if family_or_none(model.config) is None:
                raise PotstillError(
                    f"A model of type {model.config.model_type!r} can only lose the same number of heads and of "
                    f"neurons in each layer, so that its config can say them{_why_not(located, *numbers)}: give "
                    "--uniform both, and another number if it is given."
                )
            made = new_pruned(model, *numbers)
    leave_out_parts(model, made)
    made.to(device=model.device, dtype=model.dtype)
    made.load_state_dict(state)  # strict: nothing may be left over, be missing or have another shape
    return made.train(model.training)


def _sliced(located: Located, name: str, tensor: Tensor, heads: Sequence[Tensor], neurons: Sequence[Tensor]) -> Tensor:
    for axis, size in enumerate(tensor.shape):
        entries = located.entries(name, axis, size, heads, neurons)
        if entries is not None:
            tensor = tensor.index_select(axis, entries)
    return tensor


def _plain(
    located: Located, heads: Sequence[int], neurons: Sequence[int], state: dict[str, Tensor]
) -> PreTrainedModel | None:
    """Return a new model of the same class that has tensors of these shapes; None if no config of it says so."""
    model = located.model
    config = copy.deepcopy(model.config)
    if is_pruned(config) or len(set(heads)) > 1 or len(set(neurons)) > 1:
        return None
    if heads[0] != located.sizes.num_attention_heads:
        if not hasattr(config, "head_dim"):  # the width of a head would change with their number
            return None
        config.head_dim, config.num_attention_heads = located.head_size, heads[0]
        if hasattr(config, "num_key_value_heads"):
            config.num_key_value_heads = heads[0]
    if neurons[0] != sizes_of(config).intermediate_size:
        setattr(config, family_of(config).intermediate_name, neurons[0])
    try:
        made: PreTrainedModel = type(model)(config)
    except Exception:  # of many types: the class checks its config, or takes no such one
        return None
    leave_out_parts(model, made)
    shapes = {name: tensor.shape for name, tensor in made.state_dict().items()}
    return made if shapes == {name: tensor.shape for name, tensor in state.items()} else None


def _why_not(located: Located, heads: Sequence[int], neurons: Sequence[int]) -> str:
    """Return the reason of transformers against a config with these numbers, in brackets; nothing if there is none."""
    if len(set(heads)) > 1 or len(set(neurons)) > 1 or not hasattr(located.model.config, "head_dim"):
        return ""
    config = copy.deepcopy(located.model.config)
    try:
        config.head_dim, config.num_attention_heads = located.head_size, heads[0]
        if hasattr(config, "num_key_value_heads"):
            config.num_key_value_heads = heads[0]
        type(config).from_dict(config.to_dict())
    except Exception as error:  # of many types
        return f" ({first_line(error)})"
    return ""
