import copy
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from potstill.errors import PotstillError
from potstill.tasks.rows import BadRows
from potstill.tasks.squad import read_squad, split_by_title

STILL = "The pot still is made of copper. It holds 5,000 litres; in the U.S., column stills are common."
CASK = "A cask of oak (new or used) keeps the spirit for 12 years. Das Faß heißt „Hogshead“ — 酒桶也叫桶。"
YEAST = "Yeast turns sugar into alcohol."


def question(id_: str, text: str, context: str, *answers: str) -> dict[str, Any]:
    """A question as SQuAD writes it, its answers being where they first occur; without one it is impossible."""
    gold = [{"text": answer, "answer_start": context.index(answer)} for answer in answers]
    return {"id": id_, "question": text, "answers": gold} | ({} if answers else {"is_impossible": True})


ARTICLES = [
    {
        "title": "Still",
        "paragraphs": [
            {
                "context": STILL,
                "qas": [
                    question("s1", "What is the still made of?", STILL, "copper"),
                    question("s2", "How much does it hold?", STILL, "5,000 litres", "5,000"),
                    question("s3", "Where are column stills common?", STILL, "the U.S."),
                ],
            },
            {"context": YEAST, "qas": [question("s4", "What does yeast make?", YEAST, "alcohol", "into alcohol.")]},
        ],
    },
    {
        "title": "Cask",
        "paragraphs": [
            {
                "context": CASK,
                "qas": [
                    question("c1", "What is the cask of?", CASK, "oak (new or used)", "oak"),
                    question("c2", "Wie heißt das Faß?", CASK, "„Hogshead“"),
                    question("c3", "还叫什么?", CASK, "桶。"),
                    question("c4", "Who made the cask?", CASK),
                ],
            }
        ],
    },
]


def write(path: Path, articles: Any = ARTICLES) -> Path:
    path.write_text(json.dumps({"version": "it", "data": articles}), encoding="utf-8")
    return path


@pytest.fixture
def articles() -> list[Any]:
    return copy.deepcopy(ARTICLES)


def test_a_row_is_a_question_with_its_context(tmp_path: Path) -> None:
    squad = read_squad(write(tmp_path / "it.json"))
    assert squad.dataset["id"][:] == ["s1", "s2", "s3", "s4", "c1", "c2", "c3", "c4"]
    assert squad.dataset["title"][:] == ["Still"] * 4 + ["Cask"] * 4
    assert squad.dataset[1] == {
        "id": "s2",
        "title": "Still",
        "context": STILL,
        "question": "How much does it hold?",
        "answers": {"text": ["5,000 litres", "5,000"], "answer_start": [42, 42]},
        "is_impossible": False,
    }
    assert squad.dataset[7]["answers"] == {"text": [], "answer_start": []}
    assert squad.dataset["is_impossible"][:] == [False] * 7 + [True]
    assert squad.has_impossible
    assert (squad.bad_answers, squad.dropped_questions) == (0, 0)
    assert not read_squad(write(tmp_path / "still.json", ARTICLES[:1])).has_impossible


def test_a_folder_is_that_of_the_official_download(tmp_path: Path) -> None:
    write(tmp_path / "train-v1.1.json", ARTICLES[:1])
    (tmp_path / "dev-v2.0.json.gz").write_bytes(gzip.compress(write(tmp_path / "x", ARTICLES[1:]).read_bytes()))
    assert len(read_squad(tmp_path).dataset) == 4
    assert read_squad(tmp_path, "dev").dataset["id"][0] == "c1"
    assert read_squad(tmp_path, "dev").path.name == "dev-v2.0.json.gz"
    write(tmp_path / "train-v2.0.json")
    with pytest.raises(PotstillError, match=r"both train-v1\.1\.json and train-v2\.0\.json"):
        read_squad(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(PotstillError, match=r"has no dev-v1\.1\.json or dev-v2\.0\.json, no dev\.jsonl"):
        read_squad(tmp_path / "empty", "dev")
    with pytest.raises(PotstillError, match="no file or folder"):
        read_squad(tmp_path / "missing")


def test_a_byte_order_mark_and_a_file_of_many_lines_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"data": ARTICLES}, indent=2).encode())
    assert len(read_squad(tmp_path / "a.json").dataset) == 8


def test_bad_answers_are_an_error_or_left_out_and_counted(tmp_path: Path, articles: list[Any]) -> None:
    first, second, *_ = articles[0]["paragraphs"][0]["qas"]
    first["answers"][0]["answer_start"] += 1
    second["answers"][0]["answer_start"] -= len(STILL)  # where slicing would find it
    second["answers"].append({"text": "", "answer_start": 3})
    path = write(tmp_path / "it.json", articles)
    with pytest.raises(PotstillError, match=r"3 answers are not in their context .* question 's1'.*skip"):
        read_squad(path)
    squad = read_squad(path, on_bad_answer="skip")
    assert (squad.bad_answers, squad.dropped_questions) == (3, 1)
    assert squad.dataset["id"][:2] == ["s2", "s3"]
    assert squad.dataset[0]["answers"] == {"text": ["5,000"], "answer_start": [42]}


def test_a_file_without_a_good_answer_is_an_error(tmp_path: Path, articles: list[Any]) -> None:
    del articles[0]["paragraphs"][0], articles[1]
    articles[0]["paragraphs"][0]["context"] = "Something else."
    with pytest.raises(PotstillError, match="no question with a good answer"):
        read_squad(write(tmp_path / "it.json", articles), on_bad_answer="skip")


def change(path: str, value: Any) -> Callable[[Any], None]:
    """Put a value where a path leads, or delete what is there if there is none."""

    def apply(record: Any) -> None:
        *places, last = [int(key) if key.isdigit() else key for key in path.split()]
        for place in places:
            record = record[place]
        if value is None:
            del record[last]
        else:
            record[last] = value

    return apply


QA = "0 paragraphs 0 qas 1"
WHERE = r"article 1 \(Still\), paragraph 1, question 2"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (change("1 title", None), r"article 2 has no 'title', only 'paragraphs'"),
        (change("1 paragraphs", {}), r"article 2 \(Cask\): 'paragraphs' must be a list, not dict"),
        (change("0 paragraphs 1 context", None), r"article 1 \(Still\), paragraph 2 has no 'context'"),
        (change("0 paragraphs 1", "x"), r"paragraph 2: a JSON object .* was expected, not str"),
        (change(f"{QA} id", 7), f"{WHERE}: 'id' must be text, not int"),
        (change(f"{QA} id", "s1"), f"{WHERE}: the id 's1' occurs a second time"),
        (change(f"{QA} question", None), f"{WHERE} has no 'question'"),
        (change(f"{QA} question", "\ud800"), f"{WHERE}: 'question' holds half a surrogate pair"),
        (change(f"{QA} answers", None), f"{WHERE} has no 'answers'"),
        (change(f"{QA} answers", []), f"{WHERE}, has no answer and no is_impossible mark"),
        (change(f"{QA} is_impossible", True), f"{WHERE}, has answers but is marked is_impossible"),
        (change(f"{QA} answers 1 answer_start", "42"), f"{WHERE}: 'answer_start' must be a whole number, not str"),
        (change(f"{QA} answers 1 answer_start", True), f"{WHERE}: 'answer_start' must be a whole number, not bool"),
        (change(f"{QA} answers 1 text", None), f"{WHERE} has no 'text', only 'answer_start'"),
    ],
)
def test_what_is_not_in_the_format_is_named_with_its_place(
    tmp_path: Path, articles: list[Any], changed: Callable[[Any], None], message: str
) -> None:
    changed(articles)
    path = write(tmp_path / "it.json", articles)
    with pytest.raises(PotstillError, match=message) as raised:
        read_squad(path)
    assert str(raised.value).startswith(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b'{"data": [', r"is not valid JSON \(Expecting value at line 1, column 11\)"),
        (b"[" * 200_000, "is not valid JSON"),
        (b'{"data":\n["\xff"]}', "line 2, is not UTF-8"),
        (b"[]", "a JSON object with the key 'data' was expected, not list"),
        (b'{"rows": []}', "has no 'data', only 'rows'"),
        (b"{}", "has no 'data', only nothing at all"),
        (b'{"data": []}', "holds no question: check that it is the right file"),
        (b'{"data": [{"title": "x", "paragraphs": []}]}', "holds no question: check that it is the right file"),
    ],
)
def test_other_files_are_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "it.json"
    path.write_bytes(content)
    with pytest.raises(PotstillError, match=message) as raised:
        read_squad(path)
    assert str(raised.value).startswith(str(path))


def rows(articles: int, each: int = 3) -> datasets.Dataset:
    return datasets.Dataset.from_list(
        [{"id": f"{a}-{q}", "title": f"article {a:02}"} for a in range(articles) for q in range(each)]
    )


@pytest.mark.parametrize(("share", "held_out"), [(0.2, 4), (0.001, 1), (0.999, 19), (0.5, 10)])
def test_no_article_is_in_both_parts(share: float, held_out: int) -> None:
    dataset = rows(20)
    rest, part = split_by_title(dataset, share, seed=1)
    assert not set(rest["title"]) & set(part["title"])
    assert len(set(part["title"])) == held_out
    assert sorted([*rest["id"], *part["id"]]) == sorted(dataset["id"])
    order = dataset["id"][:]
    assert part["id"][:] == sorted(part["id"], key=order.index)


def test_the_split_depends_on_titles_and_seed_alone() -> None:
    held_out = [set(split_by_title(rows(20, each), 0.3, seed=4)[1]["title"]) for each in (1, 5)]
    held_out.append(set(split_by_title(rows(20).shuffle(seed=0), 0.3, seed=4)[1]["title"]))
    assert held_out[0] == held_out[1] == held_out[2]
    assert held_out[0] != set(split_by_title(rows(20), 0.3, seed=5)[1]["title"])


@pytest.mark.parametrize("share", [0.0, 1.0, -1, float("nan")])
def test_a_split_that_cannot_be_is_an_error(share: float) -> None:
    with pytest.raises(PotstillError, match="above 0 and below 1"):
        split_by_title(rows(3), share)
    with pytest.raises(PotstillError, match="have 1 article"):
        split_by_title(rows(1), 0.5)


def flat(some: list[Any]) -> list[dict[str, Any]]:
    """The questions of articles as the hub's table has them."""
    return [
        {
            "id": qa["id"],
            "title": article["title"],
            "context": paragraph["context"],
            "question": qa["question"],
            "answers": {name: [answer[name] for answer in qa["answers"]] for name in ("text", "answer_start")},
        }
        for article in some
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]


def write_flat(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["it.jsonl", "it.jsonl.gz", "it.parquet", "it.v2.jsonl"])
def test_the_hub_s_columns_say_the_same_as_the_official_file(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    official = read_squad(write(tmp_path / "it.json")).dataset
    assert read_squad(write_flat(tmp_path / name, flat(ARTICLES))).dataset[:] == official[:]
    assert capsys.readouterr().err == ""


def test_the_hub_s_files_are_found_in_a_folder(tmp_path: Path) -> None:
    write_flat(tmp_path / "train-00000-of-00001.parquet", flat(ARTICLES[:1]))
    write_flat(tmp_path / "validation.jsonl", flat(ARTICLES[1:]))
    assert read_squad(tmp_path).dataset["id"][:] == ["s1", "s2", "s3", "s4"]
    assert read_squad(tmp_path, "dev").dataset["id"][0] == "c1"
    write(tmp_path / "dev-v1.1.json", ARTICLES[:1])  # the official name comes first
    assert read_squad(tmp_path, "dev").dataset["id"][0] == "s1"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"question": None}, "row 2: 'question' must be text, not NoneType"),
        ({"context": "\ud800"}, "row 2: 'context' holds half a surrogate pair"),
        ({"answers": None}, "row 2: 'answers' must be a pair of lists, not NoneType"),
        ({"answers": {"text": ["x"]}}, "row 2 has no 'answer_start', only 'text'"),
        ({"answers": {"text": ["x"], "answer_start": []}}, "row 2 has 1 text and 0 places of answers"),
        ({"answers": {"text": ["x"], "answer_start": [1.5]}}, "row 2: 'answer_start' must be a whole number"),
        ({"is_impossible": True}, "row 2, has answers but is marked is_impossible"),
        ({"id": "s1"}, "row 2: the id 's1' occurs a second time"),
    ],
)
def test_a_bad_row_is_named_or_left_out(
    tmp_path: Path, changed: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = flat(ARTICLES)
    rows[1] |= changed
    path = write_flat(tmp_path / "it.jsonl", rows)
    with pytest.raises(PotstillError, match=f"{message}.*--on_bad_rows skip"):
        read_squad(path)
    squad = read_squad(path, bad=BadRows("skip"))
    assert squad.bad_rows == 1
    assert squad.dataset["id"][:3] == ["s1", "s3", "s4"]
    assert message in capsys.readouterr().err


def test_a_bad_question_of_the_official_file_can_be_left_out(tmp_path: Path, articles: list[Any]) -> None:
    del articles[0]["paragraphs"][0]["qas"][1]["question"]
    squad = read_squad(write(tmp_path / "it.json", articles), bad=BadRows("skip"))
    assert (squad.bad_rows, len(squad.dataset)) == (1, 7)


def test_titles_and_answers_as_a_list_of_pairs_are_optional(tmp_path: Path) -> None:
    rows = flat(ARTICLES)[:1]
    del rows[0]["title"]
    rows[0]["answers"] = [{"text": "copper", "answer_start": STILL.index("copper")}]
    dataset = read_squad(write_flat(tmp_path / "it.jsonl", rows)).dataset
    assert dataset[0]["answers"] == {"text": ["copper"], "answer_start": [STILL.index("copper")]}
    with pytest.raises(PotstillError, match="have 1 article"):
        split_by_title(dataset, 0.5)
