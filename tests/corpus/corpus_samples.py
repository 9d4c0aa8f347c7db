"""The vocabulary and the documents that the tests of this room share."""

import json
import random
from pathlib import Path
from typing import Any

from potstill.corpus.manifest import own_checksum

WORDS = ["the", "cat", "sat", "on", "mat", "still", "pot", "spirit", "of", "malt", "oak", "cask", "water", "copper"]
SUFFIXES = ["##ing", "##ed", "##er"]
PIECES = [*"abcdefghijklmnopqrstuvwxyz0123456789.,!?[]", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789")]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PIECES, *WORDS, *SUFFIXES]


def random_documents(count: int, seed: int, words: tuple[int, int] = (1, 60)) -> list[str]:
    """Documents of a line each, of known and unknown words."""
    rng = random.Random(seed)
    known = [*WORDS, "cats", "spirited", "stilling", "Ünïcode", "漢字", "3,14", "[SEP]", "[MASK]", "x" * 120]
    return [" ".join(rng.choices(known, k=rng.randint(*words))) for _ in range(count)]


def write_manifest(folder: Path, record: dict[str, Any]) -> None:
    """Write a manifest whose checksum of itself is right, whatever else is wrong in it."""
    checksums = record.get("checksums")
    if isinstance(checksums, dict) and "manifest.json" in checksums:
        record = record | {"checksums": checksums | {"manifest.json": own_checksum(record)}}
    (folder / "manifest.json").write_text(json.dumps(record))
