"""Read files of questions, check each answer against its context, and split questions by article."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets

from potstill.corpus.lines import decoded_lines, open_hashed
from potstill.errors import PotstillError
from potstill.json_files import loads
from potstill.tasks.in_memory import dataset_of
from potstill.tasks.load import TaskDataAbsentError
from potstill.tasks.rows import PACKED, BadRows, columns_of, report_unread, rows_of, text_fault
from potstill.wording import agreeing, counted

OnBadAnswer = Literal["error", "skip"]

VERSIONS = ("1.1", "2.0")
HUB_SPLITS = {"train": ("train",), "dev": ("dev", "validation")}

FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "title": datasets.Value("string"),
        "context": datasets.Value("string"),
        "question": datasets.Value("string"),
        "answers": {
            "text": datasets.List(datasets.Value("string")),
            "answer_start": datasets.List(datasets.Value("int32")),
        },
        "is_impossible": datasets.Value("bool"),
    }
)
"""The columns of the hub's `squad` and `squad_v2`, and `is_impossible`."""


@dataclass(frozen=True)
class Squad:
    """A file of questions.

    Attributes:
        path: path of the file.
        dataset: one row per question, in the order of the file; columns as in `FEATURES`. `answer_start` counts
            characters (code points) from 0.
        bad_answers: number of answers left out because they are not in their context at `answer_start`.
        dropped_questions: number of questions left out because no answer remained.
        bad_rows: number of questions left out because they do not follow the format.
    """

    path: Path
    dataset: datasets.Dataset
    bad_answers: int
    dropped_questions: int
    bad_rows: int = 0

    @property
    def has_impossible(self) -> bool:
        """Whether some questions have no answer, as in SQuAD 2.0."""
        return any(self.dataset["is_impossible"][:])


def read_squad(
    path: str | Path, split: str = "train", on_bad_answer: OnBadAnswer = "error", bad: BadRows | None = None
) -> Squad:
    """Read questions in the format of SQuAD 1.1 (arXiv 1606.05250) or 2.0 (arXiv 1806.03822), or in the hub's format.

    Args:
        path: a `.json` file in SQuAD's format, which XQuAD shares; a `.jsonl` or `.parquet` file with the columns of
            the hub's `squad` (`id`, `title`, `context`, `question`, `answers` of `text` and `answer_start`); or a
            folder of such files: see `find_squad`. All but parquet may be compressed (`.gz`, `.xz`, `.zst`).
        split: `train` or `dev`, for a folder.
        on_bad_answer: treatment of an answer that is blank or not in its context at `answer_start`. With `skip` it is
            left out. A question without another answer is left out too, in training and development sets alike,
            because it can be neither learnt nor scored. Both are counted.
        bad: takes questions that do not follow the format, or whose `id` occurs a second time; if None, the first one
            is an error.

    Raises:
        PotstillError: there is no such file, it does not follow the format (the message names file and place), an `id`
            occurs twice, or an answer is not in its context.
    """
    path = find_squad(Path(path).expanduser(), split)
    columns: dict[str, list[Any]] = {name: [] for name in FEATURES}
    bad = bad or BadRows()
    seen: set[str] = set()
    wrong, dropped, first_wrong = 0, 0, ""
    flat = {".jsonl", ".parquet"} & {*path.suffixes[-2:]}  # .zst may follow
    for place, row in _flat_questions(path, bad) if flat else _nested_questions(path, bad):
        if row["id"] in seen:
            bad.add(f"{place}: the id {row['id']!r} occurs a second time")
            continue
        seen.add(row["id"])
        good = [
            (text, start)
            for text, start in row["answers"]
            if start >= 0 and text.strip() and row["context"].startswith(text, start)
        ]
        if len(good) < len(row["answers"]):
            first_wrong = first_wrong or row["id"]
            wrong += len(row["answers"]) - len(good)
            if not good:
                dropped += 1
                continue
        row["answers"] = {"text": [text for text, _ in good], "answer_start": [start for _, start in good]}
        for name, values in columns.items():
            values.append(row[name])
    if wrong and on_bad_answer == "error":
        raise PotstillError(
            f"{path}: {counted(wrong, 'answer')} {agreeing(wrong, 'is', 'are')} not in "
            f"{agreeing(wrong, 'its', 'their')} context at answer_start, the first one at question "
            f"{first_wrong!r}: correct the file, or leave such answers out with --on_bad_answer skip."
        )
    bad.report(str(path), len(columns["id"]) + dropped)
    if not columns["id"]:
        raise PotstillError(
            f"{path} holds no question{' with a good answer' * bool(wrong)}: check that it is the right file."
        )
    return Squad(path, dataset_of(columns, features=FEATURES), wrong, dropped, bad.count)


def find_squad(path: Path, split: str, versions: Sequence[str] = VERSIONS) -> Path:
    """Return the file to read: the path itself, or the file of a split in a folder.

    In a folder this is the official `SPLIT-v1.1.json` or `SPLIT-v2.0.json`. If there is none, it is `SPLIT.jsonl` or
    `SPLIT.parquet`, or a parquet file with its name on the hub, `SPLIT-00000-of-00001.parquet`. There the split `dev`
    may also be called `validation`.

    Args:
        path: a file or a folder.
        split: `train` or `dev`.
        versions: versions of the official files to look for.

    Raises:
        TaskDataAbsentError: the folder holds no such file.
        PotstillError: there is no such path, or the folder holds the split in several versions.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise PotstillError(f"There is no file or folder {path}: name a file in SQuAD's format or a folder of them.")
    official = [[f"{split}-v{version}.json{packed}" for packed in PACKED] for version in versions]
    found = [file for names in official if (file := _first(path, names)) is not None]
    if len(found) > 1:
        raise PotstillError(f"{path} holds both {found[0].name} and {found[1].name}: name the file to read.")
    endings = (*(f".jsonl{packed}" for packed in PACKED), ".parquet", "-00000-of-00001.parquet")
    file = found[0] if found else _first(path, [name + ending for name in HUB_SPLITS[split] for ending in endings])
    if file is None:
        names = " or ".join(f"{split}-v{version}.json" for version in versions)
        raise TaskDataAbsentError(
            f"{path} has no {names}, no {split}.jsonl and no {split}.parquet: name the file itself."
        )
    return file


def _first(folder: Path, names: list[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def split_by_title(dataset: datasets.Dataset, share: float, seed: int = 0) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Split questions in two by article, so that no article is in both parts.

    The split depends only on the titles and the seed, not on the order or number of the questions. So translations of
    a file that keep its titles (as XQuAD's do) are split in the same way.

    Args:
        dataset: rows with a `title`.
        share: share of the articles in the second part, above 0 and below 1. It has at least one article, but not all.
        seed: seed of the random choice of articles.

    Returns:
        The rest and the held-out part, with the rows in their order.

    Raises:
        PotstillError: there are fewer than two articles, or the share is out of range.
    """
    if not 0 < share < 1:
        raise PotstillError(f"The share of articles to hold out is {share}: give one above 0 and below 1.")
    of_row = dataset["title"][:]
    titles = sorted(set(of_row))
    if len(titles) < 2:
        raise PotstillError(f"The questions have {len(titles)} article: two or more are needed to split by article.")
    count = min(max(round(share * len(titles)), 1), len(titles) - 1)
    held_out = set(random.Random(seed).sample(titles, count))
    rows: tuple[list[int], list[int]] = [], []
    for number, title in enumerate(of_row):
        rows[title in held_out].append(number)
    return dataset.select(rows[0]), dataset.select(rows[1])


Question = tuple[str, dict[str, Any]]
"""Where it stands, and its row, with the answers as pairs of text and start."""


def _nested_questions(path: Path, bad: BadRows) -> Iterator[Question]:
    """Yield the questions of a file in SQuAD's own format."""
    try:
        for a, article in enumerate(_list(_json(path), "data", f"{path}"), 1):
            title = _text(article, "title", f"{path}, article {a}")
            for p, paragraph in enumerate(_list(article, "paragraphs", f"{path}, article {a} ({title})"), 1):
                place = f"{path}, article {a} ({title}), paragraph {p}"
                context = _text(paragraph, "context", place)
                for q, qa in enumerate(_list(paragraph, "qas", place), 1):
                    where = f"{place}, question {q}"
                    try:
                        row = {"id": _text(qa, "id", where), "title": title, "context": context}
                        row["question"] = _text(qa, "question", where)
                        found = row | _answers(qa, where)
                    except _BadValueError as error:
                        bad.add(str(error))
                        continue
                    yield where, found
    except _BadValueError as error:
        raise PotstillError(f"{error}: give a file in SQuAD's format.") from error


def _flat_questions(path: Path, bad: BadRows) -> Iterator[Question]:
    """Yield the questions of a table with the columns of the hub's dataset."""
    rows = list(rows_of(str(path), bad))
    report_unread(str(path), columns_of(rows), FEATURES)
    for number, record in rows:
        where = f"{path}, row {number}"
        try:
            row = {name: _text(record, name, where) for name in ("id", "context", "question")}
            # Only a split by article needs titles.
            row["title"] = "" if record.get("title") is None else _text(record, "title", where)
            answers = _value(record, "answers", dict | list, where)
            if isinstance(answers, dict):  # the hub's table has two lists, SQuAD's file has one list of pairs
                texts, starts = (_list(answers, name, where) for name in ("text", "answer_start"))
                if len(texts) != len(starts):
                    raise _BadValueError(
                        f"{where} has {counted(len(texts), 'text')} and {counted(len(starts), 'place')} of answers"
                    )
                answers = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
            mark = {"is_impossible": not answers} if record.get("is_impossible") is None else record
            found = row | _answers({"answers": answers, "is_impossible": mark["is_impossible"]}, where)
        except _BadValueError as error:
            bad.add(str(error))
            continue
        yield where, found


class _BadValueError(Exception):
    """A value does not follow the format. The message says where the value is and what is wrong with it."""


def _answers(qa: dict[str, Any], where: str) -> dict[str, Any]:
    impossible = bool(qa.get("is_impossible", False))
    # For a question without an answer SQuAD 2.0 has an empty list; other writers leave the key out.
    answers = [] if impossible and "answers" not in qa else _list(qa, "answers", where)
    if bool(answers) == impossible:
        what = "has answers but is marked is_impossible" if impossible else "has no answer and no is_impossible mark"
        raise _BadValueError(f"{where}, {what}")
    pairs = [(_text(answer, "text", where), _value(answer, "answer_start", int, where)) for answer in answers]
    return {"answers": pairs, "is_impossible": impossible}


def _json(path: Path) -> Any:
    lines = []
    with open_hashed(str(path)) as file:
        for number, line in decoded_lines(str(path), file):
            if isinstance(line, UnicodeDecodeError):
                raise PotstillError(f"{path}, line {number}, is not UTF-8 text: convert the file.") from line
            lines.append(line)
    text = "\n".join(lines)
    if not text.strip():
        raise PotstillError(f"{path} is empty: fetch or write it again.")
    try:
        return loads(text)
    except (ValueError, RecursionError) as error:
        reason = (
            f"{error.msg} at line {error.lineno}, column {error.colno}"
            if isinstance(error, json.JSONDecodeError)
            else error
        )
        raise PotstillError(
            f"{path} is not valid JSON ({reason}): give a file in SQuAD's format; a file with one question per line "
            "needs the ending .jsonl."
        ) from error


_NAMES = {str: "text", int: "a whole number", list: "a list", dict | list: "a pair of lists"}


def _value(record: Any, key: str, kind: Any, where: str) -> Any:
    if not isinstance(record, dict):
        raise _BadValueError(f"{where}: a JSON object with the key {key!r} was expected, not {type(record).__name__}")
    if key not in record:
        raise _BadValueError(f"{where} has no {key!r}, only {', '.join(map(repr, record)) or 'nothing at all'}")
    value = record[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _BadValueError(f"{where}: {key!r} must be {_NAMES[kind]}, not {type(value).__name__}")
    return value


def _list(record: Any, key: str, where: str) -> list[Any]:
    value: list[Any] = _value(record, key, list, where)
    return value


def _text(record: Any, key: str, where: str) -> str:
    value: str = _value(record, key, str, where)
    fault = text_fault(value, repr(key))
    if fault is not None:
        raise _BadValueError(f"{where}: {fault}")
    return value
