"""Data of the sentence tasks in every form it comes in, and what is wrong with it told in one sentence."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from potstill.errors import PotstillError
from potstill.tasks import load
from potstill.tasks.glue import GLUE
from potstill.tasks.imdb import IMDB
from potstill.tasks.load import TaskDataAbsentError, load_split
from potstill.tasks.sentence import SentenceTask

# Two rows of each task as the official download writes them, and what they say.
OFFICIAL = {
    "cola": (
        'gj04\t1\t\tThe book was read.\nr-67\t0\t*\tHim likes "it\n',
        [("The book was read.", 1), ('Him likes "it', 0)],
    ),
    "sst2": ("sentence\tlabel\na fine film \t1\nno \t0\n", [("a fine film ", 1), ("no ", 0)]),
    "mrpc": (
        '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tHe said " no .\tNo , he said .\n'
        "0\t9\t6\tA .\tB .\n",
        [('He said " no .', "No , he said .", 1), ("A .", "B .", 0)],
    ),
    "stsb": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
        "0\tg\tf\t2012\t1\tn\tn\tA plane.\tA kite.\t2.500\n1\tg\tf\t2012\t2\tn\tn\tOne.\tOne.\t5.000\n",
        [("A plane.", "A kite.", 2.5), ("One.", "One.", 5.0)],
    ),
    "qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\tWhy?\tHow?\t0\n2\t4\t5\tWho?\tWho is?\t1\n",
        [("Why?", "How?", 0), ("Who?", "Who is?", 1)],
    ),
    "mnli": (
        "index\tpairID\tsentence1_parse\tsentence1\tsentence2\tlabel1\tgold_label\n"
        "0\tp\tx\tIt rains.\tIt is wet.\tneutral\tentailment\n1\tq\tx\tA.\tB.\tneutral\tcontradiction\n",
        [("It rains.", "It is wet.", 0), ("A.", "B.", 2)],
    ),
    "qnli": (
        "index\tquestion\tsentence\tlabel\n0\tWho?\tShe did.\tentailment\n1\tWhen?\tIt rains.\tnot_entailment\n",
        [("Who?", "She did.", 0), ("When?", "It rains.", 1)],
    ),
    "rte": (
        "index\tsentence1\tsentence2\tlabel\n0\tA is B.\tB is A.\tnot_entailment\n1\tA and B.\tA.\tentailment\n",
        [("A is B.", "B is A.", 1), ("A and B.", "A.", 0)],
    ),
    "wnli": (
        "index\tsentence1\tsentence2\tlabel\n0\tIt fell.\tThe cup fell.\t1\n1\tIt fell.\tThe table fell.\t0\n",
        [("It fell.", "The cup fell.", 1), ("It fell.", "The table fell.", 0)],
    ),
}
WriteSplit = Callable[..., Path]


@pytest.fixture
def write_split(tmp_path: Path) -> WriteSplit:
    """Write a file of a task, as TITLE/train.tsv unless told otherwise, and return the folder of all tasks."""

    def write(task: SentenceTask, text: str, name: str = "train.tsv", folder: str | None = None) -> Path:
        path = tmp_path / (task.title if folder is None else folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
        return tmp_path

    return write


def rows_of(dataset: datasets.Dataset) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in dataset]


def test_all_nine_tasks_are_there() -> None:
    assert set(OFFICIAL) == set(GLUE)


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_official_download(name: str, write_split: WriteSplit) -> None:
    task, (text, expected) = GLUE[name], OFFICIAL[name]
    dataset = load_split(task, "train", str(write_split(task, text)))
    assert rows_of(dataset) == expected
    if task.is_regression:
        assert dataset.features["label"] == datasets.Value("float32")
    else:
        assert dataset.features["label"].names == list(task.labels)
    for split in task.dev:
        assert rows_of(load_split(task, split, str(write_split(task, text, f"{split}.tsv")))) == expected


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_hub_s_columns_in_jsonl_and_parquet(name: str, write_split: WriteSplit, tmp_path: Path) -> None:
    task, expected = GLUE[name], OFFICIAL[name][1]
    columns = [column for column in (task.hub.text, task.hub.pair, task.hub.label) if column is not None]
    rows = [dict(zip(columns, row, strict=True)) | {"idx": 3} for row in expected]
    text = "\n".join(map(json.dumps, rows))
    assert rows_of(load_split(task, "train", str(write_split(task, text, "train.jsonl", task.name)))) == expected
    packed = tmp_path / "packed" / f"{task.dev[0]}.jsonl.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(text.encode()))
    assert rows_of(load_split(task, task.dev[0], str(packed.parent))) == expected  # a folder of this task alone
    table = tmp_path / "table"
    table.mkdir()
    hub_split = (task.hub_splits or {})[task.dev[0]]
    pq.write_table(pa.Table.from_pylist(rows), table / f"{hub_split}.parquet")
    assert rows_of(load_split(task, task.dev[0], str(table))) == expected


@pytest.mark.usefixtures("network")
@pytest.mark.parametrize("name", OFFICIAL)
def test_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task, expected = GLUE[name], OFFICIAL[name][1]
    columns = [column for column in (task.hub.text, task.hub.pair, task.hub.label) if column is not None]
    asked = []

    def load_dataset(*where: str | None, split: str) -> datasets.Dataset:
        asked.append((*where, split))
        return datasets.Dataset.from_list([dict(zip(columns, row, strict=True)) for row in expected])

    monkeypatch.setattr(load.datasets, "load_dataset", load_dataset)
    assert rows_of(load_split(task, "train")) == expected
    load_split(task, task.dev[-1])
    assert asked[0] == ("nyu-mll/glue", name, "train")
    assert asked[1][2] == ("validation_mismatched" if name == "mnli" else "validation")


@pytest.mark.usefixtures("network")
def test_an_unreachable_hub_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*where: object, **options: object) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(load.datasets, "load_dataset", load_dataset)
    with pytest.raises(PotstillError, match=r"nyu-mll/glue \(rte\) cannot be opened .*no route.*--task_data"):
        load_split(GLUE["rte"], "train")


def test_imdb(write_split: WriteSplit) -> None:
    text = '{"text": "Great.", "label": 1}\n{"text": "Awful.", "label": "neg"}\n'
    folder = write_split(IMDB, text, "test.jsonl")
    assert rows_of(load_split(IMDB, "test", str(folder))) == [("Great.", 1), ("Awful.", 0)]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("sst2", "sentence\tlabel\nfine\t1\nlabel forgotten\n", r"train.tsv, line 3, has 1 column but needs 2"),
        ("cola", "gj04\t1\t\tFine.\ngj04\t1\t\n", r"line 2, has 3 columns but needs 4"),
        ("sst2", "sentence\tlabel\nfine\t2\n", r"row 2: the label is '2', but SST-2 has 0, 1"),
        ("rte", "index\tsentence1\tsentence2\tlabel\n0\tA\tB\tmaybe\n", r"'maybe', but RTE has entailment"),
        (
            "stsb",
            "sentence1\tsentence2\tscore\nA\tB\tfive\n",
            r"row 2: the score of STS-B is 'five', not a finite number",
        ),
        ("mrpc", "sentence\tlabel\nfine\t1\n", r"has no column '#1 String', only 'sentence', 'label'"),
        ("sst2", "sentence\tlabel\n\udcff\t1\n", r"train.tsv, line 2, is not UTF-8"),
    ],
    ids=["few columns", "few without header", "label", "word", "score", "another task", "encoding"],
)
def test_bad_tables(name: str, text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / GLUE[name].title / "train.tsv"
    path.parent.mkdir()
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(PotstillError, match=said):
        load_split(GLUE[name], "train", str(tmp_path))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", r"line 1, is not JSON"),
        ("[1]", r"line 1, is not a JSON object"),
        ('{"sentence": "A"}', r"row 1, has no 'label', only 'sentence'"),
        ('{"sentence": 3, "label": 1}', r"row 1: a sentence was expected, not 3"),
        ('{"sentence": "A", "label": -1}', r"row 1: the label is '-1', but SST-2 has 0, 1, negative, positive"),
    ],
)
def test_bad_json(line: str, said: str, write_split: WriteSplit) -> None:
    with pytest.raises(PotstillError, match=said):
        load_split(GLUE["sst2"], "train", str(write_split(GLUE["sst2"], line, "train.jsonl")))


def test_a_damaged_parquet_file(write_split: WriteSplit) -> None:
    with pytest.raises(PotstillError, match="truncated or damaged"):
        load_split(GLUE["sst2"], "train", str(write_split(GLUE["sst2"], "not parquet", "train.parquet")))


def test_absent_data_can_be_told_from_bad_data(tmp_path: Path) -> None:
    with pytest.raises(TaskDataAbsentError, match=r"no data of RTE: put RTE/train\.tsv"):
        load_split(GLUE["rte"], "train", str(tmp_path))
    with pytest.raises(PotstillError, match="is not a folder") as caught:
        load_split(GLUE["rte"], "train", str(tmp_path / "nowhere"))
    assert not isinstance(caught.value, TaskDataAbsentError)


@pytest.mark.skipif("POTSTILL_TEST_DATA" not in os.environ, reason="POTSTILL_TEST_DATA names no folder of real data")
def test_real_splits_have_their_official_sizes() -> None:
    folder = Path(os.environ["POTSTILL_TEST_DATA"])
    sizes = {"cola": (8551, 1043), "sst2": (67349, 872), "stsb": (5749, 1500), "rte": (2490, 277)}
    sizes["wnli"] = (635, 71)
    for name, expected in sizes.items():
        found = tuple(len(load_split(GLUE[name], split, str(folder / "glue"))) for split in ("train", "dev"))
        assert found == expected, name
    assert sum(load_split(IMDB, "test", str(folder / "imdb"))["label"]) == 12_500
