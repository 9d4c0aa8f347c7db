"""Text from a stranger: bombs, endless lines, pipes and lying files are refused in bounded memory, time and disk."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bounded import refused, sparse

from potstill import json_files
from potstill.corpus import Corpus, prepare
from potstill.corpus import lines as lines_module
from potstill.corpus.arrow_files import check_stored_plainly
from potstill.corpus.blocks import Blocks
from potstill.corpus.reading import DocumentReader, ReadingOptions
from potstill.corpus.sources import find_sources
from potstill.errors import PotstillError
from potstill.tasks.rows import parquet_rows


def read(path: Path, **options: Any) -> int:
    """Return the number of documents of a file or folder."""
    return sum(1 for _ in DocumentReader(find_sources([str(path)], Path("/nowhere")), ReadingOptions(**options)))


def zstd_bomb(path: Path, blocks: int, byte: Callable[[int], int]) -> Path:
    """Write a zstd frame of blocks that stand for 128 KiB of one byte each, in 4 bytes."""
    size = 2**17
    repeated, last = struct.pack("<I", (size << 3) | 2)[:3], struct.pack("<I", (size << 3) | 3)[:3]
    body = b"".join(repeated + bytes([byte(number)]) for number in range(blocks)) + last + b"\n"
    path.write_bytes(struct.pack("<I", 0xFD2FB528) + b"\x00\x38" + body)
    return path


@pytest.mark.parametrize("kind", ["txt", "jsonl", "json", "csv"])
def test_a_line_of_10_gb(tmp_path: Path, kind: str) -> None:
    path = sparse(tmp_path / f"a.{kind}")
    assert "line 1 is longer than the limit" in refused(lambda: read(path), 2048)


def test_a_zstd_file_of_one_line_of_50_gb(tmp_path: Path) -> None:
    path = zstd_bomb(tmp_path / "a.txt.zst", 381_469, lambda number: ord("a"))
    assert path.stat().st_size < 2e6
    assert "line 1 is longer than the limit of 32 MiB" in refused(lambda: read(path))


def test_a_zstd_file_of_blank_lines_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "MOST_UNPACKED", 2**24)  # so that the test is quick
    path = zstd_bomb(tmp_path / "a.txt.zst", 40_000, lambda number: ord("\n"))
    assert "unpacks to more than 256 times its size" in refused(lambda: read(path), 256)


@pytest.mark.parametrize(("ending", "packed"), [("gz", gzip.compress), ("xz", lzma.compress)])
def test_sound_documents_that_unpack_without_end(
    tmp_path: Path, ending: str, packed: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines_module, "MOST_UNPACKED", 2**20)  # so that the test is quick
    path = tmp_path / f"a.txt.{ending}"
    path.write_bytes(packed(b"one word after another\n" * 200_000))
    with pytest.raises(PotstillError, match=r"a\.txt\.\w\w unpacks to more than 256 times its size, .* unpack it"):
        read(path)
    # Text that really repeats itself so much is read from a file that is not compressed, and so is what is small.
    (tmp_path / "plain.txt").write_bytes(b"one word after another\n" * 200_000)
    assert read(tmp_path / "plain.txt") == 200_000
    path.write_bytes(packed(b"one word after another\n" * 1000))
    assert read(path) == 1000


def test_text_is_never_taken_for_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "MOST_UNPACKED", 0)
    words = np.random.default_rng(0).integers(0, 100, 40_000)
    lines = "\n".join(" ".join(map(str, words[start : start + 8])) for start in range(0, len(words), 8))
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(lines.encode()))
    assert read(tmp_path / "a.txt.xz") == 5000


def one_value(rows: int, value: str) -> pa.Table:
    """A column that repeats a value: stored once, however many rows there are."""
    return pa.table({"text": pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), [value])})


@pytest.mark.parametrize(
    "table",
    [
        pytest.param(lambda: one_value(20_000, "word " * 20), id="one value 20,000 times"),
        pytest.param(lambda: one_value(20_000, "word " * 20).cast(pa.schema({"text": pa.string()})), id="as text"),
        pytest.param(lambda: pa.table({"text": pa.nulls(20_000, pa.string())}), id="20,000 nulls"),
        pytest.param(lambda: one_value(2, "a" * 2**21), id="2 values of 2 MiB"),
    ],
)
def test_parquet_bombs(tmp_path: Path, table: Callable[[], pa.Table], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines_module, "MOST_UNPACKED", 2**20)
    pq.write_table(table(), tmp_path / "a.parquet", compression="zstd")
    with pytest.raises(PotstillError, match=r"a\.parquet unpacks to more than 256 times its size"):
        read(tmp_path / "a.parquet")
    with pytest.raises(PotstillError, match=r"a\.parquet unpacks to more than 256 times its size"):
        parquet_rows(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize("table", [one_value(4, "a" * 2**26), pa.table({"text": ["a" * 2**26] * 2})])
def test_a_value_of_a_parquet_file_that_is_too_long(tmp_path: Path, table: pa.Table) -> None:
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd")
    assert re.search(
        r"a\.parquet, (a )?row .*longer than the limit of 32 MiB", refused(lambda: read(tmp_path / "a.parquet"))
    )


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet", "csv.gz"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    os.mkfifo(tmp_path / f"a.{kind}")
    assert f"a.{kind} is a pipe, not a file" in refused(lambda: read(tmp_path))


def test_a_link_to_a_device(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to("/dev/urandom")
    assert "a.txt is a device, not a file" in refused(lambda: read(tmp_path, on_bad_text="skip"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"text": ' + b"[" * 3_000_000, "not valid JSON"),
        (b'{"text": ' + b'{"a":' * 1_000_000, "not valid JSON"),
        (b'{"text": "\\ud800"}', "not UTF-8 text"),
        (b'{"text": ' + b"9" * 5_000_000 + b"}", "not valid JSON"),
        (b'{"text": "a", "more": [' + b"[]," * 100_000 + b"[]]}", "more than 65,536 values"),
    ],
    ids=["lists", "objects", "half a surrogate pair", "a number of 5 MB", "many lists"],
)
def test_hostile_json(tmp_path: Path, content: bytes, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_files, "MOST_VALUES", 2**16)
    for name, data in (("a.jsonl", content), ("a.json", b"[" + content + b"]")):
        (tmp_path / name).write_bytes(data)
        assert told in refused(lambda name=name: read(tmp_path / name)), name


def test_nul_bytes_are_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a\0b\n\0\n")
    assert read(tmp_path) == 2


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Save a folder as `datasets` does, but with any table, compression and state."""

    def save(table: pa.Table | None = None, compression: str | None = None, **state: object) -> Path:
        folder = tmp_path / "saved"
        folder.mkdir()
        table = pa.table({"text": ["some words"] * 3}) if table is None else table
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with pa.ipc.new_stream(str(folder / "data.arrow"), table.schema, options=options) as stream:
            stream.write_table(table)
        known = {"_data_files": [{"filename": "data.arrow"}], "_fingerprint": "x", "_split": None}
        formats = {"_format_type": None, "_format_kwargs": {}, "_format_columns": None, "_output_all_columns": False}
        (folder / "state.json").write_text(json.dumps(known | formats | state))
        features = {"text": {"dtype": "string", "_type": "Value"}}
        (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
        return folder

    return save


def test_a_dataset_folder_that_is_compressed_inside(saved: Callable[..., Path]) -> None:
    folder = saved(pa.table({"text": ["a" * 2**20] * 200}), "zstd")
    assert (folder / "data.arrow").stat().st_size < 2e5
    assert "data.arrow is compressed inside" in refused(lambda: read(folder), 100)


@pytest.mark.parametrize("name", ["../../elsewhere.arrow", "/etc/passwd", 7])
def test_a_dataset_folder_that_names_files_outside_of_it(saved: Callable[..., Path], name: object) -> None:
    folder = saved(_data_files=[{"filename": name}])
    assert f"names {name!r}, which is no file in it" in refused(lambda: read(folder))


def test_a_dataset_folder_whose_offsets_lead_out_of_its_file(saved: Callable[..., Path]) -> None:
    ends = pa.array([0, 2**30, 5], pa.int32()).buffers()[1]
    lying = pa.Array.from_buffers(pa.string(), 2, [None, ends, pa.py_buffer(b"hello")])
    folder = saved(pa.table({"text": lying}))
    assert "truncated or damaged (" in refused(lambda: read(folder))


def test_a_sound_dataset_folder_is_read(saved: Callable[..., Path]) -> None:
    assert read(saved()) == 3


def test_dictionaries_are_searched_for_compression_too(tmp_path: Path) -> None:
    table = pa.table({"a": pa.array(["x", "y"] * 500).dictionary_encode()})
    for compression in (None, "zstd", "lz4"):
        path = tmp_path / f"{compression}.arrow"
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with pa.ipc.new_stream(str(path), table.schema, options=options) as stream:
            stream.write_table(table)
        if compression is None:
            check_stored_plainly(path)
        else:
            with pytest.raises(PotstillError, match="compressed inside"):
                check_stored_plainly(path)


@pytest.mark.parametrize("content", [b"junk" * 9, b"\xff\x00\xff\xff\xff\x10\x00\x00\x00"])  # a fuzzer found this
def test_noise_is_no_arrow_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.arrow").write_bytes(content)
    with pytest.raises(PotstillError, match=r"a\.arrow is no Arrow file"):
        check_stored_plainly(tmp_path / "a.arrow")


def test_a_corpus_that_is_compressed_inside(tmp_path: Path) -> None:
    ids = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(2**22, np.uint16)), 64)
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    table = pa.table({"input_ids": ids})
    with pa.ipc.new_stream(str(tmp_path / "train.arrow"), table.schema, options=options) as stream:
        stream.write_table(table)
    assert "train.arrow is compressed inside" in refused(lambda: Blocks(tmp_path / "train.arrow"))


def test_a_manifest_cannot_have_other_files_read(corpus_folder: Path, tmp_path: Path) -> None:
    manifest = json.loads((corpus_folder / "manifest.json").read_text())
    manifest["checksums"]["/dev/zero"] = "0" * 64
    folder = tmp_path / "corpus"
    folder.mkdir()
    for file in corpus_folder.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "manifest.json was changed after potstill wrote it" in refused(lambda: Corpus.open(folder))
    del manifest["checksums"]["manifest.json"]  # as in an earlier version
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "it has a checksum of '/dev/zero', which is no file of a corpus" in refused(lambda: Corpus.open(folder))


def test_pickled_counts_are_not_read(corpus_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for file in corpus_folder.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "token_counts.npy").unlink()
    np.save(folder / "token_counts.npy", np.array([{"an": "object"}], dtype=object), allow_pickle=True)
    with pytest.raises(PotstillError, match=r"token_counts\.npy is damaged \(Object arrays cannot be loaded"):
        _ = Corpus.open(folder, verify=False).token_counts


def test_nothing_is_left_of_a_corpus_of_a_bomb(
    tmp_path: Path, teacher_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines_module, "MOST_UNPACKED", 2**20)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one word after another\n" * 100_000))
    with pytest.raises(PotstillError, match="unpacks to more than"):
        prepare([str(tmp_path / "a.txt.gz")], str(tmp_path / "out"), str(teacher_folder), 16, num_proc=1)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt.gz"]
