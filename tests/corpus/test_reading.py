import gzip
import hashlib
import json
import lzma
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from potstill.corpus.reading import Reader, ReadingOptions
from potstill.corpus.sources import Source, find_sources
from potstill.errors import PotstillError

DOCUMENTS = ["Première ligne.", "second — 漢字", "x", "the last one"]


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


COMPRESS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstd}


def read(path: Path | str, **options: Any) -> list[str]:
    return [document.decode() for document in reader(path, **options)]


def reader(path: Path | str, **options: Any) -> Reader:
    return Reader(find_sources([str(path)], Path("/nowhere")), ReadingOptions(**options))


def json_lines(documents: list[Any]) -> bytes:
    return "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(documents)).encode()


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("kind", ["txt", "jsonl", "json"])
def test_line_files_give_their_documents_in_order(tmp_path: Path, kind: str, compression: str) -> None:
    data = "\n".join(DOCUMENTS).encode() if kind == "txt" else json_lines(DOCUMENTS)
    path = tmp_path / f"a.{kind}{compression}"
    path.write_bytes(COMPRESS[compression](data))
    pass_ = reader(path)
    assert [document.decode() for document in pass_] == DOCUMENTS
    (record,) = pass_.records
    stored = path.read_bytes()
    assert (record.name, record.documents) == (str(path), 4)
    assert (record.bytes, record.sha256) == (len(stored), hashlib.sha256(stored).hexdigest())


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
def test_files_of_several_compressed_members_are_read_to_the_end(tmp_path: Path, compression: str) -> None:
    path = tmp_path / f"a.txt{compression}"
    path.write_bytes(COMPRESS[compression](b"one\ntw") + COMPRESS[compression](b"o\nthree\n"))
    assert read(path) == ["one", "two", "three"]


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
def test_a_truncated_file_is_an_error_wherever_it_was_cut(tmp_path: Path, compression: str) -> None:
    lines = "\n".join(hashlib.sha256(str(i).encode()).hexdigest() for i in range(3000)).encode()
    whole = COMPRESS[compression](lines)
    path = tmp_path / f"a.txt{compression}"
    for size in [*range(12), *range(12, len(whole), len(whole) // 20), *range(len(whole) - 12, len(whole))]:
        path.write_bytes(whole[:size])
        with pytest.raises(PotstillError, match="truncated or damaged") as raised:
            read(path)
        assert str(path) in str(raised.value)


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
def test_a_file_that_is_not_what_its_name_says_is_an_error(tmp_path: Path, compression: str) -> None:
    path = tmp_path / f"a.txt{compression}"
    path.write_bytes(b"plain text, no compression\n" * 50)
    with pytest.raises(PotstillError, match="truncated or damaged"):
        read(path)


def test_byte_order_mark_and_crlf_are_taken_off_and_blank_documents_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\r\n \t\r\ntwo\r\n\xc2\xa0\n")
    pass_ = reader(path)
    assert list(pass_) == [b"one", b"two"]
    assert pass_.empty == 3


@pytest.mark.parametrize(
    ("sample_by", "expected"),
    [
        ("line", ["a", "b", "c", "d"]),
        ("paragraph", ["a\nb", "c\nd"]),
        ("document", ["\na\nb\n\n \nc\nd\n"]),
    ],
)
def test_sample_by(tmp_path: Path, sample_by: str, expected: list[str]) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\na\r\nb\r\n\r\n \r\nc\r\nd\r\n\r\n")
    assert read(path, sample_by=sample_by) == expected


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_text_that_is_not_utf8_names_file_and_line_or_is_skipped(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    line = b'{"text": "%s"}\n' if name.endswith("jsonl") else b"%s\n"
    path.write_bytes(line % b"good" + line % b"\xe9tat" + line % b"fine")
    with pytest.raises(PotstillError, match=r"line 2 is not UTF-8") as raised:
        read(path)
    assert str(path) in str(raised.value)
    pass_ = reader(path, on_bad_text="skip")
    assert list(pass_) == [b"good", b"fine"]
    assert (pass_.bad_text, pass_.records[0].documents) == (1, 2)


def test_one_bad_line_makes_its_whole_paragraph_bad(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a\nb\xff\nc\n\nd\n")
    assert read(path, sample_by="paragraph", on_bad_text="skip") == ["d"]
    with pytest.raises(PotstillError, match="line 2"):
        read(path, sample_by="paragraph")


def test_half_a_surrogate_pair_in_json_is_bad_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "ok"}\n{"text": "\\ud83d"}\n')
    with pytest.raises(PotstillError, match="line 2 is not UTF-8"):
        read(path)
    assert read(path, on_bad_text="skip") == ["ok"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "b"', "line 3 is not valid JSON"),
        ('["b"]', "line 3 holds a JSON list"),
        ('{"body": "b", "id": 3}', "line 3 has no column 'text', only 'body', 'id'"),
        ('{"text": 7}', "line 3: the column 'text' holds int"),
        ("[" * 100_000, "line 3 is not valid JSON"),
    ],
)
def test_a_wrong_json_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n\n' + line + "\n")
    with pytest.raises(PotstillError, match=message) as raised:
        read(path)
    assert str(path) in str(raised.value)


def test_null_and_blank_values_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(["a", None, "", " \n", "b"]))
    pass_ = reader(path)
    assert list(pass_) == [b"a", b"b"]
    assert pass_.empty == 3


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [f"document {i}" for i in range(200)]
    pq.write_table(pa.table({"body": [*texts, None], "id": range(201)}), path, row_group_size=50)
    pass_ = reader(path, text_column="body")
    assert [document.decode() for document in pass_] == texts
    assert pass_.empty == 1
    assert pass_.records[0].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(PotstillError, match=r"a\.parquet has no column 'text', only 'body', 'id'"):
        read(path)
    with pytest.raises(PotstillError, match="row 1: the column 'id' holds int"):
        read(path, text_column="id")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(PotstillError, match="truncated or damaged"):
        read(path, text_column="body")


def test_datasets_folders(tmp_path: Path) -> None:
    texts = [f"document {i}" for i in range(150)]
    data = datasets.Dataset.from_dict({"text": texts})
    data.save_to_disk(tmp_path / "plain")
    pass_ = reader(tmp_path / "plain")
    assert [document.decode() for document in pass_] == texts
    assert pass_.records[0].documents == 150
    assert pass_.records[0].bytes > 0
    datasets.DatasetDict({"train": data, "test": data.select([7, 3])}).save_to_disk(tmp_path / "dict")
    assert read(tmp_path / "dict", dataset_split="test") == [texts[7], texts[3]]
    with pytest.raises(PotstillError, match="no split 'dev', only train, test"):
        read(tmp_path / "dict", dataset_split="dev")
    with pytest.raises(PotstillError, match="no column 'body', only 'text'"):
        read(tmp_path / "plain", text_column="body")


def test_hub_datasets_are_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, config: str | None, *, split: str, streaming: bool) -> Any:
        asked.append((name, config, split, streaming))
        return datasets.Dataset.from_dict({"text": ["a", None, "b"]}).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    pass_ = Reader([Source("some/thing", "hub")], ReadingOptions(dataset_config_name="en", dataset_split="dev"))
    assert list(pass_) == [b"a", b"b"]
    assert asked == [("some/thing", "en", "dev", True)]
    assert (pass_.empty, pass_.records[0].name, pass_.records[0].documents) == (1, "some/thing", 2)
    with pytest.raises(PotstillError, match="the dataset some/thing has no column 'body', only 'text'"):
        list(Reader([Source("some/thing", "hub")], ReadingOptions(text_column="body")))


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*args: Any, **options: Any) -> Any:
        raise ConnectionError("Couldn't reach 'some/thing' on the Hub\nand much more")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(PotstillError, match="no file or folder some/thing, and the dataset") as raised:
        read("some/thing")
    assert "\n" not in str(raised.value)


def test_a_stream_that_breaks_off_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> Any:
        yield {"text": "a"}
        raise OSError("connection reset")

    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: rows())
    with pytest.raises(PotstillError, match="broke off after 1 rows: connection reset"):
        read("some/thing")
