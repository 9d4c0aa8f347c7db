"""Muon for the matrices of a model's layers, and AdamW for its other weights, as one optimiser."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


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


class MuonAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` and `torch.optim.AdamW`, which share one list of groups, one state and one schedule.

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
        self._muon = torch.optim.Muon(by_muon, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
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
