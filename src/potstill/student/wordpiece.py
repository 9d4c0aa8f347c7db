"""Training a tokenizer: a WordPiece vocabulary in BERT's form, from the corpus itself."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer

from potstill.errors import PotstillError
from potstill.student.interface import TokenizerKind
from potstill.student.lines import lines

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
"""In the order of their ids, 0 to 4."""

CHARACTER_COVERAGE = 0.9995
"""Share of the characters of the text that the alphabet covers (SentencePiece's default). English comes to under a
hundred characters by this rule, which leaves a small vocabulary to words; Chinese comes to thousands."""

CODE_POINTS = 0x110000


class WordPiece(TokenizerKind):
    """A WordPiece vocabulary in BERT's form."""

    name = "WordPiece"

    def train(
        self,
        documents: Callable[[], Iterable[bytes]],
        vocab_size: int,
        lowercase: bool | None,
        model_max_length: int,
    ) -> BertTokenizer:
        """Train a WordPiece tokenizer: see `TokenizerKind.train`. It lower-cases if nothing else is said.

        The text is read twice: once for the alphabet, once for the words. Memory is bounded by the number of different
        words. The same documents give the same vocabulary: `tokenizers` by itself numbers the pieces of one character
        in the order of a hash map, and breaks ties between merges by those numbers; here the numbers are fixed
        beforehand.

        Returns:
            A tokenizer of exactly `vocab_size` entries: the special tokens, the characters, the characters inside words
            (`##a`), then the longer pieces in the order in which they were merged.

        Raises:
            PotstillError: the text is too small, or its alphabet too large, for such a vocabulary.
        """
        lowercase = True if lowercase is None else lowercase
        normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        alphabet = _alphabet(documents(), normalizer)
        inside = [
            f"##{character}" for character in alphabet if _occurs_inside_words(character, normalizer, pre_tokenizer)
        ]
        fixed = SPECIAL_TOKENS + alphabet + inside
        if len(fixed) > vocab_size:
            raise PotstillError(
                f"The alphabet of the text alone takes {len(fixed)} entries: "
                f"give --vocab_size {2 * len(fixed)} or more."
            )
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            # The trainer gives special tokens the first ids, in order: hence all fixed entries pass as special.
            special_tokens=fixed,
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            show_progress=False,
        )
        trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        trained.normalizer = normalizer
        trained.pre_tokenizer = pre_tokenizer
        trained.train_from_iterator(lines(documents()), trainer)
        vocabulary = trained.get_vocab()
        if len(vocabulary) != vocab_size:
            raise PotstillError(
                f"The text gives a vocabulary of only {len(vocabulary)} entries, not {vocab_size}: "
                f"lower --vocab_size or give more text."
            )
        return BertTokenizer(vocab=vocabulary, do_lower_case=lowercase, model_max_length=model_max_length)

    def meaningless(self, vocab_size: int, model_max_length: int) -> BertTokenizer:
        """See `TokenizerKind.meaningless`."""
        words = [*SPECIAL_TOKENS, *(f"w{i}" for i in range(vocab_size - len(SPECIAL_TOKENS)))]
        return BertTokenizer(vocab={word: i for i, word in enumerate(words)}, model_max_length=model_max_length)


def _alphabet(documents: Iterable[bytes], normalizer: normalizers.Normalizer) -> list[str]:
    """The most frequent characters of the normalised text that together make up the coverage, sorted."""
    counts = np.zeros(CODE_POINTS, dtype=np.int64)
    for text in _pieces(documents):
        code_points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        counts += np.bincount(code_points, minlength=CODE_POINTS)
    # BERT's normaliser works character by character, so it can be applied to the counts in place of the text.
    normalised: dict[str, int] = {}
    for code_point in np.flatnonzero(counts):
        for character in normalizer.normalize_str(chr(code_point)):
            if not character.isspace():
                normalised[character] = normalised.get(character, 0) + int(counts[code_point])
    wanted = CHARACTER_COVERAGE * sum(normalised.values())
    alphabet, covered = [], 0
    for character, count in sorted(normalised.items(), key=lambda entry: (-entry[1], entry[0])):
        if covered >= wanted:
            break
        alphabet.append(character)
        covered += count
    return sorted(alphabet)


def _occurs_inside_words(
    character: str, normalizer: normalizers.Normalizer, pre_tokenizer: pre_tokenizers.PreTokenizer
) -> bool:
    """False for punctuation and for the scripts that are split into single characters."""
    return len(pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(f"a{character}"))) == 1


def _pieces(documents: Iterable[bytes], piece_bytes: int = 2**22) -> Iterator[str]:
    """The text of the documents in pieces of about 4 MiB, to be counted at once."""
    piece, size = [], 0
    for document in documents:
        piece.append(document.decode())
        size += len(document)
        if size >= piece_bytes:
            yield "".join(piece)
            piece, size = [], 0
    yield "".join(piece)
