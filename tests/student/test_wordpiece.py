from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from corpus_samples import random_documents
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, pipeline

from potstill.errors import PotstillError
from potstill.student.wordpiece import WordPiece


def given(documents: list[str]) -> Callable[[], list[bytes]]:
    return lambda: [document.encode() for document in documents]


ENGLISH = [
    " ".join(f"{a}{b}" for a in document.split() for b in ("ed", "ing")) for document in random_documents(300, 8)
]


def test_the_vocabulary_has_exactly_the_size_and_begins_with_the_special_tokens() -> None:
    tokenizer = WordPiece().train(given(ENGLISH), 120, lowercase=True, model_max_length=64)
    vocabulary = tokenizer.get_vocab()
    assert sorted(vocabulary.values()) == list(range(120))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.convert_ids_to_tokens(range(5)) == special
    assert sorted(tokenizer.all_special_ids) == [0, 1, 2, 3, 4]
    assert tokenizer.model_max_length == 64
    assert tokenizer("Cat")["input_ids"] == [2, *tokenizer.convert_tokens_to_ids(tokenizer.tokenize("cat")), 3]


def test_the_same_text_gives_the_same_vocabulary() -> None:
    # `tokenizers` draws the seeds of its hash maps anew for every training, so one process is enough to see them.
    first, *others = (WordPiece().train(given(ENGLISH), 150, True, 64).get_vocab() for _ in range(4))
    assert all(first == other for other in others)


def test_pieces_are_merged_from_the_most_frequent_on() -> None:
    documents = given(["ab ab ab", "ab ab", "cd cd cd cd", "ac"])
    characters = 5 + 4 + 4  # special tokens, a to d, ##a to ##d
    longest = [WordPiece().train(documents, characters + 1 + i, True, 64).convert_ids_to_tokens(13 + i) for i in (0, 1)]
    assert longest == ["ab", "cd"]


@pytest.mark.parametrize("lowercase", [True, False])
def test_it_loads_anywhere_and_gives_identical_ids(tmp_path: Path, lowercase: bool) -> None:
    tokenizer = WordPiece().train(given(ENGLISH), 150, lowercase, model_max_length=64)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is type(tokenizer)
    assert loaded.model_max_length == 64
    for text in [*random_documents(50, seed=9), "The Cats SAT", "çà et là — 漢字 [MASK] 3,14"]:
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (loaded.tokenize("CAT") == loaded.tokenize("cat")) is lowercase


def test_fill_mask_works_with_it(tmp_path: Path) -> None:
    tokenizer = WordPiece().train(given(ENGLISH), 150, True, model_max_length=64)
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=150, **size)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    answers = pipeline("fill-mask", model=str(tmp_path))("the cat [MASK] on the mat")
    assert len(answers) == 5


def test_a_text_too_small_is_an_error() -> None:
    with pytest.raises(PotstillError, match=r"only .* entries, not 5000"):
        WordPiece().train(given(["the cat sat on the mat"] * 3), 5000, True, 64)
    with pytest.raises(PotstillError, match="only 5 entries"):
        WordPiece().train(given([]), 5000, True, 64)


def test_an_alphabet_too_large_is_an_error() -> None:
    with pytest.raises(PotstillError, match="alphabet of the text alone takes"):
        WordPiece().train(given(ENGLISH), 20, True, 64)


def test_the_alphabet_leaves_out_what_is_rare_and_keeps_what_is_not() -> None:
    ideographs = [chr(0x4E00 + number) for number in range(2000)]  # more than an English text has characters
    documents = given(["".join(ideographs)] * 10 + ["\u2603"])
    # A single snowman in 20,001 characters is beyond the coverage; and ideographs, one a word, have no inner pieces.
    tokenizer = WordPiece().train(documents, 5 + 2000, True, 64)
    assert tokenizer.convert_ids_to_tokens(range(5, 2005)) == ideographs


def test_words_made_of_the_alphabet_are_never_unknown() -> None:
    tokenizer = WordPiece().train(given(ENGLISH), 150, True, 64)
    letters = [piece for piece in tokenizer.get_vocab() if len(piece) == 1 and piece.isalpha() and piece.isascii()]
    for first in letters:
        assert tokenizer.unk_token_id not in tokenizer(first + "".join(letters), add_special_tokens=False)["input_ids"]
