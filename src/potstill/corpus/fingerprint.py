"""Whether two tokenizers turn text into the same ids."""

import hashlib
import json

from transformers import PreTrainedTokenizerBase

from potstill.corpus.tokenizer import ROLES

PROBE = (
    "The Quick brown FOX can't re-enter 3,141.59 naïve cafés—ÉCOLE, straße, Ångström; isn't it? "
    "Καλημέρα κόσμε Σίσυφος, Привет Мир, שלום עולם, مرحبا بالعالم, नमस्ते दुनिया, 你好世界 日本語テキスト 한국어 "
    "snake_case camelCase x²≤½ €5 🙂👍🏽\ttab  two spaces\nnew line #hash @name http://a.b/c?d=e"
)
"""Text whose ids differ when case, accents, scripts, digits, spaces or punctuation are treated differently.

Part of the corpus format: a change here makes every earlier corpus look as if it had been made with another tokenizer.
"""


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash what a tokenizer does rather than how it is stored, so that versions of the libraries agree on it.

    Returns:
        SHA-256, in hexadecimal, of the vocabulary in the order of its ids, the ids of the special tokens, and the ids
        of a fixed text in many scripts.
    """
    special = {name: getattr(tokenizer, name) for name in (f"{role}_token_id" for role in ROLES)}
    # Not verbose: the probe may be longer than what the model takes, which is no concern here.
    probe = tokenizer(PROBE, add_special_tokens=False, truncation=False, padding=False, verbose=False)
    behaviour = {
        "vocabulary": sorted(tokenizer.get_vocab().items(), key=lambda entry: (entry[1], entry[0])),
        "special": special,
        "probe": probe["input_ids"],
    }
    return hashlib.sha256(json.dumps(behaviour, ensure_ascii=True).encode()).hexdigest()
