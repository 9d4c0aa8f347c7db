"""LayerNorm in float32 under the autocast of a CPU."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def use_float32_norms(model: nn.Module) -> None:
    """Make every LayerNorm of a model compute in the type of its weights.

    Autocast leaves a LayerNorm the type of its input. A CPU's kernels sum the gradients of a 16-bit LayerNorm in 16
    bits. There a summand is lost when the sum is some hundred times larger. With thousands of tokens, a bias loses most
    of its gradient. Most LayerNorms of a model follow a residual sum in float32. Those of a head, and those after
    ELECTRA's projection of its embeddings, do not.

    Args:
        model: gets a hook before each of its LayerNorms. A second call adds none.
    """
    for module in model.modules():
        norm = isinstance(module, nn.LayerNorm) and module.weight is not None
        if norm and _cast_input not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_cast_input)


def _cast_input(norm: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    hidden, *others = inputs
    assert isinstance(norm.weight, Tensor)
    return hidden.to(norm.weight.dtype), *others
