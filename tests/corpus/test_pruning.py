"""A corpus whose vocabulary is cut: the same blocks in other ids."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus_samples import random_documents, write_manifest
from transformers import AutoTokenizer, BertTokenizer

from potstill.corpus import prepare, writing
from potstill.corpus.blocks import Corpus
from potstill.corpus.fingerprint import tokenizer_fingerprint
from potstill.corpus.pruning import UsedTokens
from potstill.corpus.tokenizer import TokenizerSpec, control_ids
from potstill.errors import PotstillError

FILES = ["train.arrow", "validation.arrow", "token_counts.npy", "kept_tokens.npy", "tokenizer/tokenizer.json"]
OPTIONS: dict[str, Any] = {"block_size": 16, "validation_fraction": 0.2, "seed": 3, "num_proc": 1}


@pytest.fixture(scope="module")
def large(tokenizer: BertTokenizer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tokenizer of this room, with 300 words more that no text has, and a placeholder: ids take two bytes."""
    words = [*(f"unused{n}" for n in range(200)), *tokenizer.get_vocab(), *(f"other{n}" for n in range(100))]
    words.sort(key=lambda word: word not in ("[PAD]", "[UNK]"))
    folder = tmp_path_factory.mktemp("large")
    whole = BertTokenizer(vocab={word: number for number, word in enumerate(words)}, model_max_length=16)
    whole.add_special_tokens({"additional_special_tokens": ["<url>"]})
    whole.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(random_documents(400, seed=1)) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def whole(large: str, text: str, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return prepare([text], str(tmp_path_factory.mktemp("whole") / "corpus"), large, **OPTIONS)


@pytest.fixture(scope="module")
def cut(large: str, text: str, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return prepare([text], str(tmp_path_factory.mktemp("cut") / "corpus"), large, prune_vocabulary=True, **OPTIONS)


def all_ids(corpus: Corpus) -> tuple[np.ndarray, np.ndarray]:
    train, validation = (np.concatenate(list(split.pieces())) for split in (corpus.train, corpus.validation))
    return train, validation


def test_the_blocks_are_the_same_in_other_ids(whole: Corpus, cut: Corpus) -> None:
    kept = cut.kept_tokens
    assert kept is not None
    assert whole.kept_tokens is None
    for before, after in zip(all_ids(whole), all_ids(cut), strict=True):
        assert (kept[after] == before).all()
    assert (cut.token_counts == whole.token_counts[kept]).all()
    assert cut.token_counts.sum() == whole.token_counts.sum()
    assert cut.manifest.splits == whole.manifest.splits
    assert (whole.manifest.dtype, cut.manifest.dtype) == ("uint16", "uint8")
    assert all_ids(cut)[0].dtype == np.uint8


def test_what_is_kept_is_what_is_used_and_what_any_text_needs(whole: Corpus, cut: Corpus) -> None:
    tokenizer = whole.tokenizer()
    kept = set(tokenizer.convert_ids_to_tokens(cut.kept_tokens.tolist()))
    used = set(tokenizer.convert_ids_to_tokens(np.unique(np.concatenate(all_ids(whole))).tolist()))
    single = {token for token in tokenizer.get_vocab() if len(token.removeprefix("##")) == 1}
    special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<url>"}
    assert used | single | special <= kept
    assert not [token for token in kept if "unused" in token or "other" in token]
    assert "spirit" in used


def test_the_manifest_tells_of_both_tokenizers(whole: Corpus, cut: Corpus, large: str) -> None:
    record = cut.manifest.whole_tokenizer
    assert record == whole.manifest.tokenizer
    assert whole.manifest.whole_tokenizer is None
    assert cut.manifest.tokenizer.vocab_size == len(cut.kept_tokens)
    assert cut.manifest.tokenizer.fingerprint == tokenizer_fingerprint(cut.tokenizer()) != record.fingerprint
    written = json.loads((cut.folder / "manifest.json").read_text())
    assert written["format_version"] == 3
    assert written["whole_tokenizer"]["class"] == "BertTokenizer"
    assert (
        written["checksums"]["kept_tokens.npy"]
        == hashlib.sha256((cut.folder / "kept_tokens.npy").read_bytes()).hexdigest()
    )
    before = json.loads((whole.folder / "manifest.json").read_text())
    assert before["format_version"] == 2  # which earlier versions read
    assert "whole_tokenizer" not in before
    assert f"vocabulary: {len(cut.kept_tokens)} of {record.vocab_size} tokens kept" in str(cut)
    assert "vocabulary:" not in str(whole)
    assert sorted(path.name for path in cut.folder.iterdir()) == sorted([*FILES[:4], "manifest.json", "tokenizer"])


def test_the_cut_tokenizer_loads_alone_and_reads_the_text_as_before(whole: Corpus, cut: Corpus) -> None:
    alone, before = AutoTokenizer.from_pretrained(cut.folder / "tokenizer"), whole.tokenizer()
    assert type(alone) is BertTokenizer
    assert alone.model_max_length == 16
    for document in random_documents(400, seed=1):
        assert (cut.kept_tokens[alone(document)["input_ids"]] == before(document)["input_ids"]).all()
    assert control_ids(alone) == np.searchsorted(cut.kept_tokens, control_ids(before)).tolist()


def test_the_bytes_are_the_same_for_any_processes(
    cut: Corpus, large: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "batch_bytes_for", lambda *_: 3000)
    options = OPTIONS | {"num_proc": 2}
    again = prepare([text], str(tmp_path / "corpus"), large, prune_vocabulary=True, **options)
    for name in FILES:
        assert (again.folder / name).read_bytes() == (cut.folder / name).read_bytes(), name
    assert again.fingerprint == cut.fingerprint


def test_which_models_fit(whole: Corpus, cut: Corpus, tokenizer: BertTokenizer) -> None:
    assert whole.cut_needed(whole.tokenizer(), "me/teacher") is None
    assert cut.cut_needed(cut.tokenizer(), "me/teacher") is None
    assert (cut.cut_needed(whole.tokenizer(), "me/teacher") == cut.kept_tokens).all()
    for corpus, other in ((whole, cut.tokenizer()), (whole, tokenizer), (cut, tokenizer)):
        with pytest.raises(PotstillError, match="is different from that of me/teacher: prepare the text again"):
            corpus.cut_needed(other, "me/teacher")
    cut.check_tokenizer(cut.tokenizer(), "me/teacher")
    with pytest.raises(PotstillError, match=r"is cut to \d+ of \d+ tokens, but that of me/teacher is whole: give .*"):
        cut.check_tokenizer(whole.tokenizer(), "me/teacher")


@pytest.fixture
def copy_of_cut(cut: Corpus, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cut.folder, tmp_path / "copy"))


def test_a_damaged_list_of_kept_tokens_is_found(copy_of_cut: Path) -> None:
    path = copy_of_cut / "kept_tokens.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-8] + bytes([content[-8] ^ 1]) + content[-7:])
    with pytest.raises(PotstillError, match=r"kept_tokens\.npy is damaged"):
        Corpus.open(copy_of_cut)
    path.unlink()
    with pytest.raises(PotstillError, match=r"kept_tokens\.npy is missing"):
        Corpus.open(copy_of_cut)


@pytest.mark.parametrize("wrong", ["short", "order", "beyond", "type"])
def test_kept_tokens_that_cannot_be_are_refused(cut: Corpus, copy_of_cut: Path, wrong: str) -> None:
    kept = cut.kept_tokens.copy()
    changed = {"short": kept[1:], "order": kept[::-1], "beyond": kept, "type": kept.astype(np.int32)}[wrong]
    if wrong == "beyond":
        changed[-1] += 10**6
    np.save(copy_of_cut / "kept_tokens.npy", changed)
    corpus = Corpus.open(copy_of_cut, verify=False)
    with pytest.raises(PotstillError, match=r"kept_tokens\.npy is damaged .* prepare the corpus again"):
        corpus.kept_tokens  # noqa: B018 - it is read on first use


@pytest.mark.parametrize("wrong", [None, {}, {"name": 3}, "tokenizer"])
def test_a_manifest_without_the_whole_tokenizer_is_refused(copy_of_cut: Path, wrong: Any) -> None:
    manifest = json.loads((copy_of_cut / "manifest.json").read_text())
    write_manifest(copy_of_cut, manifest | {"whole_tokenizer": wrong})
    with pytest.raises(PotstillError, match="prepare the corpus again"):
        Corpus.open(copy_of_cut)


def test_a_new_tokenizer_is_not_cut(text: str, tmp_path: Path) -> None:
    with pytest.raises(PotstillError, match="--train_tokenizer makes a new one: leave one of them out"):
        prepare([text], str(tmp_path / "out"), train_tokenizer=True, prune_vocabulary=True)
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_that_reads_the_text_otherwise_is_refused(
    large: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from potstill.corpus import pruning

    needed = pruning.tokens_to_keep

    def too_few(tokenizer: Any, used: Any) -> np.ndarray:
        kept = needed(tokenizer, used)
        return kept[kept != tokenizer.convert_tokens_to_ids("spirit")]

    monkeypatch.setattr(pruning, "tokens_to_keep", too_few)
    with pytest.raises(PotstillError, match="does not read the text as before once its vocabulary is cut"):
        prepare([text], str(tmp_path / "out"), large, prune_vocabulary=True, **OPTIONS)
    assert not list(tmp_path.iterdir())


def test_the_sample_is_spread_over_the_text_and_bounded(tokenizer: BertTokenizer) -> None:
    notes = UsedTokens(TokenizerSpec.of(tokenizer, "given"), sample_bytes=1000)
    documents = [b"%07d" % number for number in range(5000)]
    assert list(notes.of_documents(documents)) == documents
    assert 500 <= sum(map(len, notes.sample)) <= 1000
    numbers = np.array([int(document) for document in notes.sample])
    assert len(set(np.diff(numbers))) == 1
    assert numbers[0] == 0
    assert numbers[-1] > 4800
    huge = UsedTokens(TokenizerSpec.of(tokenizer, "given"), sample_bytes=10)
    assert list(huge.of_documents([b"x" * 100])) == huge.sample


def test_the_help_tells_of_it() -> None:
    from potstill.cli import VERBS
    from potstill.help_text import full_help
    from potstill.option_table import verb_of

    assert re.search(r"--prune_vocabulary", full_help("prepare", verb_of("prepare", VERBS["prepare"][0])))
