"""Renaming the tensors of a state dict, and choosing layers among them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


def renamed(state: Mapping[str, Tensor], modules: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors of each module of `state` that `modules` names, under the module's new name.

    Args:
        state: Tensors by name.
        modules: Old module name → new module name. Modules not named are left out.
    """
    return {
        new + name.removeprefix(old): tensor
        for old, new in modules.items()
        for name, tensor in state.items()
        if name.startswith(f"{old}.")
    }


def with_layers(state: Mapping[str, Tensor], layer_prefix: str, layers: Sequence[int]) -> dict[str, Tensor]:
    """`state` with its layers replaced: layer `i` of the result is layer `layers[i]` of `state`."""
    chosen = {name: tensor for name, tensor in state.items() if not name.startswith(layer_prefix)}
    for new, old in enumerate(layers):
        chosen |= renamed(state, {f"{layer_prefix}{old}": f"{layer_prefix}{new}"})
    return chosen


def cast_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert the parameters of a model in place, as `Module.to` does, but leave its buffers.

    Buffers hold what is computed from the config, such as the frequencies of rotary positions. In 16 bits the angle of
    a distant position would be wrong by more than a radian.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def leave_out_parts(like: nn.Module, made: nn.Module) -> None:
    """Set to None those parts of a new model that another of its class lacks, such as a pooler."""
    for name, part in list(made.named_children()):
        if getattr(like, name, part) is None:
            setattr(made, name, None)
