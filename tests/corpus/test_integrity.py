import errno
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus_samples import random_documents, write_manifest

from potstill.corpus import blocks as room
from potstill.corpus import integrity
from potstill.corpus.blocks import Corpus
from potstill.corpus.prepare import prepare
from potstill.errors import PotstillError


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: str) -> Path:
    folder = tmp_path_factory.mktemp("integrity")
    (folder / "text.txt").write_text("\n".join(random_documents(200, seed=1)), encoding="utf-8")
    prepare(
        [str(folder / "text.txt")],
        str(folder / "blocks"),
        tokenizer=tokenizer_folder,
        block_size=16,
        validation_fraction=0.2,
    )
    return folder / "blocks"


@pytest.fixture
def corpus_folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "blocks"))


def make_old(folder: Path) -> None:
    """Give a corpus the manifest of format 1, which had no checksums."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["checksums"], manifest["fingerprint"]
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format_version": 1}))


def make_earlier(folder: Path) -> None:
    """Give a corpus the manifest of a version that wrote no checksum of the manifest itself."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["checksums"]["manifest.json"]
    (folder / "manifest.json").write_text(json.dumps(manifest))


def flip(path: Path, byte: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    path.write_bytes(data)


def place_of_ids(folder: Path, split: str) -> int:
    """Where in the file the ids of the first block begin."""
    corpus = Corpus.open(folder, verify=False)
    blocks = getattr(corpus, split)
    return int(blocks._first_id[0]) * np.dtype(corpus.manifest.dtype).itemsize


def test_the_manifest_holds_what_sha256sum_prints(whole: Path) -> None:
    manifest = json.loads((whole / "manifest.json").read_text())
    assert manifest["format_version"] == 2
    of_itself = manifest["checksums"].pop("manifest.json")
    assert manifest["checksums"] == {
        name: hashlib.sha256((whole / name).read_bytes()).hexdigest()
        for name in ("train.arrow", "validation.arrow", "token_counts.npy")
    }
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    assert of_itself == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("name", integrity.FILES)
def test_one_turned_bit_is_found_wherever_it_is(corpus_folder: Path, name: str) -> None:
    size = (corpus_folder / name).stat().st_size
    for number, byte in enumerate([0, size // 3, size // 2, size - 1]):
        flip(corpus_folder / name, byte, bit=number * 2)
        with pytest.raises(PotstillError, match=rf"blocks/{name} is damaged .*prepare the corpus again"):
            Corpus.open(corpus_folder)
        flip(corpus_folder / name, byte, bit=number * 2)
    Corpus.open(corpus_folder)


def test_a_turned_bit_in_the_manifest_is_blamed_on_the_manifest(corpus_folder: Path) -> None:
    text = (corpus_folder / "manifest.json").read_bytes()
    checksum = json.loads(text)["checksums"]["train.arrow"].encode()
    digit = next(place for place in range(64) if chr(checksum[place]).isdigit())
    flip(corpus_folder / "manifest.json", text.index(checksum) + digit)  # one digit becomes another
    with pytest.raises(PotstillError, match=r"manifest\.json was changed after potstill wrote it"):
        Corpus.open(corpus_folder)
    make_earlier(corpus_folder)
    with pytest.raises(PotstillError, match=r"manifest\.json is not the manifest .*fingerprint"):
        Corpus.open(corpus_folder)


def test_a_manifest_that_was_edited_says_what_to_do(corpus_folder: Path) -> None:
    path = corpus_folder / "manifest.json"
    before = path.read_text()
    path.write_text(before.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(PotstillError) as raised:
        Corpus.open(corpus_folder)
    assert str(raised.value) == (
        f"{path} was changed after potstill wrote it (its SHA-256 is no longer the one that it holds): undo the "
        "change, copy it again from an undamaged copy, or prepare the corpus again."
    )
    path.write_text(json.dumps(json.loads(before)).replace(" ", "\r\n"))  # the same content in another layout
    assert Corpus.open(corpus_folder).manifest.seed == 0


def test_a_manifest_of_an_earlier_version_opens(whole: Path, corpus_folder: Path) -> None:
    make_earlier(corpus_folder)
    assert Corpus.open(corpus_folder).manifest == Corpus.open(whole).manifest


@pytest.mark.parametrize(
    "content",
    [b"[" * 200_000, b'{"a":' * 200_000, b"\0" * 4096, b"", b"\xff\xfe", b"[]", b"1", b'"a"', b"{}", b"9" * 10_000],
    ids=["list", "deep", "nul", "empty", "not-utf-8", "a-list", "number", "text", "nothing", "digits"],
)
def test_a_manifest_of_anything_else_is_one_sentence(corpus_folder: Path, content: bytes) -> None:
    (corpus_folder / "manifest.json").write_bytes(content)
    with pytest.raises(PotstillError, match=r"manifest\.json is .*: prepare the corpus again") as raised:
        Corpus.open(corpus_folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "values",
    [
        {"block_size": "16"},
        {"block_size": True},
        {"splits": {}},
        {"splits": []},
        {"splits": {"train": {"documents": 1}, "validation": None}},
        {"sources": None},
        {"sources": [1]},
        {"checksums": {}},
        {"checksums": None},
        {"format_version": "2"},
        {"something": 1},
        {"unit": "block"},
        {"framing": "cls"},
    ],
    ids=repr,
)
def test_a_manifest_with_something_wrong_in_it_is_one_sentence(corpus_folder: Path, values: dict[str, Any]) -> None:
    write_manifest(corpus_folder, json.loads((corpus_folder / "manifest.json").read_text()) | values)
    with pytest.raises(PotstillError, match=r"manifest\.json is not the manifest of a corpus"):
        Corpus.open(corpus_folder)


def test_a_manifest_that_may_not_be_read_is_not_called_damaged(
    corpus_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(self: Path, *options: Any) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(PotstillError, match=r"manifest\.json cannot be read \(Permission denied\)") as raised:
        Corpus.open(corpus_folder)
    assert "prepare" not in str(raised.value)


def test_corpora_without_checksums_open_and_have_the_same_fingerprint(whole: Path, corpus_folder: Path) -> None:
    make_old(corpus_folder)
    old = Corpus.open(corpus_folder)
    assert old.manifest.checksums == {}
    assert old.fingerprint == Corpus.open(whole).fingerprint
    flip(corpus_folder / "train.arrow", place_of_ids(corpus_folder, "train") + 3)
    assert Corpus.open(corpus_folder, verify=False).fingerprint != old.fingerprint


def test_the_fingerprint_is_that_of_the_text_and_not_of_the_folder(
    tmp_path: Path, whole: Path, corpus_folder: Path, tokenizer_folder: str
) -> None:
    fingerprint = Corpus.open(whole).fingerprint
    assert len(fingerprint) == 64
    assert Corpus.open(corpus_folder).fingerprint == fingerprint
    options: dict[str, Any] = {"tokenizer": tokenizer_folder, "block_size": 16, "validation_fraction": 0.2}
    text = str(whole.parent / "text.txt")
    assert prepare([text], str(tmp_path / "again"), num_proc=1, **options).fingerprint == fingerprint
    assert prepare([text], str(tmp_path / "other"), seed=1, **options).fingerprint != fingerprint


def test_without_checksums_the_counts_of_the_tokens_find_a_turned_bit(corpus_folder: Path) -> None:
    make_old(corpus_folder)
    path = corpus_folder / "train.arrow"
    start = place_of_ids(corpus_folder, "train")
    for place in (0, 1, 7, 15):  # the frame of a block as well as its content
        flip(path, start + place)
        with pytest.raises(PotstillError, match=r"train\.arrow is damaged \(its tokens do not match"):
            Corpus.open(corpus_folder)
        flip(path, start + place)
    Corpus.open(corpus_folder)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_without_checksums_no_id_beyond_the_vocabulary_is_let_through(corpus_folder: Path, split: str) -> None:
    make_old(corpus_folder)
    flip(corpus_folder / f"{split}.arrow", place_of_ids(corpus_folder, split) + 2, bit=7)
    with pytest.raises(PotstillError, match=rf"{split}\.arrow is damaged \(it holds the id \d+ of a vocabulary of"):
        Corpus.open(corpus_folder)


@pytest.mark.parametrize("content", [b"", b"\0" * 1000, b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 16], ids=len)
def test_damaged_counts_are_one_sentence(corpus_folder: Path, content: bytes) -> None:
    make_old(corpus_folder)
    (corpus_folder / "token_counts.npy").write_bytes(content)
    with pytest.raises(PotstillError, match=r"token_counts\.npy is damaged \(") as raised:
        Corpus.open(corpus_folder)
    assert "\n" not in str(raised.value)


def test_counts_of_another_vocabulary_are_an_error(corpus_folder: Path) -> None:
    make_old(corpus_folder)
    np.save(corpus_folder / "token_counts.npy", np.zeros(3, dtype=np.int64))
    with pytest.raises(PotstillError, match=r"token_counts\.npy is damaged \(it holds int64 of shape \(3,\)\)"):
        Corpus.open(corpus_folder)


def test_one_process_of_a_machine_reads_the_files(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []
    monkeypatch.setattr(room, "check_files", lambda folder, recorded: checked.append(folder))
    for rank in ("0", "1", "2"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        Corpus.open(whole)
    assert checked == [whole]
    monkeypatch.delenv("LOCAL_RANK")
    Corpus.open(whole)
    Corpus.open(whole, verify=False)
    assert checked == [whole] * 2


def test_the_check_of_a_large_corpus_is_told(
    whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Corpus.open(whole)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(integrity, "PROGRESS_BYTES", 1)
    Corpus.open(whole)
    assert capsys.readouterr().err == f"checking 0.0 GB of the corpus {whole}\n"


def test_a_corpus_from_before_placeholders_says_so(
    corpus_folder: Path, tokenizer_folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    from potstill.corpus.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<url>"]})
    for age in ("new", "old"):
        if age == "old":
            make_old(corpus_folder)
        with pytest.raises(PotstillError, match="prepared with the tokenizer"):
            Corpus.open(corpus_folder).check_tokenizer(tokenizer, "it")
        assert any("special tokens <url> in the text as plain text" in message for message in caplog.messages) == (
            age == "old"
        )
