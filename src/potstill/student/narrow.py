"""A narrower model out of a wide one: its most important dimensions, attention heads and neurons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from potstill.errors import PotstillError
from potstill.student.importance import Importance, at_random, by_activations, by_weights
from potstill.student.parts import Located, locate
from potstill.student.pruned import check_uniform
from potstill.student.sizes import Sizes, wanted_sizes, with_sizes
from potstill.student.tensors import leave_out_parts

NarrowBy = Literal["importance", "random"]


def narrow(
    model: PreTrainedModel,
    hidden_size: int | None = None,
    num_attention_heads: int | None = None,
    intermediate_size: int | None = None,
    narrow_by: NarrowBy = "importance",
    blocks: Tensor | None = None,
    seed: int = 0,
) -> PreTrainedModel:
    """A copy of `model` with fewer dimensions, attention heads and feed-forward neurons, in their old order.

    The dimensions of the hidden states are the same ones everywhere, because all layers add to the same hidden states.
    Heads and neurons are chosen in each layer by itself. Every tensor keeps the entries of what is kept. Nothing
    makes up for what is left out: a LayerNorm takes its mean and variance over fewer dimensions, so even the outputs
    of dimensions that are kept change, and the model needs training. Source of the idea: Muralidharan et al. 2024,
    "Compact Language Models via Pruning and Knowledge Distillation", arXiv 2407.14679.

    Args:
        model: Of a known family, with or without a head; left as it is.
        hidden_size: Width of the result; see `wanted_sizes` for what follows from sizes that are not given.
        num_attention_heads: Heads of each layer.
        intermediate_size: Neurons of each layer.
        narrow_by: `"importance"` keeps the most important parts, `"random"` keeps parts chosen by `seed`.
        blocks: (B, L) int64, some token ids without padding. Importance is measured on them: see `by_activations`.
            Without them it is computed from the weights: see `by_weights`.
        seed: Of the random choice.

    Returns:
        A new model on the device, in the precision and in the mode (training or evaluation) of `model`. It shares no
        memory with it.

    Raises:
        PotstillError: There is no such size, the family does not say where its heads and neurons are, or `narrow_by`
            is neither of the two.
    """
    if narrow_by not in ("importance", "random"):
        raise PotstillError(f"narrow_by is {narrow_by!r}: it must be 'importance' or 'random'")
    check_uniform(model.config)
    located = locate(model)
    sizes = wanted_sizes(model.config, hidden_size, num_attention_heads, intermediate_size)
    if narrow_by == "random":
        importance = at_random(located, seed)
    else:
        importance = by_weights(located) if blocks is None else by_activations(located, blocks)
    kept = _Kept.most_important(importance, sizes)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        narrower = type(model)(with_sizes(model.config, sizes))
    leave_out_parts(model, narrower)
    narrower.to(device=model.device, dtype=model.dtype)
    state, shapes = model.state_dict(), {name: tensor.shape for name, tensor in narrower.state_dict().items()}
    if state.keys() != shapes.keys():
        raise PotstillError(
            f"a {type(model).__name__} cannot be made {sizes.hidden_size} wide, because it has other tensors at this "
            "width: take another hidden_size"
        )
    narrower.load_state_dict(
        {name: _sliced(located, kept, sizes, name, tensor, shapes[name]) for name, tensor in state.items()}
    )
    return narrower.train(model.training)


@dataclass(frozen=True)
class _Kept:
    """The parts that are kept, by their old numbers in ascending order; heads and neurons for each layer."""

    dimensions: Tensor
    heads: list[Tensor]
    neurons: list[Tensor]

    @classmethod
    def most_important(cls, importance: Importance, sizes: Sizes) -> _Kept:
        def best(scores: Tensor, number: int) -> Tensor:
            order = scores.argsort(descending=True, stable=True)  # of equals, the first ones
            return order[:number].sort().values

        return cls(
            best(importance.dimensions, sizes.hidden_size),
            [best(scores, sizes.num_attention_heads) for scores in importance.heads],
            [best(scores, sizes.intermediate_size) for scores in importance.neurons],
        )


def _sliced(located: Located, kept: _Kept, sizes: Sizes, name: str, tensor: Tensor, shape: torch.Size) -> Tensor:
    """Return what the narrower model has of a tensor, whose shape there is `shape`."""
    for axis, new in enumerate(shape):
        old = tensor.shape[axis]
        if old == new:
            continue
        entries = located.entries(name, axis, old, kept.heads, kept.neurons)
        if entries is None and (old, new) == (located.sizes.hidden_size, sizes.hidden_size):
            entries = kept.dimensions
        if entries is None or len(entries) != new:
            raise PotstillError(
                f"a {type(located.model).__name__} cannot be made narrower, because its tensor {name} depends on the "
                "width in a way that is not known: leave its width as it is"
            )
        tensor = tensor.index_select(axis, entries.to(tensor.device))
    return tensor
