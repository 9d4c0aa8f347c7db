"""What any model reads, of a known family or not: fine-tuning and export take models that cannot be distilled."""

from __future__ import annotations

from transformers import PreTrainedConfig

from potstill.student.family import family_or_none
from potstill.student.generic import Generic
from potstill.student.interface import Family


def usable_length(config: PreTrainedConfig) -> int | None:
    """How many tokens a model reads at most; None if its config sets no limit.

    This can be fewer than the positions that it has embeddings for: RoBERTa and its relatives count positions from the
    id of padding + 1 on, so that 514 of them serve 512 tokens. A model of no family is one of these relatives if its
    code in transformers counts positions that way.
    """
    positions = getattr(config, "max_position_embeddings", 1)
    if not isinstance(positions, int) or positions < 1:
        return None
    return _family(config).usable_length(config)


def takes_token_types(config: PreTrainedConfig) -> bool:
    """Whether a model tells two texts apart by their token types.

    Some models take none, some have an embedding for one type alone; their tokenizers may number two all the same.
    """
    return _family(config).takes_token_types(config)


def _family(config: PreTrainedConfig) -> Family:
    return family_or_none(config) or Generic(config.model_type)
