from collections.abc import Callable
from pathlib import Path

import pytest
from corpus_samples import random_documents
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, RobertaTokenizer

from potstill.errors import PotstillError
from potstill.student.byte_level import ByteLevel

DOCUMENTS = [" ".join(f"{word}ing" for word in document.split()) + "\n\n  12%" for document in random_documents(300, 8)]
HARD = ["", " ", "The <mask> of it", "naïve — 漢字 🙂\n\n\ttab  two", "</s> <s>", "it's 3,14 don't", "\x00\x7f\u200b"]


def given(documents: list[str]) -> Callable[[], list[bytes]]:
    return lambda: [document.encode() for document in documents]


@pytest.fixture(scope="module")
def tokenizer() -> RobertaTokenizer:
    return ByteLevel().train(given(DOCUMENTS), 300, None, 64)


def test_the_vocabulary_has_exactly_the_size_and_begins_with_special_tokens_and_bytes(
    tokenizer: RobertaTokenizer,
) -> None:
    assert sorted(tokenizer.get_vocab().values()) == list(range(300))
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    assert set(tokenizer.convert_ids_to_tokens(range(5, 261))) == set(pre_tokenizers.ByteLevel.alphabet())
    roles = ("bos", "cls", "pad", "eos", "sep", "unk", "mask")
    assert [getattr(tokenizer, f"{role}_token_id") for role in roles] == [0, 0, 1, 2, 2, 3, 4]
    assert tokenizer.model_max_length == 64
    assert tokenizer.model_input_names == ["input_ids", "attention_mask"]


def test_the_same_text_gives_the_same_vocabulary(tokenizer: RobertaTokenizer) -> None:
    # `tokenizers` draws the seeds of its hash maps anew for every training, so one process is enough to see them.
    # All pairs of letters are as frequent here: the order of their merges is left to how ties are broken.
    ties = given([f"{a}{b} {a}{b} {a}{b}" for a in "abcdefghij" for b in "klmnopqrst"])
    for documents, size in ((given(DOCUMENTS), 300), (ties, 330)):
        first, *others = (ByteLevel().train(documents, size, None, 64) for _ in range(4))
        for other in others:
            assert other.get_vocab() == first.get_vocab()
            assert other.backend_tokenizer.to_str() == first.backend_tokenizer.to_str()
    assert ByteLevel().train(given(DOCUMENTS), 300, False, 64).get_vocab() == tokenizer.get_vocab()


def test_pieces_are_merged_from_the_most_frequent_on() -> None:
    trained = ByteLevel().train(given(["ab ab ab", "ab ab", "cd cd cd cd", "ac"]), 264, None, 64)
    assert trained.convert_ids_to_tokens(range(261, 264)) == ["ab", "cd", "Ġab"]


@pytest.mark.parametrize("text", HARD)
def test_any_text_comes_back_and_none_of_it_is_unknown(tokenizer: RobertaTokenizer, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    if "<" not in text:
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_the_mask_stands_for_a_word_and_the_space_before_it(tokenizer: RobertaTokenizer) -> None:
    ids = tokenizer("the <mask> sat")["input_ids"]
    assert ids == [0, *tokenizer("the", add_special_tokens=False)["input_ids"], 4, *tokenizer(" sat")["input_ids"][1:]]


def test_it_loads_anywhere_and_gives_identical_ids(tokenizer: RobertaTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is RobertaTokenizer
    assert loaded.model_max_length == 64
    for text in [*random_documents(50, seed=9), *HARD]:
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert loaded(text, "the cat")["input_ids"] == tokenizer(text, "the cat")["input_ids"]


def test_what_cannot_be_is_told() -> None:
    with pytest.raises(PotstillError, match="take 261 entries: give --vocab_size 522 or more"):
        ByteLevel().train(given(DOCUMENTS), 260, None, 64)
    with pytest.raises(PotstillError, match=r"a vocabulary of only \d+ entries, not 50000: lower --vocab_size"):
        ByteLevel().train(given(DOCUMENTS), 50000, None, 64)
    with pytest.raises(PotstillError, match="keeps case and accents: leave --lowercase out"):
        ByteLevel().train(given(DOCUMENTS), 300, True, 64)


def test_a_meaningless_one_has_its_size() -> None:
    meaningless = ByteLevel().meaningless(50, 16)
    assert (len(meaningless), meaningless.mask_token_id, meaningless.model_max_length) == (50, 4, 16)
