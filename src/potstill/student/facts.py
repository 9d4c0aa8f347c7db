"""What any model reads, of a known family or not: fine-tuning and export take models that cannot be distilled."""

from __future__ import annotations

import inspect
import sys
from typing import Any

from transformers import AutoModel, PreTrainedConfig

from potstill.student.family import family_or_none

COUNTED_FROM_PADDING = "create_position_ids_from_input_ids"
"""What transformers calls the function that counts positions from the id of padding + 1 on, wherever it does."""


def usable_length(config: PreTrainedConfig) -> int | None:
    """How many tokens a model reads at most; None if its config sets no limit.

    This can be fewer than the positions that it has embeddings for: RoBERTa and its relatives count positions from the
    id of padding + 1 on, so that 514 of them serve 512 tokens. A model of no family is one of these relatives if its
    code in transformers counts positions that way.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions < 1:
        return None
    if (family := family_or_none(config)) is not None:
        return family.usable_length(config)
    return positions - (getattr(config, "pad_token_id", None) or 0) - 1 if counts_from_padding(config) else positions


def takes_token_types(config: PreTrainedConfig) -> bool:
    """Whether a model tells two texts apart by their token types.

    Some models take none, some have an embedding for one type alone; their tokenizers may number two all the same.
    """
    if (family := family_or_none(config)) is not None:
        return family.takes_token_types(config)
    if getattr(config, "type_vocab_size", 2) < 2:
        return False
    model = _model_class(config)
    return model is None or "token_type_ids" in inspect.signature(model.forward).parameters


def counts_from_padding(config: PreTrainedConfig) -> bool:
    """Whether a model counts positions from the id of padding + 1 on, as its code in transformers shows."""
    model = _model_class(config)
    if model is None:
        return False
    module = sys.modules[model.__module__]
    return any(hasattr(part, COUNTED_FROM_PADDING) for part in (module, *vars(module).values()))


def _model_class(config: PreTrainedConfig) -> Any:
    """The class of a headless model with this config; None if transformers has none."""
    found = AutoModel._model_mapping.get(type(config), None)
    return found[0] if isinstance(found, tuple | list) else found
