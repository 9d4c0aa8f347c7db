"""Training a tokenizer: byte pairs in RoBERTa's form or in GPT-2's, from the corpus itself."""

import json
from collections.abc import Callable, Iterable

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import GPT2Tokenizer, PreTrainedTokenizerFast, RobertaTokenizer

from potstill.errors import PotstillError
from potstill.student.interface import TokenizerKind
from potstill.student.lines import lines

SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
"""RoBERTa's, in the order of their ids, 0 to 4."""

END_OF_TEXT = "<|endoftext|>"
"""GPT-2's only special token: it stands between documents."""

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
"""The 256 bytes, each by the character that stands for it."""


class ByteLevel(TokenizerKind):
    """A byte-level BPE vocabulary in RoBERTa's form (Radford et al. 2019): any text has tokens, none is unknown."""

    name = "byte-level BPE"
    special_tokens = SPECIAL_TOKENS

    def train(
        self,
        documents: Callable[[], Iterable[bytes]],
        vocab_size: int,
        lowercase: bool | None,
        model_max_length: int,
    ) -> PreTrainedTokenizerFast:
        """Train a byte-level BPE tokenizer: see `TokenizerKind.train`.

        The same documents give the same vocabulary: bytes are numbered in their order, and of pairs that are as
        frequent, the trainer merges the one with the smaller numbers first.

        Returns:
            A tokenizer of exactly `vocab_size` entries: the special tokens, the bytes, then the longer pieces in the
            order in which they were merged.

        Raises:
            PotstillError: the text is too small for such a vocabulary, or is to be lower-cased.
        """
        if lowercase:
            raise PotstillError("A byte-level vocabulary keeps case and accents: leave --lowercase out.")
        fixed = len(self.special_tokens) + len(ALPHABET)
        if vocab_size < fixed:
            raise PotstillError(
                f"The bytes and the special tokens alone take {fixed} entries: give --vocab_size {2 * fixed} or more."
            )
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=self.special_tokens,
            initial_alphabet=ALPHABET,
            show_progress=False,
        )
        trained = Tokenizer(models.BPE())
        trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trained.train_from_iterator(lines(documents(), keep_ends=True), trainer)
        model = json.loads(trained.to_str())["model"]
        if len(model["vocab"]) != vocab_size:
            raise PotstillError(
                f"The text gives a vocabulary of only {len(model['vocab'])} entries, not {vocab_size}: "
                f"lower --vocab_size or give more text."
            )
        return self._tokenizer(model["vocab"], [tuple(pair) for pair in model["merges"]], model_max_length)

    def meaningless(self, vocab_size: int, model_max_length: int) -> PreTrainedTokenizerFast:
        """See `TokenizerKind.meaningless`."""
        words = [*self.special_tokens, *(f"w{i}" for i in range(vocab_size - len(self.special_tokens)))]
        return self._tokenizer({word: i for i, word in enumerate(words)}, [], model_max_length)

    def _tokenizer(
        self, vocab: dict[str, int], merges: list[tuple[str, ...]], model_max_length: int
    ) -> PreTrainedTokenizerFast:
        # The mask takes the space before it, as a word does that stands in its place.
        mask = AddedToken("<mask>", lstrip=True, special=True)
        return RobertaTokenizer(vocab=vocab, merges=merges, mask_token=mask, model_max_length=model_max_length)


class EndOfText(ByteLevel):
    """A byte-level BPE vocabulary in GPT-2's form (Radford et al. 2019), whose only special token ends a document."""

    special_tokens = [END_OF_TEXT]  # noqa: RUF012 - never written to

    def _tokenizer(
        self, vocab: dict[str, int], merges: list[tuple[str, ...]], model_max_length: int
    ) -> PreTrainedTokenizerFast:
        return GPT2Tokenizer(vocab=vocab, merges=merges, model_max_length=model_max_length)
