"""Check whether a tokenizer treats capitals and accents in the way that its vocabulary requires.

`transformers` builds the tokenizers of the BERT family only from the vocabulary and `tokenizer_config.json`. If that
file does not mention case, text is lower-cased and loses its accents. This happens even if `tokenizer.json` disagrees,
or if the vocabulary has many capitals. The words of a cased model are then split into small pieces without a warning.
"""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import models
from tokenizers.normalizers import BertNormalizer
from transformers import PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import cached_file

SHARE = 0.01
"""A vocabulary counts as having capitals, or accents, if more than this share of the entries that could have them do.
The vocabulary of an uncased model has only rare exceptions."""

OPTIONS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
"""Option of a tokenizer of the BERT family → its name in `tokenizer.json`."""


def unstated_options(name: str, tokenizer: PreTrainedTokenizerFast) -> tuple[dict[str, Any], str]:
    """Find the options for loading a tokenizer whose settings do not say how it treats case and accents.

    The options in `tokenizer_config.json` stay as they are. Missing ones are taken from `tokenizer.json`. If there is
    no such file, the vocabulary decides: one with capitals keeps case, and one with accents keeps accents.

    Args:
        name: folder or hub id of the tokenizer.
        tokenizer: the tokenizer as loaded from there without options.

    Returns:
        Options for `from_pretrained`, and a message of one line that explains them; both are empty if none are needed.
    """
    normalizer = tokenizer.backend_tokenizer.normalizer
    if not isinstance(normalizer, BertNormalizer):
        return {}, ""
    known = inspect.signature(type(tokenizer).__init__).parameters
    stated = get_tokenizer_config(name)
    options = {option: key for option, key in OPTIONS.items() if option in known and option not in stated}
    if not options:
        return {}, ""
    if (written := _bert_normalizer(name)) is not None:
        changed = {
            option: written[key]
            for option, key in options.items()
            if key in written and written[key] != getattr(normalizer, key)
        }
        settings = ", ".join(f"{option} {json.dumps(value)}" for option, value in changed.items())
        return changed, settings and (
            f"The tokenizer {name} has no tokenizer_config.json that says how text is normalised: its tokenizer.json "
            f"decides ({settings})."
        )
    vocabulary = _words(tokenizer)
    if normalizer.lowercase and _has_capitals(vocabulary):
        if "do_lower_case" not in options:  # the settings contradict the vocabulary: `contradiction` reports this
            return {}, ""
        return {"do_lower_case": False}, (
            f"The tokenizer {name} does not say whether it lower-cases, and its vocabulary has capitals: case and "
            'accents are kept; if this is wrong, put {"do_lower_case": true} into its tokenizer_config.json.'
        )
    if "strip_accents" in options and _strips(normalizer.normalize_str) and _has_accents(vocabulary):
        return {"strip_accents": False}, (
            f"The tokenizer {name} does not say whether it strips accents, and its vocabulary has some: they are kept; "
            'if this is wrong, put {"strip_accents": true} into its tokenizer_config.json.'
        )
    return {}, ""


def contradiction(name: str, tokenizer: PreTrainedTokenizerFast) -> str:
    """Return a warning if a tokenizer's treatment of case or accents does not match its vocabulary.

    Returns:
        The warning in one line; empty if the two match.
    """
    backend = tokenizer.backend_tokenizer
    if isinstance(backend.model, models.BPE):  # its entries may be bytes that are written as any letters
        return ""
    normalise = backend.normalizer.normalize_str if backend.normalizer is not None else str
    vocabulary = _words(tokenizer)
    lowers = normalise("A").endswith("a")
    if lowers and _has_capitals(vocabulary):
        return (
            f"The tokenizer {name} lower-cases, so it never uses the capitals in its vocabulary: if the "
            'model is a cased one, put {"do_lower_case": false} into its tokenizer_config.json.'
        )
    if _strips(normalise) and _has_accents(vocabulary):
        return (
            f"The tokenizer {name} strips accents, so it never uses the accents in its vocabulary: if the "
            'model knows accents, put {"strip_accents": false} into its tokenizer_config.json.'
        )
    if not lowers and "a" in vocabulary and not any(entry != entry.lower() for entry in vocabulary):
        ids = backend.encode("A", add_special_tokens=False).ids
        if set(ids) == {tokenizer.unk_token_id}:
            return (
                f"The tokenizer {name} keeps case, but its vocabulary has no capitals, so every word with a capital is "
                'unknown to it: if the model is an uncased one, put {"do_lower_case": true} into its '
                "tokenizer_config.json."
            )
    return ""


def _words(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Return the vocabulary without added tokens and without entries in brackets, such as [unused1]."""
    added = tokenizer.get_added_vocab()
    return [
        entry.removeprefix("##").lstrip("\u2581")  # SentencePiece's symbol for a space
        for entry in tokenizer.get_vocab()
        if entry not in added and not (len(entry) > 2 and entry[0] in "[<" and entry[-1] in "]>")
    ]


def _has_capitals(vocabulary: list[str]) -> bool:
    with_case = [entry for entry in vocabulary if entry.lower() != entry.upper()]
    return sum(entry != entry.lower() for entry in with_case) > SHARE * len(with_case)


def _has_accents(vocabulary: list[str]) -> bool:
    beyond_ascii = [entry for entry in vocabulary if not entry.isascii()]
    return sum(entry != _STRIPPED(entry) for entry in beyond_ascii) > SHARE * len(beyond_ascii)


_STRIPPED = BertNormalizer(
    clean_text=False, handle_chinese_chars=False, strip_accents=True, lowercase=False
).normalize_str


def _strips(normalise: Callable[[str], str]) -> bool:
    return normalise("\u00e9").endswith(("e", "E"))


def _bert_normalizer(name: str) -> dict[str, Any] | None:
    """Return the settings of BERT's normaliser from a tokenizer's tokenizer.json, or None if there are none."""
    path = cached_file(name, "tokenizer.json", _raise_exceptions_for_missing_entries=False)
    if path is None:
        return None
    normalizer = json.loads(Path(path).read_text(encoding="utf-8")).get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    return next((step for step in steps if step.get("type") == "BertNormalizer"), None)
