"""A cut tokenizer finds the pieces that the whole one finds."""

import json
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertTokenizer,
    CamembertTokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    XLMRobertaTokenizer,
)

from potstill.corpus.tokenizer import control_ids
from potstill.corpus.tokenizer_pruning import prune_tokenizer, tokens_to_keep
from potstill.errors import PotstillError
from potstill.student.byte_level import ByteLevel

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcd"


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def cut(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> tuple[PreTrainedTokenizerFast, np.ndarray]:
    kept = tokens_to_keep(tokenizer, {number for text in texts for number in ids_of(tokenizer, text)})
    return prune_tokenizer(tokenizer, kept), kept


def assert_same_pieces(
    whole: PreTrainedTokenizerFast, small: PreTrainedTokenizerFast, kept: np.ndarray, texts: list[str]
) -> None:
    for text in texts:
        assert kept[ids_of(small, text)].tolist() == ids_of(whole, text), text
        framed = small(text, padding="max_length", max_length=len(text) + 9)["input_ids"]
        assert kept[framed].tolist() == whole(text, padding="max_length", max_length=len(text) + 9)["input_ids"]
        assert kept[small(text, text)["input_ids"]].tolist() == whole(text, text)["input_ids"]


def wrapped(model: Any) -> PreTrainedTokenizerFast:
    """A tokenizer around a model that has the special tokens; words end at white space."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", ends)
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def numbered(rng: random.Random, pieces: list[str]) -> dict[str, int]:
    """Pieces with ids in random order, the special tokens among them, and gaps between the ids."""
    entries = [*SPECIAL, *pieces]
    return dict(zip(entries, rng.sample(range(2 * len(entries)), len(entries)), strict=True))


def words_of(rng: random.Random, count: int, longest: int) -> list[str]:
    return sorted({"".join(rng.choices(LETTERS, k=rng.randint(1, longest))) for _ in range(count)})


def random_wordpiece(rng: random.Random) -> PreTrainedTokenizerFast:
    """Some letters are no piece by themselves, so that words are given up in the middle."""
    pieces = words_of(rng, 12, 4) + [f"##{word}" for word in words_of(rng, 12, 4)]
    return wrapped(models.WordPiece(numbered(rng, pieces), unk_token="[UNK]", max_input_chars_per_word=12))


def random_bpe(rng: random.Random, **options: Any) -> PreTrainedTokenizerFast:
    """Merges of random pairs, so that many tokens are made in several ways, and one letter that is unknown."""
    pieces, merges = list(LETTERS[:-1]), []
    for _ in range(25):
        left, right = rng.choice(pieces), rng.choice(pieces)
        if len(left + right) <= 6 and (left, right) not in merges:
            merges.append((left, right))
            pieces += [left + right] * (left + right not in pieces)
    return wrapped(models.BPE(vocab=numbered(rng, pieces), merges=merges, unk_token="[UNK]", **options))


def random_unigram(rng: random.Random) -> PreTrainedTokenizerFast:
    """Scores of few values, so that several ways to cut a word are equally good; and letters without a piece."""
    entries = [*SPECIAL, *words_of(rng, 16, 4)]
    rng.shuffle(entries)
    scores = [(entry, 0.0 if entry in SPECIAL else -float(rng.randint(1, 9))) for entry in entries]
    return wrapped(models.Unigram(scores, unk_id=entries.index("[UNK]")))


def random_wordlevel(rng: random.Random) -> PreTrainedTokenizerFast:
    return wrapped(models.WordLevel(numbered(rng, words_of(rng, 16, 3)), unk_token="[UNK]"))


KINDS: dict[str, Callable[[random.Random], PreTrainedTokenizerFast]] = {
    "WordPiece": random_wordpiece,
    "BPE": random_bpe,
    "BPE that looks words up first": lambda rng: random_bpe(rng, ignore_merges=True),
    "Unigram": random_unigram,
    "WordLevel": random_wordlevel,
}


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=40, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_the_pieces_of_the_text_are_the_same(kind: str, seed: int) -> None:
    rng = random.Random(seed)
    whole = KINDS[kind](rng)
    texts = [" ".join(words_of(rng, 3, 8)) for _ in range(rng.randint(1, 3))]
    small, kept = cut(whole, texts)
    assert_same_pieces(whole, small, kept, texts)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_used_goes_and_any_text_has_tokens(kind: str) -> None:
    rng, smaller = random.Random(1), 0
    for _ in range(20):
        whole = KINDS[kind](rng)
        small, kept = cut(whole, [words_of(rng, 1, 3)[0]])
        smaller += len(small) < len(whole)
        assert sorted(small.get_vocab().values()) == list(range(len(kept)))
        assert control_ids(small) == np.searchsorted(kept, control_ids(whole)).tolist()
        for _ in range(5):
            text = " ".join(words_of(rng, 5, 9))
            assert max(ids_of(small, text)) < len(kept)
            letters = {letter for letter in text if not set(ids_of(whole, letter)) & {whole.unk_token_id}}
            assert all(small.unk_token_id not in ids_of(small, letter) for letter in letters) or kind == "WordLevel"
    assert smaller > 10


def test_a_word_that_was_unknown_stays_unknown() -> None:
    # "ab" is taken first, then no piece begins with c. Without "ab", "a" and "##bc" would do.
    whole = wrapped(models.WordPiece({p: n for n, p in enumerate([*SPECIAL, "a", "ab", "##bc"])}, unk_token="[UNK]"))
    small, kept = cut(whole, ["abc", "a abc"])
    assert ids_of(whole, "abc") == [whole.unk_token_id]
    assert_same_pieces(whole, small, kept, ["abc"])

    kept = tokens_to_keep(whole, [5, 7])  # no unknown word is in the text
    assert kept.tolist() == [0, 1, 2, 3, 4, 5, 7]


def test_an_unknown_character_scores_what_it_did() -> None:
    # It scores 10 below the piece with the lowest score, which the text does not use. At -24 instead of -40, an unknown
    # c and "aab" would be better than "ca" and "ab".
    scores = [*((piece, 0.0) for piece in SPECIAL), ("ca", -14.0), ("ab", -14.0), ("aab", -1.0), ("dd", -30.0)]
    whole = wrapped(models.Unigram(scores, unk_id=1))
    small, kept = cut(whole, ["caab", "aab"])
    assert whole.convert_ids_to_tokens(ids_of(whole, "caab")) == ["ca", "ab"]
    assert_same_pieces(whole, small, kept, ["caab", "aab"])


def test_all_parts_of_a_merged_token_are_kept_and_no_others() -> None:
    pieces = ["a", "b", "c", "ab", "bc", "abc", "ca", "aa", "aabc"]
    merges = [("a", "b"), ("b", "c"), ("ab", "c"), ("c", "a"), ("a", "a"), ("a", "abc")]
    whole = wrapped(
        models.BPE(vocab={p: n for n, p in enumerate([*SPECIAL, *pieces])}, merges=merges, unk_token="[UNK]")
    )
    kept = tokens_to_keep(whole, [whole.convert_tokens_to_ids("abc")])
    assert whole.convert_ids_to_tokens(kept.tolist()) == [*SPECIAL, "a", "b", "c", "ab", "abc"]
    model = json.loads(prune_tokenizer(whole, kept).backend_tokenizer.to_str())["model"]
    assert model["merges"] == [["a", "b"], ["ab", "c"]]


TEXTS = ["The naïve cat sat, on the mat! 漢字 🙂 <url>", "hello hello\tspirit  of malt", "x" * 40]


def sentencepiece_entries(special: list[str]) -> list[tuple[str, float]]:
    letters = sorted({*"".join(TEXTS), "▁", "q", "z"} - {" ", "\t", "🙂"})
    words = ["▁the", "▁cat", "▁sat", "he", "llo", "▁hello", "▁spirit", "▁ma", "lt", "▁unused", "unusual", "ing"]
    entries = [(entry, 0.0) for entry in special]
    return entries + [(piece, -2.0 - 0.1 * n) for n, piece in enumerate([*words, *letters])]


def bert() -> PreTrainedTokenizerFast:
    letters = [*"abcdefghijklmnopqrstuvwxyz,!<>漢字"]
    pieces = [*SPECIAL, *letters, *(f"##{c}" for c in letters), "the", "cat", "hello", "unused", "##ing", "spirit"]
    tokenizer = BertTokenizer(vocab={piece: number for number, piece in enumerate(["[unused1]", *pieces])})
    tokenizer.add_tokens(["never", "malt"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<url>"]})
    return tokenizer


def roberta() -> PreTrainedTokenizerFast:
    words = ["the cat sat on the mat", "hello spirit of malt", "unused unused unused words"]
    return ByteLevel().train(lambda: [text.encode() for text in words * 4], 290, None, 64)


def xlm_roberta() -> PreTrainedTokenizerFast:
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    return XLMRobertaTokenizer(vocab=[*sentencepiece_entries(special), ("<mask>", 0.0)])


def camembert() -> PreTrainedTokenizerFast:
    special = ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>"]
    return CamembertTokenizer(vocab=[*sentencepiece_entries(special), ("<mask>", 0.0)])


def llama() -> PreTrainedTokenizerFast:
    entries = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = [entry for entry, _ in sentencepiece_entries([]) if len(entry) == 1]
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("▁", "hello"), ("▁", "t"), ("▁t", "he"), ("z", "q")]
    entries += [*letters, *("".join(pair) for pair in merges)]
    tokenizer = LlamaTokenizer(vocab={entry: number for number, entry in enumerate(entries)}, merges=merges)
    tokenizer.pad_token = "</s>"
    return tokenizer


@pytest.mark.parametrize("make", [bert, roberta, xlm_roberta, camembert, llama])
def test_tokenizers_of_known_models(make: Callable[[], PreTrainedTokenizerFast]) -> None:
    whole = make()
    small, kept = cut(whole, TEXTS)
    assert len(kept) == len(small) < len(whole)
    assert type(small) is type(whole)
    assert_same_pieces(whole, small, kept, TEXTS)
    for role in ("pad", "unk", "cls", "sep", "mask", "bos", "eos"):
        assert getattr(small, f"{role}_token") == getattr(whole, f"{role}_token")
    assert small.get_added_vocab().keys() == whole.get_added_vocab().keys()
    assert ids_of(small, "never seen: Ωmega q")  # any other text has tokens too
    assert ids_of(whole, TEXTS[0])[0] >= 0
    assert small.decode(ids_of(small, TEXTS[1])) == whole.decode(ids_of(whole, TEXTS[1]))


def test_padding_and_an_unused_token_at_the_end_are_renumbered() -> None:
    whole = bert()
    whole.add_tokens([AddedToken("last", lstrip=True)])
    whole.backend_tokenizer.enable_padding(pad_id=whole.pad_token_id, pad_token="[PAD]")  # until it reads a text
    kept = tokens_to_keep(whole, [])
    small = prune_tokenizer(whole, kept)
    assert small.backend_tokenizer.padding["pad_id"] == small.pad_token_id == whole.pad_token_id - 1
    assert kept[ids_of(small, "the last c")[-2]] == len(whole) - 1


def test_the_whole_tokenizer_stays_as_it_is() -> None:
    whole = bert()
    before = whole.backend_tokenizer.to_str()
    cut(whole, TEXTS)
    assert whole.backend_tokenizer.to_str() == before


def test_what_cannot_be_cut_is_one_sentence() -> None:
    other = SimpleNamespace(
        name_or_path="some/model", backend_tokenizer=SimpleNamespace(to_str=lambda: '{"model": {"type": "Other"}}')
    )
    with pytest.raises(PotstillError, match=r"some/model .* cannot be cut, because Other is none of the kinds"):
        tokens_to_keep(other, [0])  # type: ignore[arg-type]
    with pytest.raises(PotstillError, match="has no token with the id 9999"):
        tokens_to_keep(bert(), [1, 9999])


def test_a_tokenizer_that_is_another_one_once_it_is_loaded_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potstill.corpus.tokenizer_pruning.AutoTokenizer.from_pretrained", lambda *_, **__: bert())
    with pytest.raises(PotstillError, match="not the same after it was cut, saved and loaded: keep it whole"):
        cut(bert(), ["cat"])
