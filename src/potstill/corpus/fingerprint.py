"""Decide whether two tokenizers turn text into the same ids."""

import hashlib
import json

from transformers import PreTrainedTokenizerBase

from potstill.corpus.tokenizer import ROLES

PROBE = (
    "The Quick brown FOX can't re-enter 3,141.59 naïve cafés—ÉCOLE, straße, Ångström; isn't it? "
    "Καλημέρα κόσμε Σίσυφος, Привет Мир, שלום עולם, مرحبا بالعالم, नमस्ते दुनिया, 你好世界 日本語テキスト 한국어 "
    "snake_case camelCase x²≤½ €5 🙂👍🏽\ttab  two spaces\nnew line #hash @name http://a.b/c?d=e"
)
"""A text with various case, accents, scripts, digits, spaces and punctuation. Different tokenizers give different ids.

It is part of the corpus format: after a change here, every earlier corpus seems to be made with another tokenizer.
"""


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash the behaviour of a tokenizer. Its files are not hashed, because they differ between versions of libraries.

    Returns:
        SHA-256, in hexadecimal, of the vocabulary in the order of its ids, the ids of the special tokens, and the ids
        of a fixed text in many scripts.
    """
    special = {name: getattr(tokenizer, name) for name in (f"{role}_token_id" for role in ROLES)}
    # verbose=False prevents a warning that the probe is too long for the model.
    probe = tokenizer(PROBE, add_special_tokens=False, truncation=False, padding=False, verbose=False)
    behaviour = {
        "vocabulary": sorted(tokenizer.get_vocab().items(), key=lambda entry: (entry[1], entry[0])),
        "special": special,
        "probe": probe["input_ids"],
    }
    return hashlib.sha256(json.dumps(behaviour, ensure_ascii=True).encode()).hexdigest()
