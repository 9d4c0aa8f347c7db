"""Tables of every kind hold the same rows, and what cannot be read is said in one sentence."""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest

from potstill.errors import PotstillError
from potstill.tasks.own import OWN, OwnTask
from potstill.tasks.own_rows import OwnRows, read_own_rows
from potstill.tasks.rows import OnBadRows
from potstill.tasks.stratified import stratified
from potstill.tasks.task import OwnFiles

TEXTS = ["a plain one", 'a "quoted" one', "one, with a comma", "one\twith a tab", "one\nof two lines", '"all quoted"']
LABELS = ["card", "cash", "card", "cash", "loan", "loan"]
ROWS = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]


def read(kind: str, on_bad_rows: OnBadRows = "stop", **files: Any) -> OwnRows:
    task = OWN[kind]
    assert isinstance(task, OwnTask)
    return read_own_rows(
        task, OwnFiles(**{name: str(v) if "/" in str(v) else v for name, v in files.items()}), on_bad_rows
    )


def write_table(path: Path, rows: list[dict[str, Any]], delimiter: str = ",", header: bool = True) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        if header:
            writer.writerow(rows[0])
        writer.writerows(row.values() for row in rows)
    return path


def write_as(folder: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"rows{kind}"
    if kind in (".csv", ".tsv"):
        return write_table(path, rows, "\t" if kind == ".tsv" else ",")
    if kind == ".csv.gz":
        plain = write_table(folder / "plain.csv", rows)
        path.write_bytes(gzip.compress(plain.read_bytes()))
    elif kind == ".json":
        path.write_text(json.dumps(rows, indent=1))
    elif kind == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        named = datasets.ClassLabel(names=["loan", "cash", "card"])  # in another order than the alphabet's
        features = datasets.Features({"text": datasets.Value("string"), "label": named})
        table = datasets.Dataset.from_list(rows, features=features)
        if kind == ".parquet":
            table.to_parquet(str(path))
        elif kind == "-saved":
            table.save_to_disk(str(path))
        else:
            datasets.DatasetDict({"train": table, "validation": table}).save_to_disk(str(path))
    return path


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".csv.gz", ".json", ".jsonl", ".parquet", "-saved", "-splits"])
def test_every_kind_of_file_holds_the_same_rows(tmp_path: Path, kind: str) -> None:
    path = write_as(tmp_path, kind, ROWS)
    found = read("classification", train=path, **({} if kind == "-splits" else {"eval": path}))
    assert found.labels == ("card", "cash", "loan")
    for split in ("train", "dev"):
        assert found.splits[split]["text"][:] == TEXTS
        assert found.splits[split]["label"][:] == [0, 1, 0, 1, 2, 2]
    assert found.bad_rows == {"train": 0, "dev": 0}


def test_a_tsv_file_is_quoted_only_if_all_of_it_can_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "it.tsv"
    path.write_text('text\tlabel\n"a" and b\tx\n"c"\ty\nd\tx\n')
    found = read("classification", train=path, eval=path)
    assert found.splits["train"]["text"][:] == ['"a" and b', '"c"', "d"]
    assert "are read as they are, quotation marks included" in capsys.readouterr().err
    path.write_text('text\tlabel\n"a ""and"" b"\tx\nc\ty\n')
    assert read("classification", train=path, eval=path).splits["train"]["text"][:] == ['a "and" b', "c"]
    assert "are read as quoted" in capsys.readouterr().err


def test_labels_are_numbered_in_order(tmp_path: Path) -> None:
    def labels(*values: Any) -> tuple[str, ...]:
        path = write_as(tmp_path, ".jsonl", [{"text": "a", "label": value} for value in values])
        return read("classification", train=path, eval=path).labels

    assert labels(10, 9, 2.0, -1) == ("-1", "2", "9", "10")
    assert labels("10", "9") == ("9", "10")
    assert labels("b", "a b", "Z") == ("Z", "a b", "b")
    assert labels(True, False) == ("false", "true")


def test_several_labels_stand_in_a_field_or_in_a_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = tmp_path / "labels.txt"
    names.write_text("joy\nanger\nfear\n")
    fields = tmp_path / "fields.tsv"
    fields.write_text("a\t2,0\t#1\nb\t1\t#2\nc\t\t#3\n")
    found = read("multilabel", train=fields, eval=fields, columns=("text", "label", "key"), label_names=names)
    assert found.labels == ("joy", "anger", "fear")
    assert found.splits["dev"]["label"][:] == [[0, 2], [1], []]
    assert "1 of 3 rows has no label: an example of none" in capsys.readouterr().err
    lists = [{"text": "a", "label": ["fear", "joy"]}, {"text": "b", "label": ["anger"]}, {"text": "c", "label": []}]
    path = write_as(tmp_path, ".jsonl", lists)
    assert read("multilabel", train=path, eval=path).splits["dev"]["label"][:] == [[1, 2], [0], []]
    path = write_as(tmp_path, ".csv", [{"text": "a", "label": "x | y"}, {"text": "b", "label": "y"}])
    assert read("multilabel", train=path, eval=path, label_separator="|").splits["dev"]["label"][:] == [[0, 1], [1]]


def test_scores_and_pairs(tmp_path: Path) -> None:
    path = write_as(tmp_path, ".csv", [{"one": "a", "two": "b", "score": "1.5"}, {"one": "c", "two": "d", "score": 0}])
    found = read("regression", train=path, eval=path, text_column="one", pair_column="two")
    assert found.splits["train"].to_dict() == {"text": ["a", "c"], "pair": ["b", "d"], "label": [1.5, 0.0]}
    assert found.labels == ()


def good(count: int = 4) -> list[dict[str, Any]]:
    return [{"text": f"text {n}", "label": "xy"[n % 2]} for n in range(count)]


BAD: dict[str, tuple[str, str, str]] = {
    "column": ("a.csv", "text,labels_\na,x\n", "no column 'label', only 'text', 'labels_'; the nearest is 'labels_'"),
    "no header": ("a.csv", "some text,x\nmore,y\n", "give --columns if the first line does not name the columns"),
    "many fields": ("a.csv", "text,label\na,x\nb,c,y\n", "a.csv, line 3, has 3 columns instead of 2"),
    "mixed": ("a.jsonl", '{"text":"a","label":1}\n{"text":"b","label":"x"}', "mixes numbers (1) and names ('x')"),
    "mixed text": ("a.csv", "text,label\na,1\nb,x\n", "mixes numbers (1) and names ('x')"),
    "one": ("a.csv", "text,label\na,x\nb,x\n", "has only the label 'x'"),
    "fractions": (
        "a.csv",
        "text,label\na,0.5\nb,1\n",
        "the label 0.5, a number with a fraction: give --task regression",
    ),
    "empty": (
        "a.csv",
        "text,label\na,x\n ,y\nb,\n",
        "1 row with an empty text (the first is line 3), and 1 row without a",
    ),
    "null": ("a.jsonl", '{"text":null,"label":"x"}', "1 row without a text (the first is row 1)"),
    "number": ("a.jsonl", '{"text":7,"label":"x"}', "1 row with no text (a text was expected, not 7)"),
    "list": (
        "a.jsonl",
        '{"text":"a","label":["x"]}',
        "with a list as its label (['x']), which is for --task multilabel",
    ),
    "format": ("a.xlsx", "text", "a.xlsx has no format of a table that can be read: give .csv, .tsv, .jsonl, .json or"),
    "nothing": ("a.csv", "text,label\n", "has no rows"),
    "json": ("a.json", '[{"text": 1,]', "is not valid JSON"),
    "array": ("a.json", "[1]", "a.json, row 1, is not a JSON object"),
    "few fields": ("a.csv", "text,label\na,x\nb\n", "a.csv, line 3, has 1 column instead of 2"),
    "semicolons": ("a.csv", "text;label\na;x\n", "has a single column, because semicolons separate its fields"),
    "tabs": ("a.csv", "text\tlabel\na\tx\n", "has a single column, because tabs separate its fields"),
    "line ends": ("a.csv", "text,label\ra,x\rb,y", "ends its lines with carriage returns alone"),
    "latin": ("a.csv", "text,label\na,\udcff\n", "line 2, is not UTF-8: invalid start byte; convert the file to UTF-8"),
    "nan": ("a.jsonl", '{"text":"a","label":NaN}', "the label 'nan', which is neither a name nor a number"),
    "ids": (
        "ids.csv",
        "text,label\n" + "".join(f"a {n},id {n}\n" for n in range(9)),
        "9 rows and each has another label, so none can be held out",
    ),
}


BAD_KINDS: dict[str, tuple[str, str, str]] = {
    "separator": ("multilabel", "text,labels\na,x;y\nb,y\n", "the label 'x;y' holds ';': say with --label_separator"),
    "piece": ("multilabel", 'text,labels\na,"x,,y"\n', "the labels 'x,,y', one of which is empty"),
    "list": ("multilabel", "text,labels\na,\"['x', 'y']\"\nb,[]\n", "2 rows with a list in one field ([...])"),
    "constant": ("regression", "text,score\na,2\nb,2.0\n", "has only the score 2: there is nothing to learn from it"),
}


@pytest.mark.parametrize("case", BAD_KINDS)
def test_what_other_kinds_of_tasks_cannot_read_is_said(tmp_path: Path, case: str) -> None:
    kind, text, said = BAD_KINDS[case]
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(PotstillError) as error:
        read(kind, train=tmp_path / "a.csv", eval=tmp_path / "a.csv")
    assert said in str(error.value)
    if case == "separator":
        assert read(kind, train=tmp_path / "a.csv", eval=tmp_path / "a.csv", label_separator=";").labels == ("x", "y")


def test_many_faults_are_said_in_short(tmp_path: Path) -> None:
    train = write_table(tmp_path / "train.csv", good())
    dev = write_table(tmp_path / "dev.csv", [{"text": "a", "label": f"z{number % 50}"} for number in range(100)])
    with pytest.raises(PotstillError) as error:
        read("classification", train=train, eval=dev)
    assert "2 rows with the label 'z4'" in str(error.value)
    assert "and 90 other rows with faults of these kinds; correct them" in str(error.value)


def test_what_may_be_a_mistake_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": f"a {n}", "label": ("Card", "card", "loan")[n % 3]} for n in range(6)]
    train = write_table(tmp_path / "train.csv", rows)
    dev = write_table(tmp_path / "dev.csv", [*rows[:2], {"text": "new", "label": "loan"}])
    read("classification", train=train, eval=dev)
    told = capsys.readouterr().err
    assert "train.csv: 'Card' and 'card' are taken for different labels." in told
    assert "2 of the 3 rows of dev have a text that is among the rows to train on." in told
    rows = [{"text": f"a {n}", "label": ("01", "1", "-1")[n % 3]} for n in range(6)]
    read("classification", train=write_table(tmp_path / "zeros.csv", rows), eval=write_table(tmp_path / "d.csv", rows))
    assert "zeros.csv: '01' and '1' are taken for different labels." in capsys.readouterr().err
    numbers = write_table(tmp_path / "n.csv", [{"text": "a", "score": 1}, {"text": "b", "score": 2}])
    same = write_table(tmp_path / "m.csv", [{"text": "c", "score": 2}, {"text": "d", "score": 2}])
    read("regression", train=numbers, eval=same)
    assert "all rows of dev have the score 2: no correlation is defined" in capsys.readouterr().err


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_said(tmp_path: Path, case: str) -> None:
    name, text, said = BAD[case]
    path = tmp_path / name
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(PotstillError) as error:
        read("classification", train=path, eval=None if name == "ids.csv" else path)
    assert said in str(error.value)
    assert str(error.value).count("\n") == 0


def test_labels_that_only_the_rows_to_score_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = write_table(tmp_path / "train.csv", good())
    dev = write_table(tmp_path / "dev.csv", [*good(), {"text": "b", "label": "z"}, {"text": "c", "label": "z"}])
    with pytest.raises(
        PotstillError, match=r"dev.csv has 2 rows with the label 'z', which .*train.csv does not have \(th"
    ):
        read("classification", train=train, eval=dev)
    found = read("classification", "skip", train=train, eval=dev)
    assert found.bad_rows == {"train": 0, "dev": 2}
    assert len(found.splits["dev"]) == 4
    assert "2 bad rows are left out" in capsys.readouterr().err


def test_a_label_with_one_example_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_table(tmp_path / "it.csv", [*good(), {"text": "b", "label": "z"}])
    read("classification", train=path, eval=path)
    assert "1 label has one example to learn from: 'z'" in capsys.readouterr().err


def test_a_file_with_a_header_needs_no_names(tmp_path: Path) -> None:
    path = write_table(tmp_path / "it.csv", good())
    with pytest.raises(PotstillError, match="names its columns in its first line"):
        read("classification", train=path, columns=("text", "label"))
    with pytest.raises(PotstillError, match="names its columns in its first line"):
        read("classification", train=path, columns=("Text", "Label "))
    lines = tmp_path / "it.jsonl"
    lines.write_text('{"text": "a", "label": "x"}')
    with pytest.raises(PotstillError, match=r"--columns is for .csv and .tsv files"):
        read("classification", train=lines, columns=("text", "label"))


def test_one_file_is_split_by_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": f"text {n}", "label": f"label {n % 20}"} for n in range(200)] + [{"text": "lone", "label": "rare"}]
    path = write_table(tmp_path / "it.csv", rows)
    found = read("classification", train=path, dev_share=0.3)
    counts = Counter(found.splits["dev"]["label"][:])
    assert {counts[number] for number in range(20)} == {3}
    assert counts[found.labels.index("rare")] == 0
    texts = [*found.splits["train"]["text"], *found.splits["dev"]["text"]]
    assert sorted(texts) == sorted(row["text"] for row in rows)
    assert found.splits["dev"]["text"][:] == read("classification", train=path, dev_share=0.3).splits["dev"]["text"][:]
    assert "60 of 201 rows are held out and scored (the same share of each label" in capsys.readouterr().err


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 0.9])
def test_a_share_of_every_stratum(share: float) -> None:
    rng = random.Random(0)
    strata = [rng.choice("abcdefgh") for _ in range(300)] + ["i"]
    chosen = stratified(strata, share)
    assert abs(len(chosen) - 300 * share) < 9  # each stratum keeps a row
    for name, count in Counter(strata).items():
        assert abs(sum(strata[place] == name for place in chosen) - count * share) < 2
    assert chosen == sorted({*chosen})
    small = [str(number // 3) for number in range(300)]
    assert abs(len(stratified(small, share)) - min(300 * share, 200)) <= 1
