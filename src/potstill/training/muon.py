"""Muon for the matrices of a model's layers, and AdamW for its other weights, as one optimiser."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.training.hardware import multiplies_bfloat16

LARGEST_STACK = 2**26
"""Elements that are orthogonalised together at most: 128 MiB in bfloat16, of which three are needed at a time."""


def muon_names(model: PreTrainedModel) -> set[str]:
    """Return the names of the weights that Muon trains: all matrices but those with a row for each word or position.

    Args:
        model: any model of transformers. Its embeddings and its projection onto the vocabulary are not in the result,
            nor are biases and the weights of LayerNorm.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    output = model.get_output_embeddings()
    if output is not None:
        tables.add(id(output.weight))
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and parameter.requires_grad and id(parameter) not in tables
    }


def grouped_names(names: Iterable[str], by_muon: Collection[str], decayed: Collection[str]) -> list[list[str]]:
    """Return the names of the parameters in each group of `MuonAdamW`.

    Args:
        names: of all parameters in training, in order.
        by_muon: those that Muon trains.
        decayed: those with weight decay.

    Returns:
        Three lists: those of Muon, those of AdamW with weight decay, and those of AdamW without.
    """
    names = list(names)
    others = [name for name in names if name not in by_muon]
    return [
        [name for name in names if name in by_muon],
        [name for name in others if name in decayed],
        [name for name in others if name not in decayed],
    ]


class StackedMuon(torch.optim.Muon):
    """`torch.optim.Muon`, which orthogonalises all matrices of one shape in one product.

    One at a time, the products of a BERT's matrices are small for a GPU. With `torch.optim.Muon` a step of a student of
    6 layers, 768 wide, took 60 ms on one H200, and 41 with AdamW. State and options are those of `torch.optim.Muon`.

    A processor without instructions for bfloat16 computes in float32. There a product of bfloat16 takes 20 to 50 times
    as long.
    """

    def __init__(self, params: Iterable[Tensor], **options: Any) -> None:
        super().__init__(params, **options)
        self._on_cpu = torch.bfloat16 if multiplies_bfloat16() else torch.float32

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Take a step. Parameters without a gradient stay as they are."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            gradients = [parameter.grad for parameter in parameters]
            for parameter in parameters:
                if "momentum_buffer" not in self.state[parameter]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            momenta = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            updates = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov's
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            for places in _stacks(parameters):
                stack = torch.stack([updates[place] for place in places])
                dtype = self._on_cpu if stack.device.type == "cpu" else torch.bfloat16
                found = orthogonalised(stack, group["ns_coefficients"], group["ns_steps"], dtype)
                rate = group["lr"] * 0.2 * max(stack.shape[1:]) ** 0.5
                chosen = [parameters[place] for place in places]
                torch._foreach_add_(chosen, list(found.to(chosen[0].dtype)), alpha=-rate)


def orthogonalised(matrices: Tensor, coefficients: Sequence[float], steps: int, dtype: torch.dtype) -> Tensor:
    """Return matrices with nearly the same singular vectors, and singular values near 1.

    Newton and Schulz's iteration with Jordan's coefficients (https://kellerjordan.github.io/posts/muon/).

    Args:
        matrices: shape (matrices, rows, columns).
        coefficients: of X, X·Xᵀ·X and (X·Xᵀ)²·X.
        steps: number of iterations.
        dtype: of the products; bfloat16 is exact enough.

    Returns:
        The same shape, in this type.
    """
    first, third, fifth = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    norms = torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True).clamp(min=1e-7)
    x = (matrices / norms).to(dtype)
    x = x.mT if tall else x
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=third, alpha=fifth), x, beta=first)
    return x.mT if tall else x


def _stacks(parameters: Sequence[Tensor]) -> list[list[int]]:
    """Return the places of parameters of one shape, in groups that need little memory."""
    shapes: dict[torch.Size, list[int]] = {}
    for place, parameter in enumerate(parameters):
        shapes.setdefault(parameter.shape, []).append(place)
    groups = []
    for shape, places in shapes.items():
        size = max(1, LARGEST_STACK // shape.numel())
        groups += [places[start : start + size] for start in range(0, len(places), size)]
    return groups


class MuonAdamW(torch.optim.Optimizer):
    """`StackedMuon` and `torch.optim.AdamW`, which share one list of groups, one state and one schedule.

    Muon's steps are scaled to the size of AdamW's (Liu et al. 2025, arXiv 2502.16982), so one learning rate and one
    weight decay serve both.

    Args:
        by_muon: matrices.
        decayed: parameters of AdamW with weight decay.
        others: parameters of AdamW without weight decay.
        lr: learning rate.
        betas: of AdamW.
        eps: of AdamW.
        weight_decay: of the matrices and of `decayed`.

    Raises:
        ValueError: one of `by_muon` is no matrix.
    """

    def __init__(
        self,
        by_muon: list[Tensor],
        decayed: list[Tensor],
        others: list[Tensor],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self._muon = StackedMuon(by_muon, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        fused = all(parameter.device.type == "cuda" for parameter in (*decayed, *others))
        self._adamw = torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=fused or None)
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {"lr": lr})
        self._share()

    def _share(self) -> None:
        self._muon.param_groups, self._adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        self._muon.state = self._adamw.state = self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # of `load_state_dict`: it replaces the groups and the state
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step of both. Parameters without a gradient stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._muon.step()
        self._adamw.step()
        return loss
