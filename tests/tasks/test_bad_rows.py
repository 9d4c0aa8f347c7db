"""Rows that cannot be used: the first stops the reading and is named, or all are left out, counted and told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from potstill.errors import PotstillError
from potstill.tasks.glue import GLUE
from potstill.tasks.imdb import IMDB
from potstill.tasks.load import load_split
from potstill.tasks.rows import BadRows
from potstill.tasks.sentence import SentenceTask

QQP = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
DEEP = "[" * 100_000


def split(task: SentenceTask, folder: Path, name: str, content: str | bytes, bad: BadRows | None = None) -> list[Any]:
    path = folder / task.title / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [tuple(row.values()) for row in load_split(task, name.split(".")[0], str(folder), bad=bad)]


def both(task: SentenceTask, folder: Path, name: str, content: str | bytes) -> tuple[str, BadRows, list[Any]]:
    """Read a file with bad rows both ways; return the error, what was left out, and what was read."""
    with pytest.raises(PotstillError, match=r"correct the row, or leave such .* --on_bad_rows skip\.$") as it:
        split(task, folder, name, content)
    bad = BadRows("skip")
    return str(it.value), bad, split(task, folder, name, content, bad)


BROKEN = {
    "over two lines": ("9\t9\t9\tWhy\n?\tHow?\t0", 2, "line 3, has 4 columns but needs 6"),
    "with a blank line inside": ("9\t9\t9\tWhy\n\n?\tHow?\t0", 3, "line 3, has 4 columns but needs 6"),
    "by a tab": ("9\t9\t9\tWhy\t?\tHow?\t0", 1, "line 3, has 7 columns instead of 6"),
    "by bytes": ("9\t9\t9\tWhy\udcff?\tHow?\t0", 1, "line 3, is not UTF-8"),
    "by its label": ("9\t9\t9\tWhy?\tHow?\tyes", 1, "row 3: the label is 'yes', but QQP has 0, 1"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_row_of_a_table_that_is_broken(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, count, said = BROKEN[case]
    lines = [QQP, "1\t2\t3\tA?\tB?\t1", text, "4\t5\t6\tC?\tD?\t0"]
    content = "\n".join(lines).encode(errors="surrogateescape") + b"\n\n \n\t\t\n"  # no rows at the end
    message, bad, rows = both(GLUE["qqp"], tmp_path, "train.tsv", content)
    assert f"train.tsv, {said}" in message
    assert rows == [("A?", "B?", 1), ("C?", "D?", 0)]
    assert bad.count == count
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    left_out = "1 bad row is left out" if count == 1 else f"{count} bad rows are left out"
    assert f"train.tsv: {left_out}. " in told
    assert said in told


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2, is not JSON"),
        (DEEP, "line 2, is not JSON"),
        ("1" * 5000, "line 2, is not JSON"),
        ("[1]", "line 2, is not a JSON object"),
        ('{"sentence": "A"}', "row 2, has no 'label', only 'sentence'"),
        ('{"sentence": null, "label": 1}', "row 2: a sentence was expected, not None"),
        ('{"sentence": "\\ud800", "label": 1}', "row 2: a sentence holds half a surrogate pair"),
        ('{"sentence": "A", "label": true}', "row 2: the label is 'True'"),
        ('{"sentence": "A", "label": null}', "row 2: the label is 'None'"),
    ],
)
def test_a_line_of_json_that_is_bad(line: str, said: str, tmp_path: Path) -> None:
    good = ['{"sentence": "A", "label": 1}', '{"sentence": "B", "label": 0.0}']
    message, bad, rows = both(GLUE["sst2"], tmp_path, "train.jsonl", "\n".join([good[0], line, "", good[1], ""]))
    assert said in message
    assert (bad.count, rows) == (1, [("A", 1), ("B", 0)])


@pytest.mark.parametrize("score", ["nan", "NaN", "inf", "-inf", "", "1e39"])
def test_a_score_of_a_table_that_is_no_finite_number(score: str, tmp_path: Path) -> None:
    lines = ["sentence1\tsentence2\tscore", "A\tB\t2.5", f"C\tD\t{score}"]
    message, _, rows = both(GLUE["stsb"], tmp_path, "dev.tsv", "\n".join(lines))
    assert f"dev.tsv, row 3: the score of STS-B is {score!r}, not a finite number" in message
    assert rows == [("A", "B", 2.5)]


@pytest.mark.parametrize("score", [float("nan"), float("inf"), None])
def test_a_score_of_json_or_parquet_that_is_no_finite_number(score: float | None, tmp_path: Path) -> None:
    rows = [{"sentence1": "A", "sentence2": "B", "label": value} for value in (1.5, score)]
    message, _, found = both(GLUE["stsb"], tmp_path, "dev.jsonl", "\n".join(map(json.dumps, rows)))
    assert "dev.jsonl, row 2: the score of STS-B is" in message
    assert found == [("A", "B", 1.5)]
    (tmp_path / "STS-B" / "dev.jsonl").unlink()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "table")
    message, _, found = both(GLUE["stsb"], tmp_path, "dev.parquet", (tmp_path / "table").read_bytes())
    assert "dev.parquet, row 2: the score of STS-B is" in message
    assert found == [("A", "B", 1.5)]


def test_a_file_of_bad_rows_alone_is_an_error_in_any_case(tmp_path: Path) -> None:
    with pytest.raises(PotstillError, match=r"train\.tsv: all 2 rows are bad\. .*row 2: the label is '7'"):
        split(GLUE["sst2"], tmp_path, "train.tsv", "sentence\tlabel\nA\t7\nB\t8\n", BadRows("skip"))


def test_columns_that_are_not_read_are_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": "A", "label": 1}, {"text": "B", "text_pair": "C", "label": 0, "idx": 1, "weight": 2}]
    split(IMDB, tmp_path, "test.jsonl", "\n".join(map(json.dumps, rows)))
    assert capsys.readouterr().err.endswith("test.jsonl: nothing is read from the columns 'text_pair', 'weight'.\n")
    split(GLUE["sst2"], tmp_path, "dev.tsv", "sentence\tlabel\tnote\nA\t1\tx\n")
    assert capsys.readouterr().err.endswith("dev.tsv: nothing is read from the column 'note'.\n")
    split(GLUE["qqp"], tmp_path, "dev.tsv", f"{QQP}\n1\t2\t3\tA?\tB?\t1\n")
    assert capsys.readouterr().err == ""


def test_a_table_without_a_header_has_the_task_s_number_of_columns(tmp_path: Path) -> None:
    good = "gj04\t1\t\tFine."
    for bad in ("gj04\t1\t\tHe\tslept.", "gj04\t1\tFine."):
        message, _, rows = both(GLUE["cola"], tmp_path, "train.tsv", f"{bad}\n{good}\n")
        assert "train.tsv, line 1, has" in message
        assert rows == [("Fine.", 1)]


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PotstillError, match="has 2 columns 'label': keep only one of them"):
        split(GLUE["sst2"], tmp_path, "dev.tsv", "sentence\tlabel\tlabel\nA\t1\t0\n")


def test_the_hub_s_own_file_of_a_split_is_found(tmp_path: Path) -> None:
    (tmp_path / "RTE").mkdir()
    rows = [{"sentence1": "A", "sentence2": "B", "label": 1, "idx": 0}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "RTE" / "validation-00000-of-00001.parquet")
    assert load_split(GLUE["rte"], "dev", str(tmp_path))["label"][:] == [1]
