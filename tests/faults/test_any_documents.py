"""Properties of readers and of prepared blocks that hold for any documents, tried on the same ones each time."""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from potstill.corpus.packing import BlockWriter
from potstill.corpus.reading import DocumentReader, ReadingOptions
from potstill.corpus.sources import find_sources
from potstill.corpus.tokenise import Batch
from potstill.corpus.tokenizer import TokenizerSpec, load_tokenizer
from potstill.corpus.worker import Encoder
from potstill.recipe_file import read_recipe
from potstill.tasks.rows import BadRows, csv_rows, json_rows, parquet_rows
from potstill.tasks.tagged import conll_sentences

quick = settings(
    max_examples=50,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
lines = texts.map(lambda text: " ".join(text.split("\n")).replace("\r", " "))
"""What can stand on a line of a plain file."""
words = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=12)


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def as_csv(documents: list[str], delimiter: str = ",") -> bytes:
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writerows([["text", "n"], *([text, str(number)] for number, text in enumerate(documents))])
    return file.getvalue().encode()


def as_parquet(documents: list[str]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"text": pa.array(documents, pa.string())}), sink)
    return sink.getvalue()


def as_json_lines(documents: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents).encode()


WRITERS: dict[str, Callable[[list[str]], bytes]] = {
    "jsonl": as_json_lines,
    "json": lambda documents: json.dumps([{"text": text} for text in documents]).encode(),
    "csv": as_csv,
    "tsv": lambda documents: as_csv(documents, "\t"),
    "parquet": as_parquet,
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstd}


def kept(documents: list[str]) -> list[str]:
    """What a reader keeps: a blank document is left out."""
    return [text for text in documents if text and not text.isspace()]


def read(path: Path) -> list[str]:
    reader = DocumentReader(find_sources([str(path)], Path("/nowhere")), ReadingOptions())
    return [document.decode() for document in reader]


@pytest.mark.parametrize("kind", WRITERS)
@quick
@given(documents=st.lists(texts, min_size=1, max_size=8), packer=st.sampled_from(sorted(PACKERS)))
def test_every_reader_gives_the_documents_back(kind: str, documents: list[str], packer: str) -> None:
    if kind in ("csv", "tsv"):  # Python's csv reads a lone carriage return as the end of a line, and writes it as it is
        documents = [text.replace("\r", " ") for text in documents]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{kind}{'' if kind == 'parquet' else packer}"
        path.write_bytes(WRITERS[kind](documents) if kind == "parquet" else PACKERS[packer](WRITERS[kind](documents)))
        assert read(path) == kept(documents)
        bad = BadRows()
        if kind == "parquet":
            rows = parquet_rows(str(path))
        elif kind in ("json", "jsonl"):
            rows = list(json_rows(str(path), bad))
        else:
            rows = list(csv_rows(str(path), bad, delimiter="," if kind == "csv" else "\t"))
        assert [row["text"] for _, row in rows] == documents


@quick
@given(documents=st.lists(lines, max_size=8), packer=st.sampled_from(sorted(PACKERS)))
def test_lines_of_text_come_back(documents: list[str], packer: str) -> None:
    documents = [text.removeprefix("\ufeff") for text in documents]  # at the beginning it is a byte-order mark
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.txt{packer}"
        path.write_bytes(PACKERS[packer]("".join(f"{text}\n" for text in documents).encode()))
        assert read(path) == kept(documents)


@quick
@given(sentences=st.lists(st.lists(st.tuples(words, words), min_size=1, max_size=6), max_size=6))
def test_tagged_words_come_back(sentences: list[list[tuple[str, str]]]) -> None:
    sentences = [[(word.replace("-DOCSTART-", "x"), tag) for word, tag in sentence] for sentence in sentences]
    columns = "{n}\t{word}\t_\t{tag}\t_\t_\t0\t_\t_\t_\n"
    written = {
        "a.conll": ["".join(f"{word}\t{tag}\n" for word, tag in sentence) for sentence in sentences],
        "a.conllu": [
            "# a comment\n"
            + "".join(columns.format(n=n, word=word, tag=tag) for n, (word, tag) in enumerate(sentence, 1))
            for sentence in sentences
        ],
    }
    for name, parts in written.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_text("\n".join(parts), encoding="utf-8", newline="")
            if name == "a.conllu" and any(tag == "_" for sentence in sentences for _, tag in sentence):
                continue
            found = list(conll_sentences(str(path), BadRows()))
            expected = [[(word, tag) for word, tag in sentence] for sentence in sentences]
            if any(word.startswith("\ufeff") for sentence in sentences[:1] for word, _ in sentence[:1]):
                continue
            assert [list(zip(one.words, one.tags, strict=True)) for one in found] == expected


options = st.dictionaries(
    st.from_regex(r"[a-z][a-z_]{0,11}", fullmatch=True).filter(lambda name: name not in ("y", "n", "null")),
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30),
        st.lists(words, max_size=4),
        st.dictionaries(words, st.one_of(st.integers(), st.booleans(), words), min_size=1, max_size=3),
    ),
    min_size=1,
    max_size=6,
)


@quick
@given(recipe=options)
def test_a_recipe_says_what_was_written(recipe: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.yaml"
        path.write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
        found = read_recipe(path)
    expected = {name: json.loads(json.dumps(value)) for name, value in recipe.items()}
    read_back = {
        name: json.loads(value) if isinstance(expected[name], dict) else value for name, value in found.items()
    }
    assert read_back == expected


@pytest.fixture(scope="module")
def spec(teacher_folder: Path) -> TokenizerSpec:
    return TokenizerSpec.of(load_tokenizer(str(teacher_folder)), "tiny")


@quick
@given(
    documents=st.lists(st.one_of(texts, st.lists(st.sampled_from(["bola", "kir", "a"]), max_size=40).map(" ".join))),
    block_size=st.integers(3, 20),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6),
)
def test_concatenated_blocks_give_the_tokens_back(
    spec: TokenizerSpec, documents: list[str], block_size: int, sizes: list[int]
) -> None:
    """However the documents are shared out over batches, which is all that workers change."""
    tokenizer = Tokenizer.from_str(spec.json)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    stream: list[int] = []
    for document in documents:
        ids = tokenizer.encode(document, add_special_tokens=False).ids
        stream += [*ids, spec.separator] if ids else []
    settings_ = (spec.json, spec.separator, spec.special_ids, spec.unknown, spec.dtype.itemsize, 0, 0.0)
    encoder = Encoder(*settings_)
    with tempfile.TemporaryDirectory() as folder:
        writer = BlockWriter(Path(folder) / "train.arrow", spec, block_size)
        first, place = 0, 0
        while first < len(documents):
            batch = Batch(first, [text.encode() for text in documents[first : first + sizes[place % len(sizes)]]])
            writer.add(np.frombuffer(encoder(*batch)[0], spec.dtype))
            first, place = first + len(batch.documents), place + 1
        writer.finish()
        with pa.memory_map(str(Path(folder) / "train.arrow")) as file:
            blocks = np.array(pa.ipc.open_stream(file).read_all().column(0).to_pylist(), int).reshape(-1, block_size)
    assert (blocks[:, 0] == spec.prefix).all()
    assert (blocks[:, -1] == spec.suffix).all()
    contents = blocks[:, 1:-1].ravel().tolist()
    assert contents == stream[: len(contents)]
    assert len(stream) - len(contents) < block_size - 2
    assert writer.dropped_tokens == len(stream) - len(contents)
