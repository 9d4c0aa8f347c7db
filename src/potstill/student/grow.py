"""A deeper model made by stacking copies of a shallower one's layers (Gong et al. 2019)."""

import copy
from collections.abc import Collection, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from potstill.errors import PotstillError
from potstill.student.family import family_of
from potstill.student.pruned import check_uniform
from potstill.student.tensors import cast_parameters
from potstill.wording import counted


def grow(model: PreTrainedModel, num_hidden_layers: int) -> PreTrainedModel:
    """A copy of `model` that is `num_hidden_layers` deep: its layers, over again from the first, until it is full.

    Layer i of the result is a copy of layer i mod depth, or of what the family has for this place
    (`Family.grown_from`); embeddings, head and everything else are copies too. Source: "Efficient Training of BERT by
    Progressively Stacking", Gong et al. 2019, where each step doubles the depth.

    Args:
        model: A model of a known family; left as it is.
        num_hidden_layers: Depth of the result, at least the depth of `model`.

    Returns:
        A new model on the device, in the precision and in the mode (training or evaluation) of `model`, sharing no
        memory with it. Switches of a run, such as gradient checkpointing, are not carried over.

    Raises:
        PotstillError: `num_hidden_layers` is below the depth of `model`, or the model is of no known family.
    """
    check_uniform(model.config)
    family = family_of(model)
    depth = model.config.num_hidden_layers
    if num_hidden_layers < depth:
        raise PotstillError(
            f"a model of {counted(depth, 'layer')} cannot grow to {num_hidden_layers}: give {depth} or more"
        )
    config = family.grown_config(model.config, num_hidden_layers)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        grown = type(model)(config)
    cast_parameters(grown.to(model.device), model.dtype)
    state = model.state_dict()
    grown.load_state_dict({name: state[_original(name, model, state)] for name in grown.state_dict()})
    return grown.train(model.training)


def grow_optimizer_state(
    state: dict[str, Any],
    old_names: Sequence[Sequence[str]],
    new_names: Sequence[Sequence[str]],
    model: PreTrainedModel,
) -> dict[str, Any]:
    """The optimizer's state for a grown model: the moments and step counts of a copied layer are copies as well.

    Args:
        state: `state_dict()` of a torch optimizer over the parameters of `model`, before it grew.
        old_names: For each parameter group of that optimizer, the names of its parameters in order. Names may carry
            the prefix of a module around the model.
        new_names: The same for the optimizer of the grown model: as many groups, with the options of the old ones.
        model: The model before it grew.

    Returns:
        What `load_state_dict` of the grown model's optimizer takes. It shares no memory with `state`, nor do two
        parameters copied from the same one. A parameter whose original has no state yet has none either.

    Raises:
        ValueError: The names do not match the groups of `state`, or a new parameter is no copy of an old one.
    """
    groups = state["param_groups"]
    if [len(group["params"]) for group in groups] != [len(names) for names in old_names]:
        raise ValueError("old_names does not name every parameter of every group of the optimizer's state")
    if len(new_names) != len(groups):
        raise ValueError(f"the optimizer's state has {len(groups)} parameter groups and new_names has {len(new_names)}")
    index_of = {
        name: index
        for group, names in zip(groups, old_names, strict=True)
        for index, name in zip(group["params"], names, strict=True)
    }
    grown: dict[str, Any] = {"state": {}, "param_groups": []}
    next_index = 0
    for group, names in zip(groups, new_names, strict=True):
        indices = list(range(next_index, next_index + len(names)))
        next_index += len(names)
        options = copy.deepcopy({option: value for option, value in group.items() if option != "params"})
        if "param_names" in options:
            options["param_names"] = list(names)
        grown["param_groups"].append({**options, "params": indices})
        for index, name in zip(indices, names, strict=True):
            original = _original(name, model, index_of)
            if original not in index_of:
                raise ValueError(f"no parameter of the old optimizer is the original of {name}")
            # Optimizers update these in place and load_state_dict need not copy them: each parameter has its own.
            moments = state["state"].get(index_of[original])
            if moments is not None:
                grown["state"][index] = copy.deepcopy(moments)
    return grown


def _original(name: str, model: PreTrainedModel, known: Collection[str]) -> str:
    """Return the name of the tensor that a tensor of the grown model is a copy of.

    Args:
        name: of the tensor of the grown model; it may carry the prefix of a module around the model.
        model: as it was before it grew.
        known: the names of that model's tensors, with the same prefix. A tensor that the copied layer has not is a copy
            of the one that does its work: see `Family.stand_ins`.
    """
    family = family_of(model)
    before, prefix, after = name.partition(family.prefix_in(model))
    if not prefix:
        return name
    place, _, rest = after.partition(".")
    original = f"{prefix}{family.grown_from(model.config, int(place))}.{rest}"
    if before + original not in known:
        module, _, tensor = original.rpartition(".")
        original = f"{family.stand_ins.get(module, module)}.{tensor}"
    return before + original
