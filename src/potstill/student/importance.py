"""How much each dimension, attention head and neuron of a model matters, by its activations or by its weights alone."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from potstill.student.parts import Located

BLOCKS_AT_ONCE = 4


@dataclass(frozen=True)
class Importance:
    """A score for each part of a model. A higher score means that the part matters more.

    Attributes:
        dimensions: (H,), of the hidden states. All layers share them.
        heads: (A,) for each layer.
        neurons: (I,) for each layer.
    """

    dimensions: Tensor
    heads: list[Tensor]
    neurons: list[Tensor]


@torch.no_grad()
def by_weights(located: Located) -> Importance:
    """Score the parts of a model by its weights alone.

    - A dimension: the root mean square that the LayerNorms give it, sqrt(weight² + bias²), mean over the LayerNorms.
    - A head: the Frobenius norm of the product of its value matrix and its output matrix.
    - A neuron: the norm of its incoming weights times the norm of its outgoing weights.
    """
    heads, neurons = [], []
    width = located.sizes.num_attention_heads * located.head_size
    for layer in located.layers:
        # The values come last, in a module of their own or as the last part of a fused one.
        value = incoming(layer.get_submodule(located.widths.heads_out[-1]))[-width:]
        output = sum(outgoing(layer.get_submodule(name)) for name in located.widths.heads_in)
        value, output = (matrix.double().unflatten(0, (-1, located.head_size)) for matrix in (value, output))
        # ‖V O‖² is the trace of (VᵀV)(O Oᵀ), with V and O of (d, H) and (d, H) for a head of width d.
        squares = torch.einsum("aij,aji->a", value @ value.mT, output @ output.mT)
        heads.append(squares.clamp(min=0).sqrt())
        score = torch.ones(located.sizes.intermediate_size, dtype=torch.float64, device=squares.device)
        for name in located.widths.neurons_out:
            parts = incoming(layer.get_submodule(name)).double().unflatten(0, (-1, located.sizes.intermediate_size))
            score = score * parts.norm(dim=-1).prod(0)
        for name in located.widths.neurons_in:
            score = score * outgoing(layer.get_submodule(name)).double().norm(dim=1)
        neurons.append(score)
    found = []
    for norm in layer_norms(located):
        scale = norm.weight.double().square() + (0 if norm.bias is None else norm.bias.double().square())
        found.append(scale.sqrt())
    return Importance(torch.stack(found).mean(0), heads, neurons)


@torch.no_grad()
def by_activations(located: Located, blocks: Tensor) -> Importance:
    """Score the parts of a model by what it computes for some text (Muralidharan et al. 2024, arXiv 2407.14679).

    - A dimension: mean over tokens of |LayerNorm output|, then mean over the LayerNorms of the layers and embeddings.
    - A head: mean over tokens of the norm of what it adds to the hidden states.
    - A neuron: mean over tokens of |activation|, times the norm of its outgoing weights.

    The paper scores a head by the norm of its mixed values, and a neuron by its activation. Here both are multiplied by
    the weights that read them, because a large activation that nothing reads does not matter.

    Args:
        located: the model. Its mode (training or evaluation) stays.
        blocks: (B, L) int64, token ids without padding.
    """
    sums: dict[Any, Tensor | float] = defaultdict(float)
    handles = [
        norm.register_forward_hook(_adding(sums, norm, lambda output: output.abs())) for norm in layer_norms(located)
    ]
    for number, layer in enumerate(located.layers):
        for name in located.widths.heads_in:
            matrix = outgoing(layer.get_submodule(name)).unflatten(0, (-1, located.head_size))  # (A, d, H)
            grams = matrix @ matrix.mT
            handles.append(
                layer.get_submodule(name).register_forward_pre_hook(
                    _adding(sums, ("heads", number), lambda mixed, grams=grams: _contributions(mixed, grams))
                )
            )
        for name in located.widths.neurons_in:
            norms = outgoing(layer.get_submodule(name)).norm(dim=1)
            handles.append(
                layer.get_submodule(name).register_forward_pre_hook(
                    _adding(sums, ("neurons", number), lambda active, norms=norms: active.abs() * norms)
                )
            )
    model, was_training = located.model, located.model.training
    try:
        for some in blocks.to(model.device).split(BLOCKS_AT_ONCE):
            model.eval().base_model(input_ids=some)  # without the vocabulary
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    # All blocks are equally long, so that sums rank as means do.
    depth = len(located.layers)
    ran = [sums[norm] for norm in layer_norms(located) if norm in sums]
    return Importance(
        torch.stack(ran).mean(0) / blocks.numel(),
        [sums["heads", number] / blocks.numel() for number in range(depth)],
        [sums["neurons", number] / blocks.numel() for number in range(depth)],
    )


def at_random(located: Located, seed: int) -> Importance:
    """Score the parts of a model at random, by the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    sizes, depth = located.sizes, len(located.layers)

    def scores(number: int) -> Tensor:
        return torch.rand(number, generator=generator, dtype=torch.float64)

    return Importance(
        scores(sizes.hidden_size),
        [scores(sizes.num_attention_heads) for _ in range(depth)],
        [scores(sizes.intermediate_size) for _ in range(depth)],
    )


def layer_norms(located: Located) -> list[nn.LayerNorm]:
    """Return the LayerNorms over hidden states, those of the language-model head included."""
    shape = (located.sizes.hidden_size,)
    return [
        module
        for module in located.model.modules()
        if isinstance(module, nn.LayerNorm) and module.normalized_shape == shape and module.weight is not None
    ]


def incoming(module: nn.Module) -> Tensor:
    """Return the weights (out, in) of a linear layer, with its bias as one more column."""
    weight = module.weight.T if isinstance(module, Conv1D) else module.weight
    return weight if module.bias is None else torch.cat([weight, module.bias[:, None]], dim=1)


def outgoing(module: nn.Module) -> Tensor:
    """Return the weights (in, out) of a linear layer."""
    return module.weight if isinstance(module, Conv1D) else module.weight.T


def _contributions(mixed: Tensor, grams: Tensor) -> Tensor:
    """Return (..., A): the norm of what each head adds to the hidden states.

    Args:
        mixed: (..., A · d), the mixed values of the heads.
        grams: (A, d, d), O Oᵀ of the output matrix O (d, H) of each head: ‖x O‖² = x O Oᵀ xᵀ.
    """
    split = mixed.unflatten(-1, grams.shape[:2])
    return torch.einsum("...ad,ade,...ae->...a", split, grams, split).clamp(min=0).sqrt()


def _adding(sums: dict[Any, Any], key: Any, of: Any) -> Any:
    """Return a hook that adds up, over all tokens, a function of a module's output, or of its input before it runs."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | None = None) -> None:
        found = of(inputs[0] if output is None else output)
        sums[key] = sums[key] + found.double().flatten(0, -2).sum(0)

    return hook
