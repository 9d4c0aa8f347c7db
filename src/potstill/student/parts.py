"""Where the attention heads and the feed-forward neurons of a model lie, and which entries of tensors are theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from potstill.errors import PotstillError
from potstill.student.family import family_of
from potstill.student.interface import LayerWidths
from potstill.student.sizes import Sizes, sizes_of


@dataclass(frozen=True)
class Located:
    """A model, and where its heads and neurons lie.

    Attributes:
        model: with or without a head.
        prefix: what the name of every tensor of a layer begins with, up to the layer's number.
        layers: of the model, from the first to the last.
        widths: the modules of a layer in which heads and neurons lie.
        sizes: of the model.
    """

    model: PreTrainedModel
    prefix: str
    layers: list[nn.Module]
    widths: LayerWidths
    sizes: Sizes

    @property
    def head_size(self) -> int:
        """Width of a head."""
        stated = getattr(self.model.config, "head_dim", None)
        return stated or self.sizes.hidden_size // self.sizes.num_attention_heads

    @property
    def heads(self) -> list[int]:
        """Number of heads of each layer; of a pruned model each may have another number."""
        if not self.widths.heads_in:
            return [self.sizes.num_attention_heads] * len(self.layers)
        return [
            incoming_features(layer.get_submodule(name)) // self.head_size
            for layer in self.layers
            for name in self.widths.heads_in[:1]
        ]

    @property
    def neurons(self) -> list[int]:
        """Number of neurons of each layer."""
        return [
            incoming_features(layer.get_submodule(name)) for layer in self.layers for name in self.widths.neurons_in[:1]
        ]

    def entries(
        self, name: str, axis: int, size: int, heads: Sequence[Tensor], neurons: Sequence[Tensor]
    ) -> Tensor | None:
        """Return the entries to keep along an axis of a tensor that goes over heads or neurons; None for another axis.

        Args:
            name: of the tensor.
            axis: of the tensor.
            size: entries along the axis.
            heads: for each layer, the numbers of the heads to keep, in ascending order.
            neurons: likewise.
        """
        if not name.startswith(self.prefix):
            return None
        number, _, rest = name.removeprefix(self.prefix).partition(".")
        module, _, kind = rest.rpartition(".")
        widths, layer = self.widths, int(number)
        of_inputs = 0 if module and isinstance(self.layers[layer].get_submodule(module), Conv1D) else 1
        goes_over_outputs = kind == "bias" or axis != of_inputs
        of_heads, of_neurons = (
            (widths.heads_out, widths.neurons_out) if goes_over_outputs else (widths.heads_in, widths.neurons_in)
        )
        if module in of_heads:
            within = torch.arange(self.head_size, device=heads[layer].device)
            once = (heads[layer][:, None] * self.head_size + within).flatten()
            period = self.heads[layer] * self.head_size
        elif module in of_neurons:
            once, period = neurons[layer], self.neurons[layer]
        else:
            return None
        # Of a fused module, the same entries of each part.
        return torch.cat([once + start for start in range(0, size, period)])


def locate(model: PreTrainedModel, widths: LayerWidths | None = None) -> Located:
    """Find the heads and the neurons of a model.

    Args:
        model: with or without a head.
        widths: where they lie in a layer; as its family says if None.

    Raises:
        PotstillError: its family does not say where they lie, or the model has no such modules.
    """
    family = family_of(model)
    widths = family.widths if widths is None else widths
    prefix = family.prefix_in(model)
    if model.base_model is model:
        prefix = prefix.removeprefix(f"{model.base_model_prefix}.")
    try:
        layers = list(model.get_submodule(prefix.rstrip(".")).children())
        names = () if widths is None else widths.heads_out + widths.heads_in + widths.neurons_out + widths.neurons_in
        for layer in layers:
            for name in names:
                layer.get_submodule(name)
    except AttributeError:
        widths = None
    if widths is None:
        raise PotstillError(
            f"a model of type {model.config.model_type!r} cannot be made narrower, because its family does not say "
            "where its heads and neurons are: leave its width as it is, or start from random weights "
            "(initialise: random)"
        )
    return Located(model, prefix, layers, widths, sizes_of(model.config))


def incoming_features(module: nn.Module) -> int:
    """Return how many numbers a linear layer reads of a token."""
    return int(module.weight.shape[0 if isinstance(module, Conv1D) else 1])
