"""One tokenising process: documents come in on standard input, token ids go out on standard output.

This file is run as a script, not imported through the package, so that a worker holds nothing but `tokenizers`: it
starts in a fraction of a second and costs tens of megabytes, where torch and transformers would cost hundreds.
Both streams carry pickles: first the settings (keyword arguments of `Encoder`), then one request at a time.
The worker ends when its input ends, so it cannot outlive the process that started it.
"""

import hashlib
import os
import pickle
import sys
from array import array

from tokenizers import Tokenizer

TYPECODES = {1: "B", 2: "H", 4: "I"}
"""Bytes of a token id → the typecode of `array` for it."""


def is_held_out(document: int, seed: int, validation_fraction: float) -> bool:
    """Say whether a document belongs to the validation split, from its number and the seed alone.

    Args:
        document: number of the document in reading order, from 0.
        seed: key of the hash.
        validation_fraction: expected share of held-out documents, 0 to 1.
    """
    key = hashlib.blake2b(document.to_bytes(8, "big"), key=str(seed).encode()[:64], digest_size=8).digest()
    return int.from_bytes(key, "big") < validation_fraction * 2.0**64


class Encoder:
    """Documents → ids of the train stream and of the validation stream, each document closed by the separator.

    Args:
        tokenizer_json: the tokenizer, serialised by `tokenizers.Tokenizer.to_str`.
        separator: id put after every document.
        special_ids: ids that text can never stand for.
        unknown: what replaces them, should the tokenizer yield one all the same; None drops it.
        id_bytes: bytes of an id in the result: 1, 2 or 4.
        seed: seed of the held-out split.
        validation_fraction: share of held-out documents.
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
    ) -> None:
        self.tokenizer = Tokenizer.from_str(tokenizer_json)
        # A model's tokenizer often truncates and pads to the model's length; a corpus wants the whole document.
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        # Not part of the serialised tokenizer, so it is set here: a literal "[MASK]" in the text stays plain text. What
        # text may hold as one token, <url> say, is not marked as special (`potstill.corpus.tokenizer.TokenizerSpec`).
        self.tokenizer.encode_special_tokens = True
        self.separator = separator
        self.special_ids = frozenset(special_ids)
        self.unknown = unknown
        self.typecode = TYPECODES[id_bytes]
        self.seed = seed
        self.validation_fraction = validation_fraction

    def __call__(self, first: int, documents: list[bytes]) -> tuple[bytes, bytes, int, int]:
        """Tokenise consecutive documents.

        Args:
            first: number of the first document.
            documents: texts in UTF-8.

        Returns:
            The ids of the train split and of the validation split, and the number of documents in each. A document of
            which the tokenizer leaves nothing is in neither.
        """
        streams = array(self.typecode), array(self.typecode)
        counts = [0, 0]
        texts = [document.decode() for document in documents]
        for number, encoding in enumerate(self.tokenizer.encode_batch_fast(texts, add_special_tokens=False), first):
            ids = encoding.ids
            if not self.special_ids.isdisjoint(ids):
                ids = self._without_special(ids)
            if ids:
                split = is_held_out(number, self.seed, self.validation_fraction)
                streams[split].extend(array(self.typecode, ids))
                streams[split].append(self.separator)
                counts[split] += 1
        return streams[0].tobytes(), streams[1].tobytes(), counts[0], counts[1]

    def _without_special(self, ids: list[int]) -> list[int]:
        # Models whose own vocabulary holds the special tokens (Unigram; WordPiece after a split at white space alone)
        # find them in plain text even when the tokenizer does not look for them.
        if self.unknown is None:
            return [token for token in ids if token not in self.special_ids]
        return [self.unknown if token in self.special_ids else token for token in ids]

    def failure(self, first: int, documents: list[bytes], error: BaseException) -> str:
        """Say which of the documents the tokenizer fails on, and why."""
        for number, document in enumerate(documents, first):
            try:
                self(number, [document])
            except BaseException as alone:
                return f"on {_described(number, document)}: {_reason(alone)}"
        return f"on documents {first + 1} to {first + len(documents)} of the text, taken together: {_reason(error)}"


def _described(number: int, document: bytes) -> str:
    """A document as a person can find it: its place among all, counted from 1, its length and how it begins."""
    return f"document {number + 1} of the text ({len(document):,} bytes, {document[:60].decode(errors='ignore')!r})"


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def main() -> None:
    """Answer requests `(first, documents)` with the encoder's result, or with the text of what went wrong."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    encoder = Encoder(**pickle.load(requests))
    while True:
        try:
            first, documents = pickle.load(requests)
        except EOFError:
            return
        try:
            answer: tuple[bytes, bytes, int, int] | str = encoder(first, documents)
        # The tokenizer is the user's and written in Rust: whatever it raises (a panic is no Exception) is an answer.
        except BaseException as error:
            answer = encoder.failure(first, documents, error)
        try:
            pickle.dump(answer, answers)
            answers.flush()
        except BrokenPipeError:  # the parent was killed; an ordinary exit would complain of the pipe once more
            os._exit(1)


if __name__ == "__main__":
    main()
