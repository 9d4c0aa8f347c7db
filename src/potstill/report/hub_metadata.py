"""The header of a model card that other programs read: the licence, and the results in the form of the hub."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard_data import eval_results_to_model_index

LICENCE = ("license", "license_name", "license_link")

HELD_OUT = {"accuracy": "accuracy", "loss": "loss", "perplexity": "perplexity", "distance": "1 − cosine"}
"""Held-out metrics that a card's header has, with their names for readers."""


def licence_of(models: str | Sequence[str] | None) -> dict[str, Any]:
    """Return the fields of the licence that the cards of models state, for the card of a model made from them.

    Nothing is asked of the network: a card is read from the model's folder or from the local copy of the hub. If the
    models have different licences, or one of them states none, there are no fields, because only a person can tell
    which licence the new model may have.

    Args:
        models: folders or hub names.
    """
    names = [models] if isinstance(models, str) else list(models or [])
    found = [_licence(name) for name in names]
    return found[0] if found and all(one == found[0] for one in found) else {}


def model_index(
    name: str, task: str, dataset: str, metrics: Mapping[str, Any], title: str | None = None
) -> dict[str, Any]:
    """Return the field `model-index` with the measured figures; no field if none of them is finite.

    Args:
        name: name of the model.
        task: the hub's name of the task, such as "fill-mask".
        dataset: name of the data that the figures were measured on.
        metrics: name → figure; a dictionary under a name holds the figures of one split of the data.
        title: the name of the data in papers; the same name if None.
    """
    results = []
    for key, value in metrics.items():
        split = key if isinstance(value, Mapping) else None
        for metric, figure in value.items() if isinstance(value, Mapping) else [(key, value)]:
            if isinstance(figure, int | float) and math.isfinite(figure):
                results.append(
                    EvalResult(
                        task_type=task,
                        dataset_type=dataset,
                        dataset_name=title or dataset,
                        dataset_split=split,
                        metric_type=metric,
                        metric_value=figure,
                        metric_name=HELD_OUT.get(metric),
                    )
                )
    return {"model-index": _without_none(eval_results_to_model_index(name, results))} if results else {}


def emissions_field(emissions: Mapping[str, Any] | None, hardware: str, training: str) -> dict[str, Any]:
    """Return the field `co2_eq_emissions` for emissions that were measured; no field if they were not.

    Args:
        emissions: `grams` and `source`, as `training.emissions.measured_emissions` returns them.
        hardware: what the training ran on.
        training: "pre-training" or "fine-tuning".
    """
    if emissions is None:
        return {}
    measured = {"emissions": emissions["grams"], "source": emissions["source"]}
    return {"co2_eq_emissions": measured | {"training_type": training, "hardware_used": hardware}}


def _licence(name: str) -> dict[str, Any]:
    card = Path(name).expanduser() / "README.md"
    try:
        if not Path(name).expanduser().is_dir():
            cached = try_to_load_from_cache(name, "README.md")
            if not isinstance(cached, str):
                return {}
            card = Path(cached)
        data = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError, TypeError, AttributeError, HFValidationError, yaml.YAMLError):
        return {}  # a teacher without a card, or with one that cannot be read, is a teacher all the same
    return {field: data[field] for field in LICENCE if isinstance(data.get(field), str | list)}


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value
