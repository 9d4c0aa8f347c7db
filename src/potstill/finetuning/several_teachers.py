"""Soft targets of several task teachers: their columns in a batch, and their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.finetuning.objective import TaskObjective
from potstill.objective.ensemble import Ensemble

Target: TypeAlias = Tensor | tuple[Tensor, Tensor]
"""Logits, or the start and the end logits of spans."""


def column(name: str, number: int) -> str:
    """Return the name of a column with the soft targets of a teacher; the first teacher, 0, adds nothing to it."""
    return name if number == 0 else f"{name}_{number + 1}"


def targets_in(batch: Mapping[str, Tensor]) -> list[Target]:
    """Return the soft targets of each teacher in a batch or in columns of rows; none without a teacher."""
    found: list[Target] = []
    while column("soft", len(found)) in batch:
        found.append(batch[column("soft", len(found))])
    while column("soft_start", len(found)) in batch:
        start, end = (batch[column(name, len(found))] for name in ("soft_start", "soft_end"))
        found.append((start, end))
    return found


def mean_of_targets(
    targets: Sequence[Target], batch: Mapping[str, Tensor], weights: Sequence[float], objective: TaskObjective
) -> Target:
    """Return the mean of the soft targets of several teachers, as logits that can take the place of one teacher's.

    Probabilities are averaged, at the temperature of the loss; or logits, if the loss compares logits. Of a regression
    the scores are averaged.

    Args:
        targets: of each teacher.
        batch: the batch that they are of, whose labels tell the kind of the task: see `TaskStep`.
        weights: one for each teacher; they add up to 1.
        objective: the losses, with their temperature, and the positions of spans that they compare.
    """
    temperature = objective.temperature
    pairs = [target for target in targets if isinstance(target, tuple)]
    each = [target for target in targets if isinstance(target, Tensor)]
    if objective.soft_loss == "mse":
        if not pairs:
            return mean_of_scores(each, weights)
        start, end = (mean_of_scores(logits, weights) for logits in zip(*pairs, strict=True))
        return start, end
    if pairs:
        positions = batch["answer_mask" if objective.soft_positions == "answer" else "attention_mask"].bool()
        start, end = (mean_of_classes(logits, weights, temperature, positions) for logits in zip(*pairs, strict=True))
        return start, end
    if not batch["labels"].is_floating_point():
        return mean_of_classes(each, weights, temperature)
    several = batch["labels"].dim() == 2
    return mean_of_labels(each, weights, temperature) if several else mean_of_scores(each, weights)


def mean_of_classes(
    each: Sequence[Tensor], weights: Sequence[float], temperature: float, positions: Tensor | None = None
) -> Tensor:
    """Return logits whose softmax at a temperature is the weighted mean of the teachers' softmaxes at it.

    They are T · log Σ wᵢ softmax(zᵢ / T): the ensemble of Hinton et al. 2015, section 3.

    Args:
        each: (…, C) logits of each teacher; for spans (B, L), whose classes are the positions.
        weights: one for each teacher; they add up to 1.
        temperature: T.
        positions: bool in the shape of the logits, True for the classes that the softmax is over; None for all. The
            result is 0 at the others.
    """
    outside = torch.zeros_like(each[0], dtype=torch.bool) if positions is None else ~positions
    scaled = [(_exact(one) / temperature).masked_fill(outside, -torch.inf).log_softmax(dim=-1) for one in each]
    return (temperature * Ensemble(tuple(weights)).log_probabilities(scaled)).masked_fill(outside, 0.0)


def mean_of_labels(each: Sequence[Tensor], weights: Sequence[float], temperature: float) -> Tensor:
    """Return logits whose sigmoid at a temperature is the weighted mean of the teachers' sigmoids at it.

    Args:
        each: (B, C) logits of each teacher, of labels that do not exclude each other.
        weights: one for each teacher; they add up to 1.
        temperature: T.
    """
    ensemble, scaled = Ensemble(tuple(weights)), [_exact(one) / temperature for one in each]
    present = ensemble.log_probabilities([F.logsigmoid(one) for one in scaled])
    absent = ensemble.log_probabilities([F.logsigmoid(-one) for one in scaled])
    return temperature * (present - absent)


def mean_of_scores(each: Sequence[Target], weights: Sequence[float]) -> Tensor:
    """Return the weighted mean of the teachers' scores, in their shape."""
    scores = [_exact(one) for one in each if isinstance(one, Tensor)]
    return torch.stack([weight * one for weight, one in zip(weights, scores, strict=True)]).sum(dim=0)


def _exact(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
