"""Files of the suites for encoders: what is read of them, what is left out, and what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from potstill.errors import PotstillError
from potstill.evaluation import rerank, retrieval
from potstill.tasks.sts import read_sts

Lines = Callable[[Any], str]


def put(folder: Path, **files: str) -> Path:
    """Write files; two underscores in a name are a slash, one is a full stop."""
    for name, content in files.items():
        file = folder / name.replace("__", "/").replace("_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
    return folder


def jsonl(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_files_of_a_year_are_one_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "2013-OnWN.tsv").write_text('1.5\tA "b\tc\n0\td\te\n')
    (tmp_path / "2013-FNWN.tsv").write_text("5\tf\tg\n")
    (tmp_path / "2015-belief.tsv").write_text("\th\ti\n3\tj\tk\n \tl\tm\n")
    (tmp_path / "train.tsv").write_text("not read\n")
    (tmp_path / "2013-train.tsv").write_text("not read\n")
    (tmp_path / "notes.txt").write_text("not read\n")
    sets = read_sts([tmp_path], None, "stop")
    assert [one.name for one in sets] == ["STS13", "STS15"]
    assert sets[0].parts == {"FNWN": [("f", "g", 5.0)], "OnWN": [('A "b', "c", 1.5), ("d", "e", 0.0)]}
    assert sets[0].left_out == {}
    assert sets[1].parts == {"belief": [("j", "k", 3.0)]}
    assert sets[1].left_out == {"without a score": 2}
    assert (sets[0].rows, sets[1].rows) == ({"pairs": 3}, {"pairs": 1})
    (tmp_path / "2013-FNWN.tsv").write_text("5\tf\th\n")
    assert read_sts([tmp_path], None, "stop")[0].fingerprint != sets[0].fingerprint


@pytest.mark.parametrize(
    ("name", "content", "columns"),
    [
        ("STS-B/dev.tsv", 'index\tgenre\tsentence1\tsentence2\tscore\n0\tx\ta\tb, "c"\t2.5\n', None),
        ("STS-B/dev.csv", 'sentence1,sentence2,score\na,"b, ""c""",2.5\n', None),
        ("STS-B/dev.jsonl", jsonl({"sentence1": "a", "sentence2": 'b, "c"', "label": 2.5}), None),
        ("STS-B/dev.csv", 'one,two,how\na,"b, ""c""",2.5\n', ["how", "one", "two"]),
        ("STS-B/dev.tsv", 'one\ttwo\thow\na\tb, "c"\t2.5\n', ["how", "one", "two"]),
    ],
)
def test_layouts_with_names_of_columns(tmp_path: Path, name: str, content: str, columns: Sequence[str] | None) -> None:
    file = tmp_path / name
    file.parent.mkdir()
    file.write_text(content)
    (one,) = read_sts([file], columns, "stop")
    assert one.name == "STS-B dev"
    assert one.parts == {"STS-B dev": [("a", 'b, "c"', 2.5)]}


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.tsv", "1\ta\tb\nhigh\tc\td\n", "row 2: the score of STS is 'high', not a finite number"),
        ("a.tsv", "1\ta\tb\nnan\tc\td\n", "row 2: the score of STS is 'nan', not a finite number"),
        ("a.tsv", "1\ta\tb\n2\tc\n", "line 2, has 2 columns but needs 3"),
        ("a.tsv", "1\ta\tb\n2\tc\t \n", "row 2, has an empty text"),
        ("a.tsv", "\ta\tb\n", "holds no pair with a score"),
        ("a.tsv", "", "holds no pair with a score"),
        ("a.tsv", "some text\n", "line 1, has 1 column but needs 3"),
        (
            "a.csv",
            "x,y\n1,2\n",
            "has no columns 'sentence1', 'sentence2', 'score', only 'x', 'y': name them",
        ),
        ("a.csv", "sentence1,sentence2,score\na,b\n", "line 2, has 2 columns instead of 3"),
        ("a.csv", 'sentence1,sentence2,score\na,"b,1\n', "line 2, is not CSV: unexpected end of data"),
        ("a.csv", "sentence1,sentence2,score,score\n", "has 2 columns 'score': keep only one of them"),
        ("a.jsonl", "{\n", "line 1, is not JSON"),
        ("a.txt", "1\ta\tb\n", "is no table: name a file that ends in .tsv, .csv, .jsonl or .parquet"),
    ],
)
def test_sts_files_that_are_refused(tmp_path: Path, name: str, content: str, told: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(PotstillError) as raised:
        read_sts([tmp_path / name], None, "stop")
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


def test_bad_rows_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.tsv").write_text("1\ta\tb\nhigh\tc\td\n\te\tf\n2\tg\t\n")
    (one,) = read_sts([tmp_path / "a.tsv"], None, "skip")
    assert one.rows == {"pairs": 1}
    assert one.left_out == {"without a score": 1, "bad": 2}
    assert "2 bad rows are left out" in capsys.readouterr().err


def test_no_such_file(tmp_path: Path) -> None:
    for read, told in (
        (read_sts, f"--sts_data {tmp_path / 'x'} does not exist"),
        (rerank.read, f"--rerank_data {tmp_path / 'x'} does not exist"),
        (retrieval.read, f"--retrieval_data {tmp_path / 'x'} is not a folder"),
    ):
        with pytest.raises(PotstillError, match=told):
            read([tmp_path / "x"], None, "stop")
    for read, told in (
        (read_sts, "holds no file to score"),
        (retrieval.read, "has no corpus.jsonl, and no folder in it has one"),
    ):
        with pytest.raises(PotstillError, match=told):
            read([tmp_path], None, "stop")


def test_queries_that_every_order_suits_are_left_out(tmp_path: Path) -> None:
    rows = [
        ("q1", 1, "a"),
        ("q1", 0, "b, c"),
        ("q2", 1, "d"),
        ("q3", 0, "e"),
        ("q4", 0, "f"),
        ("q1", 0, "g"),
        ("q3", 0, "g"),
    ]
    content = "qtext,label,atext\n" + "".join(f'{query},{label},"{passage}"\n' for query, label, passage in rows)
    (tmp_path / "test.csv").write_text(content)
    (one,) = rerank.read([tmp_path / "test.csv"], None, "stop")
    assert one.queries == {"q1": [("a", True), ("b, c", False), ("g", False)]}
    assert one.left_out == {"queries without a relevant passage": 2, "queries without an irrelevant passage": 1}
    assert one.rows == {"queries": 1, "passages": 3}

    (tmp_path / "own.jsonl").write_text(jsonl({"q": "x", "p": "a", "l": 2}, {"q": "x", "p": "b", "l": 0}))
    assert rerank.read([tmp_path / "own.jsonl"], ["q", "p", "l"], "stop")[0].queries == {
        "x": [("a", True), ("b", False)]
    }
    for content, told in (
        ("qtext,label,atext\nq,1,a\n", "has no query with both a relevant and an irrelevant passage"),
        ("qtext,label,atext\nq,,a\n", "row 2: the score of Rerank is '', not a finite number"),
        ("qtext,label,atext\nq,1,\n", "row 2, has an empty text"),
        ("query,atext,label\nq,a,1\n", "name them with --rerank_columns"),
    ):
        (tmp_path / "test.csv").write_text(content)
        with pytest.raises(PotstillError, match=told):
            rerank.read([tmp_path / "test.csv"], None, "stop")


CORPUS = jsonl({"_id": "d1", "title": "T", "text": "a"}, {"id": 2, "text": "b"}, {"id": "d3", "text": "c", "title": ""})
QUERIES = jsonl({"_id": "q1", "text": "x"}, {"_id": "q2", "text": "y"}, {"_id": "q3", "text": "z"})
HEADER = "query-id\tcorpus-id\tscore\n"


@pytest.mark.parametrize("header", [HEADER, ""])
@pytest.mark.parametrize("place", ["qrels_tsv", "qrels__test_tsv"])
def test_a_folder_of_beir(tmp_path: Path, header: str, place: str) -> None:
    judged = header + "q1\td1\t2\nq1\t2\t1\nq2\td3\t0\nq3\td3\t1\n"
    put(tmp_path / "wiki", corpus_jsonl=CORPUS, queries_jsonl=QUERIES, **{place: judged})
    for source in (tmp_path / "wiki", tmp_path):
        (one,) = retrieval.read([source], None, "stop")
        assert one.name == "wiki"
        assert one.passages == ["T a", "b", "c"]
        assert one.queries == ["x", "z"]
        assert one.relevant == [{0: 2.0, 1: 1.0}, {2: 1.0}]
        assert one.left_out == {"queries without a relevant passage": 1}


def test_judgements_as_json(tmp_path: Path) -> None:
    judged = jsonl({"query-id": "q1", "corpus-id": 2, "score": 1})
    put(tmp_path, corpus_jsonl=CORPUS, queries_jsonl=QUERIES, qrels_jsonl=judged)
    assert retrieval.read([tmp_path], None, "stop")[0].relevant == [{1: 1.0}]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"qrels_tsv": HEADER + "q9\td1\t1\n"}, "line 2, names the query 'q9', which queries.jsonl does not have"),
        ({"qrels_tsv": HEADER + "q1\td9\t1\n"}, "line 2, names the passage 'd9', which corpus.jsonl does not have"),
        ({"qrels_tsv": HEADER + "q1\td1\t\n"}, "line 2, has the score '', which is not a number"),
        ({"qrels_tsv": HEADER + "q1\td1\n"}, "line 2, has 2 columns instead of 3"),
        ({"qrels_tsv": HEADER + "q1\td1\t1\n" * 2}, "line 3, judges the passage 'd1' a second time for the query 'q1'"),
        ({"qrels_tsv": HEADER + "q1\td1\t0\n"}, "marks no passage as relevant"),
        ({"qrels_tsv": "a\tb\tc\n"}, "line 1, is neither the header query-id corpus-id score nor such a row"),
        ({"qrels_tsv": ""}, "marks no passage as relevant"),
        ({"corpus_jsonl": jsonl({"id": "d1", "text": "a"}) * 2}, "line 2: the id 'd1' occurs a second time"),
        ({"corpus_jsonl": jsonl({"id": "d1", "text": " "})}, "line 1, has an empty text"),
        ({"corpus_jsonl": jsonl({"id": "d1"})}, "line 1: a 'text' was expected, not None"),
        ({"corpus_jsonl": jsonl({"id": 1.5, "text": "a"})}, "line 1, has no 'id' or '_id'"),
        ({"corpus_jsonl": ""}, "holds no text: check that it is the right file"),
        ({"queries_jsonl": jsonl({"id": "q1", "text": ""})}, "queries.jsonl, line 1, has an empty text"),
        ({"queries_jsonl": jsonl({"id": "q1", "text": "a"}) * 2}, "line 2: the id 'q1' occurs a second time"),
    ],
)
def test_retrieval_files_that_are_refused(tmp_path: Path, files: dict[str, str], told: str) -> None:
    good = {"corpus_jsonl": CORPUS, "queries_jsonl": QUERIES, "qrels_tsv": HEADER + "q1\td1\t1\n"}
    put(tmp_path, **good | files)
    with pytest.raises(PotstillError) as raised:
        retrieval.read([tmp_path], None, "stop")
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_folder_without_one_of_its_files(tmp_path: Path) -> None:
    put(tmp_path, corpus_jsonl=CORPUS)
    with pytest.raises(PotstillError, match=r"has no queries\.jsonl"):
        retrieval.read([tmp_path], None, "stop")
    put(tmp_path, queries_jsonl=QUERIES)
    with pytest.raises(PotstillError, match=r"has no qrels\.tsv"):
        retrieval.read([tmp_path], None, "stop")


def test_two_files_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "2013-a.tsv").write_text("1\ta\tb\n")
    (tmp_path / "2013-a.csv").write_text("sentence1,sentence2,score\na,b,1\n")
    with pytest.raises(PotstillError, match=r"2013-a\.tsv would be read as a of STS13, as another file is"):
        read_sts([tmp_path], None, "stop")


@pytest.mark.skipif("POTSTILL_TEST_DATA" not in os.environ, reason="POTSTILL_TEST_DATA names no folder of real data")
def test_real_files_hold_the_published_numbers_of_pairs() -> None:
    """Expected there: `sts/YEAR-NAME.tsv` of 2013 to 2015, and `rerank/trecqa-{dev,test}.csv`."""
    folder = Path(os.environ["POTSTILL_TEST_DATA"])
    pairs = {one.name: one.rows["pairs"] for one in read_sts([folder / "sts"], None, "stop")}
    assert [pairs[name] for name in ("STS13", "STS14", "STS15")] == [1500, 3750, 3000]
    clean = {one.name: one.rows for one in rerank.read([folder / "rerank"], None, "stop")}  # Rao et al. 2016
    assert clean["trecqa-dev"] == {"queries": 65, "passages": 1117}
    assert clean["trecqa-test"] == {"queries": 68, "passages": 1442}
