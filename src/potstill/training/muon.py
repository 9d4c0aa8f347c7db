"""Muon for the matrices inside a model's layers, and AdamW for all other parameters, as one optimiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.775, 2.0315)
"""Of the Newton-Schulz iteration (Jordan et al. 2024, "Muon"). They bring singular values close to 1, not exactly to 1,
in few iterations."""
SCALE = 0.2
"""Root mean square of the entries of an update. That of AdamW's updates is about this, so both can share one learning
rate and one weight decay (Liu et al. 2025, "Muon is Scalable for LLM Training")."""


class Muon(torch.optim.AdamW):
    """AdamW whose parameter groups with `muon` true hold matrices and get orthogonalised updates.

    The update of a matrix is the orthogonal factor of its gradients' running mean, so all of its directions are equally
    long. Matrices of one shape are computed together.

    Args:
        groups: as for AdamW; each has the entry `muon`.
        options: as for AdamW.
    """

    param_groups: list[dict[str, Any]]

    def __init__(self, groups: list[dict[str, Any]], **options: Any) -> None:
        super().__init__(groups, **options)
        # Only AdamW's fused kernel could unscale the gradients of float16, so the gradient scaler has to do it before.
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; see `torch.optim.Optimizer.step`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["muon"]]
        try:
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if group["muon"]:
                self._step_matrices(group)
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        by_shape: dict[tuple[torch.Size, torch.device], list[Tensor]] = {}
        for matrix in group["params"]:
            if matrix.grad is not None:
                by_shape.setdefault((matrix.shape, matrix.device), []).append(matrix)
        for (shape, _), matrices in by_shape.items():
            for matrix in matrices:
                if not self.state[matrix]:
                    # AdamW looks for a number of steps in the state of every parameter when it loads a checkpoint.
                    self.state[matrix]["step"] = torch.zeros((), device=matrix.device)
                    self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
                self.state[matrix]["step"] += 1
            gradients = [matrix.grad for matrix in matrices]
            means = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
            torch._foreach_lerp_(means, gradients, 1 - MOMENTUM)
            ahead = torch.stack(torch._foreach_lerp(gradients, means, MOMENTUM))  # Nesterov
            updates = orthogonalised(ahead).to(matrices[0].dtype)
            torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(matrices, list(updates.unbind()), alpha=-group["lr"] * SCALE * max(shape) ** 0.5)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Return about U Vᵀ for each of the matrices U S Vᵀ of shape (N, R, C), by the Newton-Schulz iteration.

    On a GPU it is computed in bfloat16.
    """
    flat = matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT
    found = flat / flat.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-30)
    found = found.bfloat16() if found.is_cuda else found
    first, third, fifth = COEFFICIENTS
    for _ in range(ITERATIONS):
        squared = found @ found.mT
        found = torch.baddbmm(
            found, torch.baddbmm(squared, squared, squared, beta=third, alpha=fifth), found, beta=first
        )
    return found if flat is matrices else found.mT
