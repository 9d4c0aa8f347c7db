"""Files of queries and passages: rows, lists and triples in every format; what cannot be used; and their measures."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from potstill.errors import PotstillError
from potstill.tasks.ranking import average_precision, expected_precision, rank_measures
from potstill.tasks.rerank_lists import PassageList, find_file, read_lists, without_duplicates
from potstill.tasks.rows import BadRows

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_rows(ending: str, rows: list[dict[str, Any]]) -> Path:
        file = tmp_path / f"rows.{ending}"
        if ending == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), file)
        elif ending == "jsonl":
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            mark = "," if ending == "csv" else "\t"
            lines = [mark.join(rows[0]), *(mark.join(map(str, row.values())) for row in rows)]
            file.write_text("\n".join(lines) + "\n")
        return file

    return write_rows


ROWS = [("a?", "one", 1), ("b?", "two", 0), ("a?", "three", 0)]


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_rows_of_a_query_are_a_list(write: Write, ending: str) -> None:
    rows = [{"qtext": query, "label": label, "atext": passage} for query, passage, label in ROWS]
    found = read_lists(write(ending, rows), None, BadRows())
    assert found == [PassageList("a?", ("one", "three"), (True, False)), PassageList("b?", ("two",), (False,))]
    assert [one.ranks for one in found] == [True, False]


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_rows_without_labels_and_triples(write: Write, ending: str) -> None:
    rows = [{"query": query, "passage": passage} for query, passage, _ in ROWS]
    assert read_lists(write(ending, rows), None, BadRows())[0] == PassageList("a?", ("one", "three"), None)
    named = [{"q": query, "p": passage} for query, passage, _ in ROWS]
    assert read_lists(write(ending, named), ["q", "p"], BadRows())[0] == PassageList("a?", ("one", "three"), None)
    triples = [{"query": "a?", "positive": "one", "negative": other} for other in ("two", "three")]
    found = read_lists(write(ending, triples), None, BadRows())
    assert found == [PassageList("a?", ("one", other), (True, False)) for other in ("two", "three")]
    with pytest.raises(PotstillError, match=r"has no column(s 'query', 'passage', 'label'| 'passage')"):
        read_lists(write(ending, triples), None, BadRows(), labelled=True, triples=False)


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_lists(write: Write, ending: str) -> None:
    rows: list[dict[str, Any]] = [{"query": "a?", "passages": ["one", "two"], "labels": [0, 2]}]
    assert read_lists(write(ending, rows), None, BadRows()) == [PassageList("a?", ("one", "two"), (False, True))]
    rows = [{"query": "a?", "passages": ["one", "two"]}]
    assert read_lists(write(ending, rows), None, BadRows()) == [PassageList("a?", ("one", "two"), None)]
    with pytest.raises(PotstillError, match="has 1 query without labels"):
        read_lists(write(ending, rows), None, BadRows(), labelled=True)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query": "b?", "passages": ["one", "two"], "labels": [1]}, "has 2 passages and 1 label"),
        ({"query": "b?", "passages": ["one"], "labels": ["x"]}, "has the label 'x', which is not a finite number"),
        ({"query": "b?", "passages": ["one", " "], "labels": [1, 0]}, "has an empty text"),
        ({"query": "", "passages": ["one"], "labels": [1]}, "has an empty text"),
        ({"query": "b?", "passages": [], "labels": []}, "has no list of passages"),
        ({"query": "b?", "passages": "one", "labels": [1]}, "has no list of passages"),
        ({"query": 3, "passages": ["one"], "labels": [1]}, "text was expected, not 3"),
    ],
)
def test_lists_that_cannot_be_used_are_refused_or_counted(
    write: Write, row: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"query": "a?", "passages": ["one", "two"], "labels": [0, 1]}
    file = write("jsonl", [good, row])
    with pytest.raises(PotstillError) as caught:
        read_lists(file, None, BadRows())
    assert f"row 2, {message}" in str(caught.value) or f"row 2, is not usable: {message}" in str(caught.value)
    bad = BadRows("skip")
    assert len(read_lists(file, None, bad)) == 1
    assert bad.count == 1
    assert "1 bad row is left out" in capsys.readouterr().err


def test_some_lists_with_labels_and_some_without_are_refused(write: Write) -> None:
    good = {"query": "a?", "passages": ["one", "two"], "labels": [0, 1]}
    with pytest.raises(PotstillError, match="has labels for 1 query and none for 1"):
        read_lists(write("jsonl", [good, {"query": "b?", "passages": ["one"]}]), None, BadRows())


def test_an_unusable_triple_is_counted(write: Write) -> None:
    rows = [{"query": "a?", "positive": "one", "negative": other} for other in ("one", "two", " ")]
    bad = BadRows("skip")
    assert len(read_lists(write("csv", rows), None, bad)) == 1
    assert bad.count == 2


def test_equal_passages_are_used_once(capsys: pytest.CaptureFixture[str]) -> None:
    one = PassageList("a?", ("x", "y", "x", "z", "z"), (True, False, True, True, False))
    bad = BadRows("skip")
    assert without_duplicates("file", [one], bad) == [PassageList("a?", ("x", "y"), (True, False))]
    assert bad.count == 1
    printed = capsys.readouterr().err
    assert "file: 1 passage stands more than once under its query; it is used once." in printed
    with pytest.raises(PotstillError, match="of the query 'a\\?' is relevant and not relevant: 'z'"):
        without_duplicates("file", [one], BadRows())
    assert without_duplicates("f", [PassageList("a?", ("x", "x"), None)], bad) == [PassageList("a?", ("x",), None)]


def test_files_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "trecqa-train.csv").write_text("")
    assert find_file(tmp_path, "train").name == "trecqa-train.csv"
    with pytest.raises(PotstillError, match="has no file called dev or …-dev"):
        find_file(tmp_path, "dev")
    (tmp_path / "rerank").mkdir()
    (tmp_path / "rerank" / "train.jsonl").write_text("")
    assert find_file(tmp_path, "train").name == "train.jsonl"
    (tmp_path / "rerank" / "a_train.tsv").write_text("")
    with pytest.raises(PotstillError, match=r"holds a_train\.tsv and train\.jsonl: name the one to use"):
        find_file(tmp_path, "train")


@pytest.mark.parametrize(("passages", "relevant"), [(5, 2), (4, 1), (4, 4), (1, 1)])
def test_the_precision_by_chance_is_the_mean_over_all_orders(passages: int, relevant: int) -> None:
    orders = itertools.permutations([1.0] * relevant + [0.0] * (passages - relevant))
    assert expected_precision(passages, relevant) == pytest.approx(np.mean([average_precision(o) for o in orders]))


def test_measures_take_equal_scores_in_the_worst_order() -> None:
    found = rank_measures(np.array([2.0, 2.0, 1.0, 5.0, 3.0]), [[True, False, True], [True, False]])
    assert found == pytest.approx({"map": 100 * ((1 / 2 + 2 / 3) / 2 + 1) / 2, "mrr": 75.0, "score": found["map"]})
