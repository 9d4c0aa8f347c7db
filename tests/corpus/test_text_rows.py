"""Blocks of whole texts: how they are packed, what is counted, and which tokenizers can frame them."""

import hashlib
import logging
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from corpus_samples import VOCABULARY, random_documents
from tokenizers import pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import BertTokenizer, GPT2Tokenizer

from potstill.corpus.blocks import Blocks, Corpus
from potstill.corpus.prepare import prepare
from potstill.corpus.text_rows import best_fit, slots
from potstill.corpus.worker import is_held_out, pieces
from potstill.errors import PotstillError

BLOCK = 32
FILES = ["train.arrow", "validation.arrow", "token_counts.npy"]


def prepared(folder: Path, text: str, tokenizer: object, **options: object) -> Corpus:
    given = {"block_size": BLOCK, "validation_fraction": 0.2, "num_proc": 1, "unit": "texts", "seed": 3}
    return prepare([text], str(folder), tokenizer, **(given | options))  # type: ignore[arg-type]


def texts_of(blocks: Blocks, tokenizer: BertTokenizer) -> list[tuple[int, ...]]:
    """The texts in blocks without their frames, read token by token; the frames and the padding have to be right."""
    found = []
    for item in blocks:
        row = item["input_ids"].tolist()
        assert row[0] == tokenizer.cls_token_id
        while row and row[0] != tokenizer.pad_token_id:
            assert row[0] == tokenizer.cls_token_id
            end = row.index(tokenizer.sep_token_id)
            found.append(tuple(row[1:end]))
            row = row[end + 1 :]
        assert set(row) <= {tokenizer.pad_token_id}
    return found


def tokenised(tokenizer: BertTokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


@pytest.mark.parametrize("seed", range(5))
def test_best_fit_holds_every_item_once_and_overfills_no_bin(seed: int) -> None:
    rng = random.Random(seed)
    size, most = rng.randint(5, 40), rng.randint(1, 6)
    lengths = [rng.randint(1, size) for _ in range(200)]
    bins = best_fit(lengths, size, most)
    assert sorted(item for items in bins for item in items) == list(range(200))
    assert all(sum(lengths[item] for item in items) <= size for items in bins)
    assert all(1 <= len(items) <= most for items in bins)


@pytest.mark.parametrize("seed", range(5))
def test_best_fit_is_the_naive_one(seed: int) -> None:
    rng = random.Random(10 + seed)
    lengths = [rng.randint(1, 20) for _ in range(150)]
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        rooms.append((min(fitting) if fitting else 20) - length)
        if fitting:
            rooms.remove(min(fitting))
    found = [20 - sum(lengths[item] for item in items) for items in best_fit(lengths, 20, 150)]
    assert sorted(found) == sorted(rooms)


def test_best_fit_of_nothing() -> None:
    assert best_fit([], 8, 2) == []


def test_every_text_is_there_once(
    tmp_path: Path, text_file: str, tokenizer: BertTokenizer, tokenizer_folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        corpus = prepared(tmp_path / "out", text_file, tokenizer_folder)
    splits: tuple[list[tuple[int, ...]], list[tuple[int, ...]]] = ([], [])
    for number, document in enumerate(random_documents(400, seed=1)):
        splits[is_held_out(number, 3, 0.2)].append(tokenised(tokenizer, document))
    duplicates = cut = in_both = 0
    for blocks, given in zip((corpus.train, corpus.validation), splits, strict=True):
        different = dict.fromkeys(given)
        duplicates += len(given) - len(different)
        if given is splits[1]:
            in_both = len(different.keys() & set(splits[0]))
            different = dict.fromkeys(text for text in different if text not in splits[0])
        cut += sum(len(text) > BLOCK - 2 for text in different)
        expected = Counter(text[: BLOCK - 2] for text in different)
        assert Counter(texts_of(blocks, tokenizer)) == expected
        rows = np.stack([item["input_ids"].numpy() for item in blocks])
        assert ((rows == tokenizer.cls_token_id).sum(1) <= slots(BLOCK)).all()
    assert cut > 0
    warned = f"{cut} of {400 - duplicates - in_both} texts are longer than a block and were cut to {BLOCK} tokens."
    assert warned in caplog.messages
    assert corpus.manifest.unit == "texts"
    skipped = {"bad_text": 0, "empty": 0, "duplicate": duplicates, "held_out_but_in_train": in_both}
    assert corpus.manifest.skipped == skipped
    contents = [token for text in texts_of(corpus.train, tokenizer) for token in text]
    assert (corpus.token_counts == np.bincount(contents, minlength=len(tokenizer))).all()
    record = corpus.manifest.splits["train"]
    assert record.tokens == sum(len(text) + 1 for text in splits[0])
    assert record.tokens - record.dropped_tokens == len(contents)


def test_texts_that_occur_again_are_left_out_and_counted(
    tmp_path: Path, tokenizer: BertTokenizer, tokenizer_folder: str
) -> None:
    file = tmp_path / "text.txt"
    file.write_text("the cat\nthe  CAT\nsat\n\x01\n" + "the cat\n" * 3)
    corpus = prepared(tmp_path / "out", str(file), tokenizer_folder, validation_fraction=0)
    assert sorted(texts_of(corpus.train, tokenizer)) == sorted(
        tokenised(tokenizer, text) for text in ("the cat", "sat")
    )
    assert corpus.manifest.skipped == {"bad_text": 0, "empty": 1, "duplicate": 4, "held_out_but_in_train": 0}
    assert "4 duplicate" in str(corpus)


def test_no_held_out_text_is_trained_on(tmp_path: Path, tokenizer: BertTokenizer, tokenizer_folder: str) -> None:
    file = tmp_path / "text.txt"
    lines = ["the cat sat", "the cat", "cat sat", "sat the cat", "the sat"] * 8
    # The last documents decide: a text that is trained on only there was held out long before.
    file.write_text("\n".join([*lines, *("cat " * number for number in range(1, 30))]) + "\n")
    corpora = [
        prepared(tmp_path / str(size), str(file), tokenizer_folder, validation_fraction=0.4, memory_limit_mb=size)
        for size in (1, 1024)
    ]
    train, held_out = (set(texts_of(blocks, tokenizer)) for blocks in (corpora[0].train, corpora[0].validation))
    assert held_out
    assert not train & held_out
    given: tuple[set[tuple[int, ...]], set[tuple[int, ...]]] = (set(), set())
    for number, line in enumerate(file.read_text().splitlines()):
        given[is_held_out(number, 3, 0.4)].add(tokenised(tokenizer, line))
    assert train == given[0]
    assert held_out == given[1] - given[0]
    assert corpora[0].manifest.skipped["held_out_but_in_train"] == len(given[0] & given[1]) > 0
    assert "held out but in train" in str(corpora[0])
    assert corpora[0].fingerprint == corpora[1].fingerprint


@pytest.mark.parametrize("unit", ["texts", "sentences"])
def test_the_bytes_are_the_same_for_any_number_of_processes(
    tmp_path: Path, tokenizer_folder: str, monkeypatch: pytest.MonkeyPatch, unit: str
) -> None:
    monkeypatch.setattr("potstill.corpus.text_rows.WINDOW_TOKENS", 700)  # several windows
    monkeypatch.setattr("potstill.corpus.packing.TOKENS_PER_RECORD_BATCH", 5 * BLOCK)
    file = tmp_path / "text.txt"
    documents = random_documents(900, seed=5)
    file.write_text("\n".join(f"{one}. {other}! " for one, other in pairwise(documents)))
    hashes = []
    for number, options in enumerate([{"num_proc": 1}, {"num_proc": 3, "memory_limit_mb": 1}]):
        folder = tmp_path / str(number)
        prepared(folder, str(file), tokenizer_folder, unit=unit, **options)
        hashes.append([hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES])
    assert hashes[0] == hashes[1]


def test_pieces_are_the_text_in_one_to_four_sentences() -> None:
    text = 'He said "Stop!" Then he left (at 3.14 p.m.). Why?\n\nNobody   knows… «Да.» (No.) 你好。再见！ the end'
    sentences = [
        *('He said "Stop!"', "Then he left (at 3.14 p.m.).", "Why?", "Nobody   knows…", "«Да.»", "(No.)"),
        *("你好。", "再见！", "the end"),
    ]
    seen = set()
    for key in map(str, range(30)):
        found = pieces(text, key)
        assert " ".join(found) == " ".join(sentences)
        assert found == pieces(text, key)
        sizes = [sum(sentence in piece for sentence in sentences) for piece in found]
        assert all(1 <= size <= 4 for size in sizes)
        seen.update(sizes[:-1])
    assert seen == {1, 2, 3, 4}
    assert pieces(" \n ", "0") == []


def test_sentences_are_the_pieces_of_the_documents(
    tmp_path: Path, tokenizer: BertTokenizer, tokenizer_folder: str
) -> None:
    documents = [". ".join(random_documents(6, seed=number, words=(1, 6))) for number in range(40)]
    file = tmp_path / "text.txt"
    file.write_text("\n".join(documents))
    corpus = prepared(tmp_path / "out", str(file), tokenizer_folder, unit="sentences")
    expected: tuple[set[tuple[int, ...]], set[tuple[int, ...]]] = (set(), set())
    for number, document in enumerate(documents):
        texts = (tokenised(tokenizer, piece)[: BLOCK - 2] for piece in pieces(document, f"3 {number}"))
        expected[is_held_out(number, 3, 0.2)].update(texts)
    assert set(texts_of(corpus.train, tokenizer)) == expected[0]
    assert set(texts_of(corpus.validation, tokenizer)) == expected[1]
    assert corpus.manifest.splits["train"].documents + corpus.manifest.splits["validation"].documents == 40


def test_a_cut_vocabulary_holds_the_same_texts(
    tmp_path: Path, text_file: str, tokenizer: BertTokenizer, tokenizer_folder: str
) -> None:
    file = tmp_path / "few.txt"
    file.write_text("\n".join(line for line in Path(text_file).read_text().splitlines() if "oak" in line.split()))
    whole = prepared(tmp_path / "whole", str(file), tokenizer_folder)
    cut = prepared(tmp_path / "cut", str(file), tokenizer_folder, prune_vocabulary=True)
    kept = cut.kept_tokens
    assert kept is not None
    rows = [[item["input_ids"].tolist() for item in corpus.train] for corpus in (whole, cut)]
    assert rows[0] == kept[np.array(rows[1])].tolist()
    assert texts_of(cut.train, cut.tokenizer())  # its frames and its padding are those of the cut tokenizer


def without(tokenizer: BertTokenizer, **changes: object) -> BertTokenizer:
    changed = BertTokenizer(vocab={piece: number for number, piece in enumerate(VOCABULARY)})
    for name, value in changes.items():
        setattr(changed, name, value)
    return changed


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"cls_token": None}, r"lacks \[CLS\], \[SEP\] or \[PAD\]"),
        ({"sep_token": None, "eos_token": "still"}, r"lacks \[CLS\], \[SEP\] or \[PAD\]"),
        ({"pad_token": None}, r"lacks \[CLS\], \[SEP\] or \[PAD\]"),
        ({"pad_token": "[SEP]"}, "uses one token for two of"),
        ({"pad_token": "[UNK]"}, "uses one token for two of"),
        ({"cls_token": "[SEP]"}, "uses one token for two of"),
    ],
    ids=str,
)
def test_a_tokenizer_that_cannot_frame_texts(
    tmp_path: Path, text_file: str, tokenizer: BertTokenizer, changes: dict[str, object], says: str
) -> None:
    with pytest.raises(PotstillError, match=says) as caught:
        prepared(tmp_path / "out", text_file, without(tokenizer, **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_frames_texts_in_another_way(tmp_path: Path, text_file: str, tokenizer: BertTokenizer) -> None:
    other = without(tokenizer)
    other.backend_tokenizer.post_processor = TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    with pytest.raises(PotstillError, match=r"does not put \[CLS\] before and \[SEP\] after a text"):
        prepared(tmp_path / "out", text_file, other)


def test_a_tokenizer_without_a_frame(tmp_path: Path, text_file: str) -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    gpt2 = GPT2Tokenizer(vocab={piece: number for number, piece in enumerate([*letters, "<|endoftext|>"])}, merges=[])
    with pytest.raises(PotstillError, match=r"lacks \[CLS\], \[SEP\] or \[PAD\]"):
        prepared(tmp_path / "out", text_file, gpt2)


def test_a_tokenizer_that_pads_and_cuts_by_itself(
    tmp_path: Path, text_file: str, tokenizer: BertTokenizer, tokenizer_folder: str
) -> None:
    other = without(tokenizer)
    other.backend_tokenizer.enable_padding(length=128)
    other.backend_tokenizer.enable_truncation(128)
    ours = prepared(tmp_path / "ours", text_file, other)
    theirs = prepared(tmp_path / "theirs", text_file, tokenizer_folder)
    assert texts_of(ours.train, tokenizer) == texts_of(theirs.train, tokenizer)


def test_blocks_without_a_frame_hold_no_texts(tmp_path: Path, text_file: str, tokenizer_folder: str) -> None:
    with pytest.raises(PotstillError, match="leave --frame_blocks False out"):
        prepared(tmp_path / "out", text_file, tokenizer_folder, frame_blocks=False)
    with pytest.raises(PotstillError, match="unit is 'words': give one of blocks, texts, sentences"):
        prepared(tmp_path / "out", text_file, tokenizer_folder, unit="words")
