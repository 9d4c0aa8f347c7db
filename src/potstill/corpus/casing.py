"""Whether a tokenizer treats capitals and accents as its vocabulary was made for.

`transformers` builds the tokenizers of the BERT family from the vocabulary and from `tokenizer_config.json` alone.
Where that file says nothing of case, text is lower-cased and loses its accents, whatever `tokenizer.json` says, and
even where the vocabulary is full of capitals: the words of a cased model then fall to pieces, and nothing is said.
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
"""Share of the entries that could have capitals, or accents, from which on a vocabulary is taken to have them: in the
vocabulary of an uncased model they are oddities."""

OPTIONS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
"""Option of a tokenizer of the BERT family → what `tokenizer.json` calls it."""


def unstated_options(name: str, tokenizer: PreTrainedTokenizerFast) -> tuple[dict[str, Any], str]:
    """Find out what a tokenizer is to be loaded with where its settings do not say how it treats case and accents.

    What `tokenizer_config.json` says stands. What it does not say is taken from `tokenizer.json`, and where there is
    none, from the vocabulary: one with capitals keeps case, one with accents keeps accents.

    Args:
        name: folder or hub id of the tokenizer.
        tokenizer: what was loaded from there without options.

    Returns:
        Options for `from_pretrained`, and what was decided in one line; both are empty where all is well.
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
        said = ", ".join(f"{option} {json.dumps(value)}" for option, value in changed.items())
        return changed, said and (
            f"The tokenizer {name} has no tokenizer_config.json that says how text is normalised: it is read as its "
            f"tokenizer.json says, with {said}."
        )
    vocabulary = _words(tokenizer)
    if normalizer.lowercase and _has_capitals(vocabulary):
        if "do_lower_case" not in options:  # it is stated, against the vocabulary: see `contradiction`
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
    """Say in one line where a tokenizer, as it stands, cannot produce what its vocabulary holds, or the reverse.

    Returns:
        The line; empty where all is well.
    """
    backend = tokenizer.backend_tokenizer
    if isinstance(backend.model, models.BPE):  # whose entries may be bytes, spelt with letters of any kind
        return ""
    normalise = backend.normalizer.normalize_str if backend.normalizer is not None else str
    vocabulary = _words(tokenizer)
    lowers = normalise("A").endswith("a")
    if lowers and _has_capitals(vocabulary):
        return (
            f"The tokenizer {name} lower-cases, but its vocabulary has capitals, which it therefore never uses: if the "
            'model is a cased one, put {"do_lower_case": false} into its tokenizer_config.json.'
        )
    if _strips(normalise) and _has_accents(vocabulary):
        return (
            f"The tokenizer {name} strips accents, but its vocabulary has some, which it therefore never uses: if the "
            'model knows accents, put {"strip_accents": false} into its tokenizer_config.json.'
        )
    if not lowers and "a" in vocabulary and not any(entry != entry.lower() for entry in vocabulary):
        ids = backend.encode("A", add_special_tokens=False).ids
        if set(ids) == {tokenizer.unk_token_id}:
            return (
                f"The tokenizer {name} keeps case, but its vocabulary has no capitals, so that every word with one is "
                'unknown to it: if the model is an uncased one, put {"do_lower_case": true} into its '
                "tokenizer_config.json."
            )
    return ""


def _words(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The entries that text is made of: no added tokens, and no others that stand in brackets, such as [unused1]."""
    added = tokenizer.get_added_vocab()
    return [
        entry.removeprefix("##").lstrip("\u2581")  # SentencePiece's sign for a blank
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
    """What the tokenizer.json of a tokenizer says of BERT's normalisation, or None where there is none."""
    path = cached_file(name, "tokenizer.json", _raise_exceptions_for_missing_entries=False)
    if path is None:
        return None
    normalizer = json.loads(Path(path).read_text(encoding="utf-8")).get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    return next((step for step in steps if step.get("type") == "BertNormalizer"), None)
