import errno
import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus_samples import random_documents, write_manifest
from transformers import BertTokenizer

from potstill.corpus import tokenise, writing
from potstill.corpus.blocks import Corpus
from potstill.corpus.prepare import prepare
from potstill.corpus.worker import is_held_out
from potstill.errors import PotstillError, advice

FILES = ["train.arrow", "validation.arrow", "token_counts.npy"]


def naive_corpus(
    tokenizer: BertTokenizer, documents: list[str], block_size: int, seed: int, fraction: float
) -> tuple[list[list[int]], list[list[int]]]:
    """Train and validation blocks, the plainest way there is."""
    streams: tuple[list[int], list[int]] = [], []
    for number, document in enumerate(documents):
        ids = tokenizer(document, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        streams[is_held_out(number, seed, fraction)].extend([*ids, tokenizer.sep_token_id])
    size = block_size - 2
    train, validation = (
        [
            [tokenizer.cls_token_id, *stream[start : start + size], tokenizer.sep_token_id]
            for start in range(0, len(stream) - size + 1, size)
        ]
        for stream in streams
    )
    return train, validation


def ids_of(blocks: Any) -> list[list[int]]:
    return [item["input_ids"].tolist() for item in blocks]


def hashes(folder: Path) -> list[str]:
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES]


def test_the_corpus_is_the_documents_tokenised_joined_and_cut(
    tmp_path: Path, text_file: str, tokenizer: BertTokenizer, tokenizer_folder: str
) -> None:
    corpus = prepare(
        [text_file], str(tmp_path / "out"), tokenizer=tokenizer_folder, block_size=32, validation_fraction=0.2, seed=3
    )
    documents = random_documents(400, seed=1)
    train, validation = naive_corpus(tokenizer, documents, 32, seed=3, fraction=0.2)
    assert train
    assert validation
    assert ids_of(corpus.train) == train
    assert ids_of(corpus.validation) == validation

    contents = np.array(train)[:, 1:-1]
    assert corpus.token_counts.dtype == np.int64
    assert (corpus.token_counts == np.bincount(contents.ravel(), minlength=len(tokenizer))).all()

    manifest = corpus.manifest
    held_out = sum(is_held_out(number, 3, 0.2) for number in range(400))
    assert (manifest.block_size, manifest.dtype, manifest.seed, manifest.validation_fraction) == (32, "uint8", 3, 0.2)
    assert (manifest.splits["train"].documents, manifest.splits["validation"].documents) == (400 - held_out, held_out)
    for split, blocks in (("train", train), ("validation", validation)):
        record = manifest.splits[split]
        assert record.blocks == len(blocks)
        assert record.tokens == record.blocks * 30 + record.dropped_tokens
        assert 0 <= record.dropped_tokens < 30
    assert manifest.skipped == {"bad_text": 0, "empty": 0}
    (source,) = manifest.sources
    assert source.sha256 == hashlib.sha256(Path(text_file).read_bytes()).hexdigest()
    assert (source.name, source.bytes, source.documents) == (text_file, Path(text_file).stat().st_size, 400)
    assert manifest.tokenizer.name == tokenizer_folder
    assert manifest.tokenizer.class_name == "BertTokenizer"
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["tokenizer"]["class"] == "BertTokenizer"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_bytes_are_the_same_for_any_processes_and_memory(
    tmp_path: Path, tokenizer_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("potstill.corpus.packing.TOKENS_PER_RECORD_BATCH", 2048)
    documents = [*random_documents(800, seed=5, words=(1, 200)), "cat", " ".join(random_documents(300, seed=6))]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    results = []
    for num_proc, memory_limit_mb, batch_bytes in ((1, 1024, None), (2, 1, None), (3, 64, 100), (2, 64, 10**7)):
        if batch_bytes:  # smaller and larger batches than any memory limit gives
            monkeypatch.setattr(writing, "batch_bytes_for", lambda *_, size=batch_bytes: size)
        folder = tmp_path / f"{num_proc}-{memory_limit_mb}-{batch_bytes}"
        prepare(
            [str(tmp_path / "a.jsonl")],
            str(folder),
            tokenizer=tokenizer_folder,
            block_size=32,
            validation_fraction=0.1,
            num_proc=num_proc,
            memory_limit_mb=memory_limit_mb,
        )
        results.append(hashes(folder))
    assert all(result == results[0] for result in results)


def test_documents_of_3_mb_and_of_3_characters(tmp_path: Path, tokenizer: BertTokenizer) -> None:
    documents = ["cat", "the cat sat on the mat. " * 125_000, "pot"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    corpus = prepare(
        [str(tmp_path / "a.jsonl")],
        str(tmp_path / "out"),
        tokenizer=tokenizer,  # type: ignore[arg-type]
        validation_fraction=0,
        memory_limit_mb=1,
    )
    sentence = tokenizer("the cat sat on the mat.", add_special_tokens=False)["input_ids"]
    cat, pot = tokenizer.convert_tokens_to_ids(["cat", "pot"])
    stream = [cat, 3, *sentence * 125_000, 3, pot, 3]
    assert corpus.manifest.splits["train"].tokens == len(stream)
    assert [token for block in ids_of(corpus.train) for token in block[1:-1]] == stream[: len(corpus.train) * 510]


def test_skipped_documents_are_counted(tmp_path: Path, tokenizer_folder: str) -> None:
    (tmp_path / "a.txt").write_bytes(
        b"the cat sat\n\n \ncaf\xe9\n\xe2\x80\x8b\non the mat\n"
    )  # U+200B: nothing to BERT
    options: dict[str, Any] = {"tokenizer": tokenizer_folder, "block_size": 5, "validation_fraction": 0}
    with pytest.raises(PotstillError, match="line 4 is not UTF-8"):
        prepare([str(tmp_path)], str(tmp_path / "out"), **options)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    corpus = prepare([str(tmp_path)], str(tmp_path / "out"), on_bad_text="skip", **options)
    assert corpus.manifest.skipped == {"bad_text": 1, "empty": 3}
    assert corpus.manifest.splits["train"].documents == 2


def test_a_corpus_says_in_one_line_what_it_holds(tmp_path: Path, tokenizer_folder: str) -> None:
    (tmp_path / "a.txt").write_bytes(b"the cat sat on the mat\n" * 400 + b"\ncaf\xe9\n")
    options: dict[str, Any] = {"tokenizer": tokenizer_folder, "block_size": 12, "validation_fraction": 0.2}
    corpus = prepare([str(tmp_path / "a.txt")], str(tmp_path / "out"), on_bad_text="skip", **options)
    held_out = sum(is_held_out(number, 0, 0.2) for number in range(400))
    said = str(corpus)
    assert said.startswith(f"{tmp_path / 'out'} · blocks of 12 tokens · train: ")
    for name, documents in (("train", 400 - held_out), ("validation", held_out)):
        tokens = 7 * documents
        figures = f"{documents} documents, {tokens:,} tokens ({tokens % 10} dropped)"
        assert f"{name}: {tokens // 10} blocks of {figures}" in said
    assert said.endswith("skipped documents: 1 bad text, 1 empty")
    assert "\n" not in said


def test_a_trained_tokenizer_knows_only_the_training_documents(tmp_path: Path) -> None:
    documents = random_documents(300, seed=2)
    secret = next(number for number in range(300) if is_held_out(number, 0, 0.1))
    documents[secret] = "zyzzyva " * 500
    (tmp_path / "a.txt").write_text("\n".join(documents))
    options: dict[str, Any] = {"train_tokenizer": True, "vocab_size": 100, "block_size": 16, "validation_fraction": 0.1}
    corpus = prepare([str(tmp_path / "a.txt")], str(tmp_path / "out"), **options)
    tokenizer = corpus.tokenizer()
    assert len(tokenizer) == corpus.manifest.tokenizer.vocab_size == len(corpus.token_counts) == 100
    assert tokenizer.model_max_length == 16
    assert not any("zy" in piece for piece in tokenizer.get_vocab())
    corpus.check_tokenizer(tokenizer, "itself")
    assert ids_of(corpus.train) == naive_corpus(tokenizer, documents, 16, seed=0, fraction=0.1)[0]


def test_a_corpus_is_refused_to_a_model_with_another_tokenizer(
    tmp_path: Path, text_file: str, tokenizer: BertTokenizer, tokenizer_folder: str
) -> None:
    corpus = prepare([text_file], str(tmp_path / "out"), tokenizer=tokenizer_folder, block_size=16)
    corpus.check_tokenizer(tokenizer, "my-teacher")
    cased = BertTokenizer(vocab=tokenizer.get_vocab(), do_lower_case=False)
    with pytest.raises(PotstillError, match="my-teacher") as raised:
        corpus.check_tokenizer(cased, "my-teacher")
    assert tokenizer_folder in str(raised.value)
    assert "--tokenizer my-teacher" in str(raised.value)


def test_too_little_text_is_an_error_that_says_how_little(tmp_path: Path, tokenizer_folder: str) -> None:
    (tmp_path / "a.txt").write_text("the cat sat\n")
    with pytest.raises(PotstillError, match="gives 4 tokens to train on, fewer than the 510 of one block"):
        prepare([str(tmp_path / "a.txt")], str(tmp_path / "out"), tokenizer=tokenizer_folder, validation_fraction=0)
    (tmp_path / "a.txt").write_text("the cat sat on the mat\n" * 3)
    with pytest.raises(PotstillError, match="a lower --validation_fraction: 3 documents with 21 tokens are held out"):
        prepare([str(tmp_path / "a.txt")], str(tmp_path / "out"), tokenizer=tokenizer_folder, validation_fraction=0.999)
    (tmp_path / "a.txt").write_text("\n\n")
    with pytest.raises(PotstillError, match="gives 0 tokens"):
        prepare([str(tmp_path / "a.txt")], str(tmp_path / "out"), tokenizer=tokenizer_folder)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_corpus_without_validation_blocks_works_and_says_so_in_one_line(
    tmp_path: Path, tokenizer_folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.txt").write_text("the cat sat on the mat\n" * 10)
    text, options = [str(tmp_path / "a.txt")], {"tokenizer": tokenizer_folder, "block_size": 32}
    corpus = prepare(text, str(tmp_path / "a"), **options)
    assert [record.getMessage()[:20] for record in caplog.records] == ["No validation blocks"]
    assert len(corpus.validation) == 0
    prepare(text, str(tmp_path / "b"), validation_fraction=0, **options)  # none were asked for
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0"),
        ({"num_proc": 0}, "num_proc is 0"),
        ({"sample_by": "word"}, "sample_by is 'word'"),
        ({"on_bad_text": "ignore"}, "on_bad_text is 'ignore'"),
        ({"memory_limit_mb": 0}, "memory_limit_mb is 0"),
        ({"block_size": 2}, "block_size is 2"),
        ({"tokenizer": None}, "either --tokenizer"),
        ({"train_tokenizer": True}, "either --tokenizer"),
        ({"tokenizer": "/no/such/folder"}, "no tokenizer folder /no/such/folder"),
        ({"text": ["/no/such/file.txt"]}, "no file or folder /no/such/file.txt"),
    ],
)
def test_impossible_requests_are_refused_before_any_work(
    tmp_path: Path, text_file: str, tokenizer_folder: str, options: dict[str, Any], message: str
) -> None:
    request = {"text": [text_file], "output_dir": str(tmp_path / "out"), "tokenizer": tokenizer_folder} | options
    with pytest.raises(PotstillError, match=message):
        prepare(**request)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_tokenizer_is_one_sentence(tmp_path: Path, text_file: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(PotstillError, match="holds no tokenizer that can be loaded") as raised:
        prepare([text_file], str(tmp_path / "out"), tokenizer=str(tmp_path / "empty"))
    assert "\n" not in str(raised.value)


def test_an_output_folder_with_something_in_it_is_left_alone(
    tmp_path: Path, text_file: str, tokenizer_folder: str
) -> None:
    options: dict[str, Any] = {"tokenizer": tokenizer_folder, "block_size": 16}
    out = tmp_path / "out"
    out.mkdir()
    first = prepare([text_file], str(out), **options)  # an empty folder is as good as none
    before = hashes(out)
    with pytest.raises(PotstillError, match="is not empty"):
        prepare([text_file], str(out), seed=1, **options)
    with pytest.raises(PotstillError, match="fewer than"):
        prepare([text_file], str(out), tokenizer_folder, block_size=10**6, overwrite_output_dir=True)
    assert hashes(out) == before
    assert len(first.train) == len(Corpus.open(out).train)
    prepare([text_file], str(out), seed=1, overwrite_output_dir=True, **options)
    assert hashes(out) != before
    assert {path.name for path in tmp_path.iterdir()} == {"out", "text.txt"}

    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").touch()
    with pytest.raises(PotstillError, match="something other than a corpus"):
        prepare([text_file], str(other), overwrite_output_dir=True, **options)
    with pytest.raises(PotstillError, match="is a file"):
        prepare([text_file], text_file, **options)


def test_leftovers_of_a_killed_run_are_cleared_and_its_replaced_corpus_restored(
    tmp_path: Path, text_file: str, tokenizer_folder: str
) -> None:
    out, partial, replaced = tmp_path / "out", tmp_path / ".out.partial", tmp_path / ".out.replaced"
    options: dict[str, Any] = {"tokenizer": tokenizer_folder, "block_size": 16}
    prepare([text_file], str(out), **options)
    before = hashes(out)
    # Killed between taking the old corpus away and putting the new one in its place.
    out.rename(replaced)
    partial.mkdir()
    (partial / "train.arrow").write_bytes(b"half")
    with pytest.raises(PotstillError, match="fewer than"):
        prepare([text_file], str(out), tokenizer_folder, block_size=10**6, overwrite_output_dir=True)
    assert hashes(out) == before
    assert not partial.exists()
    assert not replaced.exists()


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)], ids=["SIGINT", "SIGTERM"]
)
def test_an_interrupted_run_ends_its_workers_and_leaves_nothing(
    tmp_path: Path,
    text_file: str,
    tokenizer_folder: str,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    raised: type[BaseException],
) -> None:
    workers: list[Any] = []
    create = tokenise._Worker.__init__

    def remember(self: Any, settings: dict[str, Any]) -> None:
        create(self, settings)
        workers.append(self.process)

    monkeypatch.setattr(tokenise._Worker, "__init__", remember)
    monkeypatch.setattr(writing, "batch_bytes_for", lambda *_: 100)
    monkeypatch.setattr(writing.PrepareProgress, "advance", lambda *_: signal.raise_signal(number))
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(raised):
        prepare([text_file], str(tmp_path / "out"), tokenizer=tokenizer_folder, block_size=16, num_proc=2)
    assert len(workers) == 2
    assert all(process.poll() is not None for process in workers)
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, text_file: str, tokenizer_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writing.BlockWriter, "finish", full)
    with pytest.raises(PotstillError, match=r"cannot be written to .*No space left on device\): free some disk space"):
        prepare([text_file], str(tmp_path / "out"), tokenizer=tokenizer_folder, block_size=16)
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_a_lost_folder_or_permission_is_not_called_a_want_of_space(
    tmp_path: Path, text_file: str, tokenizer_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (errno.ENOENT, errno.EACCES, errno.ENOTEMPTY):

        def fail(*args: Any, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(writing.BlockWriter, "finish", fail)
        with pytest.raises(PotstillError, match=f"cannot be written to .*{os.strerror(number)}") as raised:
            prepare([text_file], str(tmp_path / "out"), tokenizer=tokenizer_folder, block_size=16)
        assert advice(OSError(number, "")) in str(raised.value)
        assert "disk space" not in str(raised.value)


def test_opening_what_is_no_corpus_or_not_a_whole_one_is_an_error(
    tmp_path: Path, text_file: str, tokenizer_folder: str
) -> None:
    with pytest.raises(PotstillError, match="is not a prepared corpus"):
        Corpus.open(tmp_path)
    out = tmp_path / "out"
    prepare([text_file], str(out), tokenizer=tokenizer_folder, block_size=16)
    manifest = json.loads((out / "manifest.json").read_text())

    def changed(**values: Any) -> None:
        write_manifest(out, manifest | values)

    changed(format_version=99)
    with pytest.raises(PotstillError, match=r"corpus format 99 .* upgrade potstill"):
        Corpus.open(out)
    changed(splits={"train": manifest["splits"]["validation"], "validation": manifest["splits"]["train"]})
    with pytest.raises(PotstillError, match=r"holds \d+ blocks of 16 tokens, but its manifest says \d+ of 16"):
        Corpus.open(out)
    changed(tokenizer=None)
    with pytest.raises(PotstillError, match="is not the manifest of a corpus"):
        Corpus.open(out)
    (out / "manifest.json").write_text("{")
    with pytest.raises(PotstillError, match=r"manifest\.json is damaged"):
        Corpus.open(out)
    changed()
    Corpus.open(out)
    (out / "validation.arrow").unlink()
    with pytest.raises(PotstillError, match=r"validation\.arrow is missing"):
        Corpus.open(out)


def test_one_plain_line_of_progress_now_and_then(
    tmp_path: Path, text_file: str, tokenizer_folder: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("potstill.live_line.SECONDS_PER_LINE", 0.0)
    prepare([text_file], str(tmp_path / "out"), tokenizer=tokenizer_folder, block_size=16, num_proc=1)
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert all("documents" in line and "tokens/s" in line for line in lines)


@pytest.mark.parametrize(("block_size", "said"), [(16, False), (17, True)])
def test_blocks_that_are_longer_than_the_model_reads_are_told(
    block_size: int,
    said: bool,
    tokenizer_folder: str,
    text_file: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prepare([text_file], str(tmp_path / "out"), tokenizer_folder, block_size=block_size)
    assert ("reads 16 tokens, and a block has 17" in capsys.readouterr().err) == said
