"""The words and the text that the tests which train share."""

import random

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [a + b + c for a in ("bo", "do", "ki", "lu", "me", "so") for b in "lmnrst" for c in ("", "a", "e", "o", "u")]
VOCABULARY = [*SPECIAL, ".", *WORDS]
BLOCK_SIZE = 16


def written_text(documents: int, seed: int) -> str:
    """Documents of a line each, in which a word tells much about the next: there is something to learn."""
    rng = random.Random(seed)
    lines = []
    for _ in range(documents):
        at, words = rng.randrange(len(WORDS)), []
        for _ in range(rng.randint(5, 25)):
            words.append(WORDS[at])
            at = (at + rng.choice((1, 1, 1, 7))) % len(WORDS)
        lines.append(" ".join(words) + " .")
    return "\n".join(lines) + "\n"
