"""Refuse a tokenizer that would fill the memory of whoever uses it, because of its numbers or of its normaliser."""

from __future__ import annotations

import json
from typing import Any

from transformers import PreTrainedTokenizerFast

from potstill.errors import PotstillError

MOST_TOKENS = 2**24
"""The largest vocabulary. The largest known ones have about a million tokens."""

MOST_GROWTH = 1000
"""How many times as long a normaliser may make a text. Those of known models at most double it."""


def check_limits(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    """Make sure that a tokenizer has no absurd numbers of tokens, and does not blow up text.

    Args:
        tokenizer: a fast one.
        name: what messages call it.

    Raises:
        PotstillError: it does.
    """
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= MOST_TOKENS:
        raise PotstillError(
            f"The tokenizer {name} has a token with the number {largest:,}, and counts of so many tokens do not fit in "
            "memory: restore the tokenizer."
        )
    normaliser = json.loads(tokenizer.backend_tokenizer.to_str()).get("normalizer")
    if growth_of(normaliser) > MOST_GROWTH:
        raise PotstillError(
            f"The normaliser of the tokenizer {name} makes text more than {MOST_GROWTH:,} times as long: restore the "
            "tokenizer."
        )


def growth_of(normaliser: Any) -> float:
    """Return how many times as long a normaliser may make a text, apart from the forms of Unicode, which are bounded.

    Args:
        normaliser: as a `tokenizer.json` has it.
    """
    if not isinstance(normaliser, dict):
        return 1
    growth = 1.0
    for part in normaliser.get("normalizers") or ():
        growth = min(growth * growth_of(part), 1e9)
    if normaliser.get("type") == "Replace":
        text = (normaliser.get("pattern") or {}).get("String")  # a regular expression may match a single character
        return max(1.0, len(normaliser.get("content") or "") / max(len(text or ""), 1))
    return growth
