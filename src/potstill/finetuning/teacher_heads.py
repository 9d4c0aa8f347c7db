"""A head for each task teacher, beside the head that learns the labels (Yang et al. 2019, arXiv 1910.08381)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from potstill.errors import PotstillError
from potstill.finetuning.rows import Rows
from potstill.finetuning.several_teachers import Target
from potstill.finetuning.step import run


class TeacherHeads(nn.Module):
    """Linear heads beside the last layer of a model. All of them read what that layer reads.

    They are no part of the model, so that it can be saved and loaded as an ordinary one. After the training `fold`
    makes its last layer the mean of all heads. The mean of linear layers is a linear layer, so its logits are the means
    of the logits of all heads.

    Args:
        last: the last layer of the model, which gives its logits. It becomes the head that learns the labels.
        weights: one for each teacher; they add up to 1.
        learns_labels: whether `last` learns from labels. If it does not, the mean leaves it out.
    """

    def __init__(self, last: nn.Linear, weights: Sequence[float], learns_labels: bool = True) -> None:
        super().__init__()
        self.heads = nn.ModuleList(copy.deepcopy(last) for _ in weights)
        self.weights = tuple(weights)
        self.learns_labels = learns_labels
        self._last = (last,)  # a tuple keeps it out of the module tree
        self._input: Tensor | None = None
        self._hook = last.register_forward_pre_hook(self._keep)

    @classmethod
    def on(cls, model: PreTrainedModel, rows: Rows, weights: Sequence[float], learns_labels: bool) -> TeacherHeads:
        """Find the last layer of a model by running it on the first of some rows, and add the heads to it.

        Raises:
            PotstillError: the logits of the model are not the output of a linear layer.
        """
        seen: list[tuple[nn.Linear, Tensor]] = []

        def note(module: Any, _: Any, output: Tensor) -> None:
            seen.append((module, output))

        device, training = next(model.parameters()).device, model.training
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        hooks = [module.register_forward_hook(note) for module in linear]
        try:
            batch = {name: tensor.to(device) for name, tensor in rows.__getitems__([0]).items()}
            with torch.no_grad():
                outputs = run(model.eval(), batch)
        finally:
            model.train(training)
            for hook in hooks:
                hook.remove()
        logits = outputs.logits if "logits" in outputs else torch.stack([outputs.start_logits, outputs.end_logits], -1)
        for module, output in reversed(seen):
            if output.shape == logits.shape and torch.equal(output, logits):
                return cls(module, weights, learns_labels)
        raise PotstillError(
            "--teacher_heads separate needs a model whose logits are the output of a linear layer, and those of a "
            f"{model.config.model_type} are not: give --teacher_heads average."
        )

    def forward(self, spans: bool) -> list[Target]:
        """Return the logits of each teacher's head for the inputs that the model has just read.

        Args:
            spans: whether they are start and end logits, which are returned as pairs.
        """
        given, self._input = self._input, None  # a kept tensor would keep the graph of its computation
        assert given is not None
        found = [head(given) for head in self.heads]
        return [(logits[..., 0], logits[..., 1]) for logits in found] if spans else found

    @contextmanager
    def folded(self) -> Iterator[None]:
        """Make the last layer the mean of all heads in the body, for a score amid the training."""
        parameters = list(self._last[0].parameters())
        before = [parameter.detach().clone() for parameter in parameters]
        self._set_mean()
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(parameters, before, strict=True):
                    parameter.copy_(value)

    def fold(self) -> None:
        """Make the last layer the mean of all heads, and detach them from the model.

        Raises:
            PotstillError: a weight of a head is not a finite number.
        """
        if not all(torch.isfinite(parameter).all() for parameter in self.parameters()):
            raise PotstillError(
                "A weight of a teacher's head is not a finite number: start again with a lower --learning_rate."
            )
        self._set_mean()
        self._hook.remove()

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of the head of the labels in the mean, and that of each teacher's head.

        With equal weights all heads have the same share.
        """
        count = len(self.weights)
        if not self.learns_labels:
            return (0.0, *self.weights)
        return (1 / (count + 1), *(count / (count + 1) * weight for weight in self.weights))

    @torch.no_grad()
    def _set_mean(self) -> None:
        layers = [self._last[0], *self.heads]
        for values in zip(*(layer.parameters() for layer in layers), strict=True):
            pairs = zip(self.shares, values, strict=True)
            values[0].copy_(torch.stack([share * value.double() for share, value in pairs]).sum(dim=0))

    def _keep(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._input = inputs[0]
