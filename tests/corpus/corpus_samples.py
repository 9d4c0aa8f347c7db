"""The vocabulary and the documents that the tests of this room share."""

import random

WORDS = ["the", "cat", "sat", "on", "mat", "still", "pot", "spirit", "of", "malt", "oak", "cask", "water", "copper"]
SUFFIXES = ["##ing", "##ed", "##er"]
PIECES = [*"abcdefghijklmnopqrstuvwxyz0123456789.,!?[]", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789")]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PIECES, *WORDS, *SUFFIXES]


def random_documents(count: int, seed: int, words: tuple[int, int] = (1, 60)) -> list[str]:
    """Documents of a line each, of known and unknown words."""
    rng = random.Random(seed)
    known = [*WORDS, "cats", "spirited", "stilling", "Ünïcode", "漢字", "3,14", "[SEP]", "[MASK]", "x" * 120]
    return [" ".join(rng.choices(known, k=rng.randint(*words))) for _ in range(count)]
