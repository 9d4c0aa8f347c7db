"""Running a model of any architecture as a whole, while its layers are watched or its projection left out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel


def layer_lists(model: PreTrainedModel) -> list[str]:
    """Return the names of the lists with as many modules as the config has layers, without those inside of others."""
    found: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and len(module) == model.config.num_hidden_layers and not inside:
            found.append(name)
    return found


def run(model: PreTrainedModel, input_ids: Tensor) -> Any:
    """Return the output of a model on (B, L) ids without padding, which keeps no keys and values."""
    takes_cache = "use_cache" in inspect.signature(model.forward).parameters
    options = {"use_cache": False} if takes_cache else {}
    return model(input_ids=input_ids, return_dict=True, **options)


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let a module compute something else for the time."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


class Watched(nn.Module):
    """Stands in the place of a layer and notes what it is given and what it makes.

    A hook would be lost where a layer is compiled, and would see no gradient where it is run again in the backward
    pass. All that is asked of this module is asked of the layer.
    """

    given: Tensor
    made: Tensor

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the layer makes of what it is given."""
        made = self.layer(*args, **kwargs)
        self.given = args[0] if args else kwargs["hidden_states"]
        self.made = made if isinstance(made, Tensor) else made[0]
        return made


@contextmanager
def watched(layers: nn.ModuleList, numbers: set[int]) -> Iterator[dict[int, Watched]]:
    """Note what these layers are given and make while a model is run."""
    seen = {number: Watched(layers[number]) for number in numbers}
    try:
        for number, stand_in in seen.items():
            layers[number] = stand_in
        yield seen
    finally:
        for number, stand_in in seen.items():
            layers[number] = stand_in.layer
