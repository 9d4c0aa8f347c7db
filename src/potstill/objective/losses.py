"""The losses that a recipe can name, and how `losses:` is read. A new loss is a new file and an entry in `LOSSES`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from potstill.errors import PotstillError
from potstill.objective.attention_relations import AttentionRelations
from potstill.objective.embeddings import EmbeddingCosine, EmbeddingMSE, Similarities
from potstill.objective.hidden_cosine import HiddenCosine
from potstill.objective.hidden_mse import HiddenMSE
from potstill.objective.objective import Objective
from potstill.objective.parts import CausalLM, LogitsMSE, MaskedLM, SoftTargets
from potstill.objective.term import Weighted

LOSSES: dict[str, type[Weighted]] = {
    loss.name: loss
    for loss in (
        SoftTargets,
        MaskedLM,
        CausalLM,
        LogitsMSE,
        HiddenCosine,
        HiddenMSE,
        AttentionRelations,
        EmbeddingCosine,
        EmbeddingMSE,
        Similarities,
    )
}


def objective_from(losses: Any) -> Objective:
    """Return the objective that `losses:` of a recipe describes.

    Args:
        losses: a mapping from the name of each loss to its weight, or to a mapping of its options. `weight` is one of
            them, by default 1.

    Raises:
        PotstillError: a loss or option is unknown (the message names the most similar one); a value is not valid; or
            all weights are 0.
    """
    return Objective(read_losses(losses, LOSSES, "{soft_targets: {weight: 5, temperature: 2}, masked_lm: 2}"))


def read_losses(losses: Any, known: Mapping[str, type[Weighted]], example: str) -> list[Weighted]:
    """Return the losses that `losses:` names, with their options.

    Args:
        losses: see `objective_from`.
        known: name → loss.
        example: a valid value, for the message.

    Raises:
        PotstillError: a loss or option is unknown, or a value is not valid.
    """
    if not isinstance(losses, Mapping) or not losses:
        raise PotstillError(f"losses is {losses!r}: it must map names to weights or options, as in {example}.")
    return [_loss(name, options, known) for name, options in losses.items()]


def _loss(name: Any, options: Any, known: Mapping[str, type[Weighted]]) -> Weighted:
    if name not in known:
        raise PotstillError(f"losses: there is no loss {name!r}{_nearest(name, known)}")
    fields_of = [field.name for field in fields(known[name]) if field.init]
    if not isinstance(options, Mapping):
        options = {"weight": options}
    for option in options:
        if option not in fields_of:
            raise PotstillError(f"losses: {name} has no option {option!r}{_nearest(option, fields_of)}")
    return known[name](**options)


def _nearest(name: Any, known: Any) -> str:
    near = difflib.get_close_matches(str(name), known, 1)
    return f"; did you mean {near[0]}?" if near else f": choose from {', '.join(known)}."
