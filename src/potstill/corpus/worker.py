"""One tokenising process: it reads documents from standard input and writes token ids to standard output.

This file runs as a script and is not imported through the package, so that a worker loads only `tokenizers`. It starts
in a fraction of a second and takes tens of megabytes; torch and transformers would take hundreds.
Both streams carry pickles: first the settings (keyword arguments of `Encoder`), then one request at a time.
The worker ends when its input ends, so it cannot outlive the process that started it.
"""

import hashlib
import os
import pickle
import random
import re
import sys
from array import array
from itertools import pairwise

from tokenizers import Tokenizer

TYPECODES = {1: "B", 2: "H", 4: "I"}
"""Number of bytes of a token id → its typecode for `array`."""


def is_held_out(document: int, seed: int, validation_fraction: float) -> bool:
    """Return whether a document belongs to the validation split. Only its number and the seed decide this.

    Args:
        document: number of the document in reading order, from 0.
        seed: key of the hash.
        validation_fraction: expected share of held-out documents, 0 to 1.
    """
    key = hashlib.blake2b(document.to_bytes(8, "big"), key=str(seed).encode()[:64], digest_size=8).digest()
    return int.from_bytes(key, "big") < validation_fraction * 2.0**64


SENTENCE_END = re.compile(r"""[.!?…؟।]["'”’»)\]]*\s+|[。！？]["'”’」』）]*|\n""")
"""A match ends where a sentence does."""

MOST_SENTENCES = 4


def sentences_of(text: str) -> list[str]:
    """Split a text into sentences, in its order.

    Sentences end at a full stop, a question mark or an exclamation mark before white space, and at the end of a line.
    A closing quotation mark or bracket stays with its sentence. An abbreviation may end one too early.
    """
    ends = [0, *(match.end() for match in SENTENCE_END.finditer(text)), len(text)]
    return [sentence for start, end in pairwise(ends) if (sentence := text[start:end].strip())]


def pieces(text: str, key: str) -> list[str]:
    """Split a text into pieces of one to four sentences, in its order.

    Sentences end where `sentences_of` says. That an abbreviation may end one too early does no harm: the pieces are
    examples to learn from.

    Args:
        text: of a document.
        key: decides the number of sentences of each piece.
    """
    sentences = sentences_of(text)
    sizes = random.Random(key)
    found, start = [], 0
    while start < len(sentences):
        size = sizes.randint(1, MOST_SENTENCES)
        found.append(" ".join(sentences[start : start + size]))
        start += size
    return found


class Encoder:
    """Turn documents into the ids of the train stream and of the validation stream. A separator ends each document.

    Args:
        tokenizer_json: the tokenizer, serialised by `tokenizers.Tokenizer.to_str`.
        separator: id put after every document.
        special_ids: ids that text never becomes.
        unknown: id that replaces a special id if the tokenizer yields one all the same; None drops the special id.
        id_bytes: bytes of an id in the result: 1, 2 or 4.
        seed: seed of the held-out split.
        validation_fraction: share of held-out documents.
        sentences: whether to split each document into pieces of one to four sentences. A separator ends each piece.
    """

    def __init__(
        self,
        tokenizer_json: str,
        separator: int,
        special_ids: list[int],
        unknown: int | None,
        id_bytes: int,
        seed: int,
        validation_fraction: float,
        sentences: bool = False,
    ) -> None:
        self.tokenizer = Tokenizer.from_str(tokenizer_json)
        # A model's tokenizer often truncates and pads to the model's length; a corpus needs the whole document.
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        # A literal "[MASK]" in the text stays plain text. This option is not part of the serialised tokenizer, so it is
        # set here. Placeholders such as <url> are not marked as special: see `potstill.corpus.tokenizer.TokenizerSpec`.
        self.tokenizer.encode_special_tokens = True
        self.separator = separator
        self.special_ids = frozenset(special_ids)
        self.unknown = unknown
        self.typecode = TYPECODES[id_bytes]
        self.seed = seed
        self.validation_fraction = validation_fraction
        self.sentences = sentences

    def __call__(self, first: int, documents: list[bytes]) -> tuple[bytes, bytes, int, int]:
        """Tokenise consecutive documents.

        Args:
            first: number of the first document.
            documents: texts in UTF-8.

        Returns:
            The ids of the train split and of the validation split, and the number of documents in each. A document
            without any token is in neither.
        """
        streams = array(self.typecode), array(self.typecode)
        counted: tuple[set[int], set[int]] = set(), set()
        texts = [document.decode() for document in documents]
        numbers = list(range(first, first + len(texts)))
        if self.sentences:
            split_texts = [pieces(text, f"{self.seed} {number}") for number, text in zip(numbers, texts, strict=True)]
            numbers = [number for number, split in zip(numbers, split_texts, strict=True) for _ in split]
            texts = [piece for split in split_texts for piece in split]
        for number, ids in zip(numbers, self.ids_of(texts), strict=True):
            if ids:
                split = is_held_out(number, self.seed, self.validation_fraction)
                streams[split].extend(array(self.typecode, ids))
                streams[split].append(self.separator)
                counted[split].add(number)
        return streams[0].tobytes(), streams[1].tobytes(), len(counted[0]), len(counted[1])

    def ids_of(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text, without special tokens. They may be none."""
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        found = [encoding.ids for encoding in encodings]
        return [ids if self.special_ids.isdisjoint(ids) else self._without_special(ids) for ids in found]

    def _without_special(self, ids: list[int]) -> list[int]:
        # Some models have the special tokens in their own vocabulary (Unigram; WordPiece after a split at white space
        # only). They find them in plain text even if the tokenizer does not look for them.
        if self.unknown is None:
            return [token for token in ids if token not in self.special_ids]
        return [self.unknown if token in self.special_ids else token for token in ids]

    def failure(self, first: int, documents: list[bytes], error: BaseException) -> str:
        """Return a text that names the document on which the tokenizer fails, and the reason."""
        for number, document in enumerate(documents, first):
            try:
                self(number, [document])
            except BaseException as alone:
                return f"on {_described(number, document)}: {_reason(alone)}"
        return f"on documents {first + 1} to {first + len(documents)} of the text, taken together: {_reason(error)}"


def _described(number: int, document: bytes) -> str:
    """Return a description that helps to find a document: its number from 1, its length and its beginning."""
    return f"document {number + 1} of the text ({len(document):,} bytes, {document[:60].decode(errors='ignore')!r})"


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def main() -> None:
    """Answer requests `(first, documents)` with the encoder's result, or with the text of an error."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    encoder = Encoder(**pickle.load(requests))
    while True:
        try:
            first, documents = pickle.load(requests)
        except EOFError:
            return
        try:
            answer: tuple[bytes, bytes, int, int] | str = encoder(first, documents)
        # The user's tokenizer, written in Rust, may raise anything, and a panic is no Exception. All become an answer.
        except BaseException as error:
            answer = encoder.failure(first, documents, error)
        try:
            pickle.dump(answer, answers)
            answers.flush()
        except BrokenPipeError:  # the parent was killed; an ordinary exit would print a second error about the pipe
            os._exit(1)


if __name__ == "__main__":
    main()
