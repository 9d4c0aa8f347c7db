"""Fits the head of a loaded model to the labels of a task: keeps it, puts it in order, or draws it anew."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from potstill.finetuning.teacher_labels import listed
from potstill.tasks.labels import match_names

_NUMBERED = re.compile(r"label_\d+", re.IGNORECASE)


def fit_head(
    model: PreTrainedModel, report: dict[str, Any], before: Sequence[str], labels: Sequence[str], seed: int
) -> str | None:
    """Keep a head whose labels are those of the task, in the order of the task, and draw any other head anew.

    A head whose labels have no names is kept if it has as many labels as the task. So is a head for one number.

    Args:
        model: the model, with the task's labels in its config.
        report: the loading report of transformers.
        before: names of the labels that the head had in the files.
        labels: names of the task's labels; fewer than two for a number.
        seed: seed of a new head.

    Returns:
        Why a new head took the place of a trained one; None if it did not.
    """
    named = len(labels) > 1 and not _only_numbered(before)
    order = _places(before, labels) if named else [*range(len(before))]
    has, wants = _described(before), _described(labels)
    reason = f"it has {has}, and the task has {wants}"
    if order is not None and not report["mismatched_keys"]:
        if order == sorted(order):
            return None
        layer = _last_layer(model)
        if layer is not None:
            with torch.no_grad():
                for parameter in layer.parameters():
                    parameter.copy_(parameter[order])
            return None
        reason += ", and no layer of it can be put in this order"
    if named:
        _initialise(model, seed)
    head = [key for key, _ in model.named_parameters() if not key.startswith(f"{model.base_model_prefix}.")]
    return None if set(head) & {*report["missing_keys"]} else reason


def _places(before: Sequence[str], labels: Sequence[str]) -> list[int] | None:
    """Return the place of each label among those of the files; None if they are not the same names."""
    return [*range(len(labels))] if [*before] == [*labels] else match_names(before, labels)


def _only_numbered(names: Sequence[str]) -> bool:
    return all(map(_NUMBERED.fullmatch, names))


def _described(names: Sequence[str]) -> str:
    if len(names) < 2:
        return "a score"
    return f"{len(names)} labels without names" if _only_numbered(names) else f"the labels {listed(names)}"


def _outside_encoder(model: PreTrainedModel) -> list[nn.Module]:
    encoder = {id(module) for module in model.base_model.modules()}
    return [module for module in model.modules() if module is not model and id(module) not in encoder]


def _last_layer(model: PreTrainedModel) -> nn.Linear | None:
    """Return the layer with an output for each label; None if no layer, or more than one, can be it."""
    linear = [module for module in _outside_encoder(model) if isinstance(module, nn.Linear)]
    found = [layer for layer in linear if layer.out_features == model.config.num_labels]
    return found[0] if len(found) == 1 else None


def _initialise(model: PreTrainedModel, seed: int) -> None:
    """Initialise the weights outside the encoder again, as transformers initialises new ones."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        for module in _outside_encoder(model):
            for parameter in module.parameters(recurse=False):
                parameter._is_hf_initialized = False  # otherwise transformers keeps the loaded weights
            model._init_weights(module)
