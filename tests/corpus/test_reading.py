import csv
import errno
import gzip
import hashlib
import io
import json
import lzma
import shlex
import struct
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from potstill.corpus import reading, tables
from potstill.corpus.lines import unreadable
from potstill.corpus.reading import DocumentReader, ReadingOptions
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


def reader(path: Path | str, **options: Any) -> DocumentReader:
    return DocumentReader(find_sources([str(path)], Path("/nowhere")), ReadingOptions(**options))


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


@pytest.mark.usefixtures("network")
def test_hub_datasets_are_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, config: str | None, *, split: str, streaming: bool) -> Any:
        asked.append((name, config, split, streaming))
        return datasets.Dataset.from_dict({"text": ["a", None, "b"]}).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    pass_ = DocumentReader([Source("some/thing", "hub")], ReadingOptions(dataset_config_name="en", dataset_split="dev"))
    assert list(pass_) == [b"a", b"b"]
    assert asked == [("some/thing", "en", "dev", True)]
    assert (pass_.empty, pass_.records[0].name, pass_.records[0].documents) == (1, "some/thing", 2)
    with pytest.raises(PotstillError, match="the dataset some/thing has no column 'body', only 'text'"):
        list(DocumentReader([Source("some/thing", "hub")], ReadingOptions(text_column="body")))


@pytest.mark.usefixtures("network")
def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*args: Any, **options: Any) -> Any:
        raise ConnectionError("Couldn't reach 'some/thing' on the Hub\nand much more")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(PotstillError, match="no file or folder some/thing, and the dataset") as raised:
        read("some/thing")
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("network")
def test_a_stream_that_breaks_off_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> Any:
        yield {"text": "a"}
        raise OSError("connection reset")

    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: rows())
    with pytest.raises(PotstillError, match="failed after 1 row: connection reset"):
        read("some/thing")


@pytest.fixture
def short_documents(monkeypatch: pytest.MonkeyPatch) -> int:
    """A limit on documents that a test can reach: 1 MiB."""
    for module in (reading, tables):
        monkeypatch.setattr(module, "MAX_DOCUMENT_BYTES", 2**20)
    monkeypatch.setattr(reading, "JSON_LINE_BYTES", 2**21)
    return 2**20


def test_the_limits_hold_what_people_write() -> None:
    assert reading.MAX_DOCUMENT_BYTES == tables.MAX_DOCUMENT_BYTES == 2**25
    assert reading.JSON_LINE_BYTES == 2**27


class Endless(io.RawIOBase):
    """Compressed data of one line that has no end, as far as anybody reads it."""

    def __init__(self, compression: str) -> None:
        self.piece = COMPRESS[compression](b"a" * 2**20)
        self.waiting = b""
        self.size = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.waiting = self.waiting or self.piece
        count = min(len(buffer), len(self.waiting))
        buffer[:count], self.waiting = self.waiting[:count], self.waiting[count:]
        self.size += count
        return count


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_a_line_without_an_end_is_read_no_further_than_the_limit(
    monkeypatch: pytest.MonkeyPatch, short_documents: int, kind: str, compression: str
) -> None:
    name = f"a.{kind}{compression}"
    endless = Endless(compression)
    monkeypatch.setattr(reading, "open_hashed", lambda path: endless)
    limit = {"txt": "1", "jsonl": "2"}[kind]
    source = Source(name, "text" if kind == "txt" else "json")
    with pytest.raises(PotstillError, match=f"{name}, line 1 is longer than the limit of {limit} MiB"):
        list(DocumentReader([source], ReadingOptions()))
    assert endless.size < 4 * short_documents


@pytest.mark.parametrize("sample_by", ["paragraph", "document"])
def test_many_short_lines_make_no_endless_document(tmp_path: Path, short_documents: int, sample_by: str) -> None:
    path = tmp_path / "a.txt.gz"
    line = b"the cat sat on the mat\n"
    path.write_bytes(gzip.compress(b"first\n\n" + line * (2**20 // len(line) + 1)))
    start = {"paragraph": 3, "document": 1}[sample_by]
    with pytest.raises(
        PotstillError, match=rf"a\.txt\.gz, the {sample_by} from line {start} on, is longer than the limit of 1 MiB"
    ):
        read(path, sample_by=sample_by)
    path.write_bytes(gzip.compress(b"first\n\n" + line * (2**20 // len(line) - 1)))
    assert len(read(path, sample_by=sample_by)) == {"paragraph": 2, "document": 1}[sample_by]


def test_a_document_of_exactly_the_limit_is_read(tmp_path: Path, short_documents: int) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(["b", "a" * short_documents]))
    assert [len(document) for document in read(path)] == [1, short_documents]
    path.write_text('{"text": "b"}\n{"text": "' + "ü" * (short_documents // 2 + 1) + '"}\n', encoding="utf-8")
    with pytest.raises(PotstillError, match=r"a\.jsonl, line 2 is longer than the limit of 1 MiB"):
        read(path)


def test_long_rows_of_tables_are_refused(tmp_path: Path, short_documents: int) -> None:
    long = "ab" * (short_documents // 2 + 1)
    for name, options in (("dictionary", {}), ("plain", {"use_dictionary": False, "compression": "zstd"})):
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table({"text": ["a", long, long]}), path, **options)
        with pytest.raises(PotstillError, match=rf"{name}\.parquet, row 2 is longer than the limit of 1 MiB"):
            read(path)
    path = tmp_path / "one.parquet"
    pq.write_table(pa.table({"text": [long]}), path)
    with pytest.raises(PotstillError, match=r"a row of row group 1 is longer"):  # known before it is decoded
        read(path)
    datasets.Dataset.from_dict({"text": ["a", long]}).save_to_disk(tmp_path / "data")
    with pytest.raises(PotstillError, match=r"data, row 2 is longer than the limit of 1 MiB"):
        read(tmp_path / "data")


def test_few_rows_are_decoded_at_a_time_where_a_row_may_be_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"text": ["x" * 1000] * 500, "text2": [str(number) * 2**10 for number in range(500)]}), path
    )
    asked = []
    iterate = pq.ParquetFile.iter_batches

    def iter_batches(self: pq.ParquetFile, batch_size: int, **options: Any) -> Any:
        asked.append(batch_size)
        return iterate(self, batch_size, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    assert len(read(path)) == 500
    monkeypatch.setattr(tables, "BATCH_BYTES", 2**13)  # the value that all rows share is stored once
    assert len(read(path)) == 500
    monkeypatch.setattr(tables, "BATCH_BYTES", 1)
    assert len(read(path)) == 500
    assert asked[0] == 64
    assert 1 < asked[1] <= 8
    assert asked[2] == 1


def test_a_window_that_is_too_large_and_a_missing_dictionary_are_not_called_damage(tmp_path: Path) -> None:
    # A frame of one raw block of two bytes, with a window descriptor for 256 MiB, or with the number of a dictionary.
    window = struct.pack("<IBB", 0xFD2FB528, 0x00, 18 << 3)
    dictionary = struct.pack("<IBBB", 0xFD2FB528, 0x01, 0x38, 7)
    block = struct.pack("<I", (2 << 3) | 1)[:3] + b"a\n"
    path = tmp_path / "it's.txt.zst"
    path.write_bytes(window + block)
    with pytest.raises(PotstillError, match="a window of more than 128 MiB") as raised:
        read(path)
    assert f"zstd -dc --long=31 {shlex.quote(str(path))} |" in str(raised.value)
    path.write_bytes(dictionary + block)
    with pytest.raises(PotstillError, match="with a dictionary"):
        read(path)
    path.write_bytes(struct.pack("<IBB", 0xFD2FB528, 0x00, 17 << 3) + block)  # the largest that is read
    assert read(path) == ["a"]


def test_deep_nesting_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(["a"]) + b'{"text": ' + b"[" * 100_000 + b"\n")
    with pytest.raises(PotstillError, match=r"a\.jsonl, line 2 is not valid JSON") as raised:
        read(path)
    assert "\n" not in str(raised.value)


def test_a_want_of_memory_and_an_error_of_the_system_are_told_as_what_they_are() -> None:
    assert "because memory is too small" in str(unreadable("a.xz", MemoryError()))
    said = str(unreadable("a.txt", PermissionError(errno.EACCES, "Permission denied")))
    assert "Permission denied" in said
    assert "permissions" in said
    assert "fetch" not in said


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".json", ".csv.gz"])
def test_tables_give_the_texts_of_a_column(tmp_path: Path, kind: str) -> None:
    documents = [*DOCUMENTS, 'a "quoted" one,\twith\ntwo lines']
    written = io.StringIO()
    rows = csv.writer(written, delimiter="\t" if kind == ".tsv" else ",")
    rows.writerows([["id", "body"], *enumerate(documents)])
    content = json.dumps([{"body": text} for text in documents], indent=1) if kind == ".json" else written.getvalue()
    path = tmp_path / f"a{kind}"
    path.write_bytes(COMPRESS[".gz" if kind.endswith(".gz") else ""](content.encode()))
    pass_ = reader(path, text_column="body")
    assert [document.decode() for document in pass_] == documents
    assert pass_.records[0].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(PotstillError, match="has no column 'text'"):
        read(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,n\na,1\nb,2,3\n", "a.csv, line 3 has 3 columns instead of 2"),
        ("a.csv", 'text,n\n"a,1\n', "is not CSV: unexpected end of data"),
        ("a.json", '[{"text": "a"}, 7]', "a.json, row 2 is a JSON int, not an object"),
        ("a.json", '[{"text": "a"', "a.json is not valid JSON"),
    ],
)
def test_a_broken_table_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(PotstillError, match=message):
        read(tmp_path / name)
