"""Computes the named losses of one batch with the model and, if its hidden states are used, the teacher."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from potstill.finetuning.objective import Losses, TaskObjective
from potstill.finetuning.several_teachers import (
    Target,
    mean_of_scores,
    mean_of_targets,
    targets_in,
)
from potstill.objective.ranking import RankingObjective
from potstill.training.graphs import Graphed

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# cuDNN's attention is left out: with a mask, its gradients are sometimes NaN if the length modulo 128 is 64:
# https://github.com/pytorch/pytorch/issues/196678 (torch 2.11, H100 and H200).
ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class TaskStep(nn.Module):
    """The module that fine-tuning trains and wraps for data parallelism.

    Args:
        model: with a head for sequence classification or question answering.
        objective: computes losses from the model's outputs.
        teacher: teacher for the loss on hidden states. It is not needed for soft targets, which are in the batch.
        record: whether batches of a repeated shape are replayed as CUDA graphs.
        class_weights: (C,) factors of the classes in the loss on the labels; None for 1.
        weights: the weight of each teacher of several; they add up to 1.
        heads: a `TeacherHeads` if each of several teachers has a head. If None, the model learns the mean of their soft
            targets.

    A batch has `input_ids`, `attention_mask` and perhaps `token_type_ids`, each (B, L); for sentences `labels`, (B,),
    or (B, C) if there are several, and perhaps `soft`, (B, C); for tags `labels`, (B, L), and perhaps `soft`,
    (B, L, C); for lists of passages `places`, (Q, K), and perhaps `labels` and `soft`, (B,); for spans
    `start_positions` and `end_positions`, (B,), `answer_mask`, (B, L), and perhaps `soft_start` and `soft_end`, (B, L).
    The token types for a teacher that takes them are `teacher_token_type_ids`, (B, L). The columns of further teachers
    have the same names with a number: `soft_2` is of the second one.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: TaskObjective | RankingObjective,
        teacher: nn.Module | None = None,
        record: bool = False,
        class_weights: Tensor | None = None,
        weights: Sequence[float] = (1.0,),
        heads: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.model = model
        self.objective = objective
        self.weights = tuple(weights)
        self.heads = heads
        # A tuple keeps it out of the module tree.
        self._teacher = () if teacher is None else (teacher.eval().requires_grad_(False),)
        self._names: tuple[str, ...] = ()
        self._graphed = Graphed(self._ordered, self) if record else None

    def forward(self, **batch: Tensor) -> Losses:
        """Return the named losses of a batch, each a float32 scalar."""
        if self._graphed is None:
            return self._losses(batch)
        self._names = tuple(batch)
        return self._graphed(*batch.values())

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Use less memory and more time; `TrainingArguments` has an option for it."""
        self.model.gradient_checkpointing_enable(**options)

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Use less memory and more time; newer `TrainingArguments` have an option for it."""
        self.model.activation_checkpointing_enable(**options)

    def _ordered(self, *tensors: Tensor) -> Losses:
        return self._losses(dict(zip(self._names, tensors, strict=True)))

    def _losses(self, batch: dict[str, Tensor]) -> Losses:
        hidden = bool(self._teacher)
        outputs = run(self.model, batch, hidden)
        targets = targets_in(batch)
        if isinstance(self.objective, RankingObjective):
            if len(targets) > 1:
                batch = batch | {"soft": mean_of_scores(targets, self.weights)}
            return self.objective(outputs.logits, batch)
        inside = batch["attention_mask"].bool()
        spans = "start_positions" in batch
        found = (outputs.start_logits, outputs.end_logits) if spans else outputs.logits
        if self.heads is None or not targets:
            losses = self._of_task(found, batch, self._mean_of(targets, batch))
        else:
            losses = self._of_task(found, batch, None)
            each = zip(self.weights, self.heads(spans), targets, strict=True)
            soft = [weight * self._of_task(logits, batch, target)["ce"] for weight, logits, target in each]
            losses["ce"] = torch.stack(soft).sum()
        for teacher in self._teacher:
            with torch.no_grad():
                expected = run(teacher, _teacher_inputs(batch), hidden)
            losses["cos"] = self.objective.hidden(outputs.hidden_states[-1], expected.hidden_states[-1], inside)
        return self.objective.sum_up(losses)

    def _mean_of(self, targets: Sequence[Target], batch: dict[str, Tensor]) -> Target | None:
        """Return the mean of the soft targets of several teachers, those of a single one unchanged, or None."""
        if len(targets) < 2:
            return targets[0] if targets else None
        assert isinstance(self.objective, TaskObjective)
        return mean_of_targets(targets, batch, self.weights, self.objective)

    def _of_task(self, found: Target, batch: dict[str, Tensor], soft: Any) -> Losses:
        """Return the losses of logits of the model: `task`, and `ce` if there are soft targets."""
        objective, weights = self.objective, self.class_weights
        assert isinstance(objective, TaskObjective)
        if isinstance(found, tuple):
            labels = batch["start_positions"], batch["end_positions"]
            inside = batch["attention_mask"].bool()
            return objective.span(found, labels, inside, batch["answer_mask"].bool(), soft)
        of_kind = {"scores": objective.sentence, "sets": objective.labels, "tags": objective.tags}
        kind = "scores" if batch["labels"].dim() == 1 else "sets" if batch["labels"].is_floating_point() else "tags"
        return of_kind[kind](found, batch["labels"], soft, weights)


def run(model: nn.Module, batch: dict[str, Tensor], hidden_states: bool = False) -> Any:
    """Run a model on the inputs in a batch that it takes."""
    parameters = _parameters(type(model).forward)
    inputs = {name: batch[name] for name in INPUTS if name in batch and name in parameters}
    with sdpa_kernel(ATTENTION):
        return model(**inputs, output_hidden_states=hidden_states)


def _teacher_inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    if "teacher_token_type_ids" in batch:
        inputs["token_type_ids"] = batch["teacher_token_type_ids"]
    return inputs


_known: dict[Callable[..., Any], frozenset[str]] = {}


def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    if function not in _known:  # cached because it is needed for every batch
        _known[function] = frozenset(inspect.signature(function).parameters)
    return _known[function]
