"""Vocabularies that are padded: a model may have more rows of embeddings than its tokenizer has tokens.

ModernBERT has 50,368 rows for 50,280 tokens, for example, because matrix products are faster so. No text contains the
other rows. A loss over the vocabulary and an evaluation leave them out: the teacher's probabilities are those of the
tokens alone, and no probability is wasted on the rest.
"""

from __future__ import annotations

from typing import Any, cast

from transformers import PreTrainedModel

from potstill.student.family import family_of
from potstill.student.interface import VocabularyHead

_ATTRIBUTE = "potstill_known_tokens"


def limit_vocabulary(model: PreTrainedModel, tokens: int) -> None:
    """Let `known_head` leave out the rows beyond the tokens of the tokenizer. The model itself stays as it is.

    Args:
        model: of a known family.
        tokens: one more than the largest id of the tokenizer.
    """
    cast(Any, model).__dict__[_ATTRIBUTE] = tokens


def known_head(model: PreTrainedModel) -> VocabularyHead:
    """Return the head of a model, its weight and bias cut to the tokens of the tokenizer: see `limit_vocabulary`."""
    head = family_of(model).head(model)
    tokens = model.__dict__.get(_ATTRIBUTE)
    if tokens is None or tokens >= len(head.weight):
        return head
    return VocabularyHead(head.transform, head.weight[:tokens], None if head.bias is None else head.bias[:tokens])
