"""Makes synthetic texts from a text: words masked or replaced, n-grams kept (Tang et al. 2019, section 3.3)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from potstill.finetuning.augment_options import AugmentOptions
from potstill.finetuning.rows import Array

LONGEST = 5
"""Words of the longest n-gram that is kept alone."""

_WORD = re.compile(r"(\s*)(\w+(?:['’-]\w+)*|[^\w\s])")

Token = tuple[str, str]
"""The blank space before a word, and the word."""


def split_words(text: str) -> list[Token]:
    """Return the words of a text in order. A word is a run of letters and digits, or one other character.

    Apostrophes and hyphens inside a word belong to it. The blank space before a word is kept, so that a text can be put
    together again as it was.
    """
    return [(found[1], found[2]) for found in _WORD.finditer(text)]


@dataclass(frozen=True)
class WordsByClass:
    """The words of each class, with the number of times that each occurs.

    Attributes:
        words: class → its words.
        counts: class → (words,) cumulative counts.
    """

    words: Mapping[int, Sequence[str]]
    counts: Mapping[int, Array]

    @classmethod
    def count(cls, pairs: Iterable[tuple[str, int]]) -> WordsByClass:
        """Count pairs of a word and its class. Words without a class, whose number is below 0, are left out."""
        counted = Counter(pair for pair in pairs if pair[1] >= 0)
        words: dict[int, list[str]] = {}
        numbers: dict[int, list[int]] = {}
        for (word, kind), count in sorted(counted.items()):  # so that the order of the rows does not matter
            words.setdefault(kind, []).append(word)
            numbers.setdefault(kind, []).append(count)
        return cls(words, {kind: np.cumsum(found) for kind, found in numbers.items()})

    def draw(self, kind: int, at: float) -> str:
        """Return a word of a class by its share of the class; `at` is a random number from 0 to below 1."""
        counts = self.counts[kind]
        return self.words[kind][int(np.searchsorted(counts, at * counts[-1], side="right"))]


class Synthesiser:
    """Makes synthetic texts from rows. Each row has its own random numbers, which the seed and its number determine.

    Args:
        options: the probabilities, the seed, and the number of texts of a row.
        words: the words that replace others.
        mask: stands in for a masked word; "" to leave the word out.
    """

    def __init__(self, options: AugmentOptions, words: WordsByClass, mask: str) -> None:
        self.options, self.words, self.mask = options, words, mask

    def texts(self, number: int, row: Sequence[Sequence[Token]], kinds: Sequence[Sequence[int]]) -> list[list[str]]:
        """Return the synthetic texts of a row, each as a list of one text or of the two texts of a pair.

        Of a pair the first text is changed, then the second one, then both, and so on in turn.

        Args:
            number: of the row.
            row: the words of each text.
            kinds: the class of each word; -1 for a word that is not replaced.
        """
        generator = np.random.default_rng((self.options.seed, number))
        changed = [self._changed(text, classes, generator) for text, classes in zip(row, kinds, strict=True)]
        if len(row) == 1:
            return [[text] for text in changed[0]]
        first, second = ("".join(map("".join, text)) for text in row)
        found = []
        for sample, (one, other) in enumerate(zip(*changed, strict=True)):
            found.append([first if sample % 3 == 1 else one, second if sample % 3 == 0 else other])
        return found

    def _changed(self, text: Sequence[Token], kinds: Sequence[int], generator: np.random.Generator) -> list[str]:
        """Return `samples` changed texts.

        Every word has one random number: below `mask` it is masked, and from there to below `mask` + `replace` it is
        replaced. Then the text is cut to an n-gram with probability `ngram`.
        """
        options, length = self.options, len(text)
        chance, at = generator.random((2, options.samples, length))
        cut, where = generator.random((2, options.samples))
        spans = np.minimum(generator.integers(1, LONGEST + 1, options.samples), length)
        found = []
        for sample in range(options.samples):
            tokens = list(text)
            for place in np.flatnonzero(chance[sample] < options.mask + options.replace).tolist():
                before = tokens[place][0]
                if chance[sample, place] < options.mask:
                    tokens[place] = (before, self.mask) if self.mask else ("", "")
                elif kinds[place] >= 0:
                    tokens[place] = before, self.words.draw(kinds[place], at[sample, place])
            if length and cut[sample] < options.ngram:
                start = int(where[sample] * (length - spans[sample] + 1))
                tokens = tokens[start : start + spans[sample]]
            found.append("".join(map("".join, tokens)).strip())
        return found
