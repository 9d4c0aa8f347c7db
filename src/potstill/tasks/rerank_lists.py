"""Read queries with their passages: rows of query, passage and label; lists of passages; or triples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.errors import PotstillError
from potstill.tasks.labels import score_of
from potstill.tasks.load import TaskDataAbsentError
from potstill.tasks.pairs import ENDINGS, scored_pairs, stem, table_rows
from potstill.tasks.rows import BadRows, NumberedRow, print_message, text_fault
from potstill.tasks.sentence import SentenceTask, Table
from potstill.wording import agreeing, counted

NAMES = (("query", "passage"), ("qtext", "atext"), ("question", "answer"), ("query", "text"))
COLUMNS = tuple(Table(query, passage, "label", None) for query, passage in NAMES)
LISTS = Table("query", "passages", "passages", None)
TRIPLES = Table("query", "positive", "negative", None)
WITHOUT_LABELS = tuple(Table(query, passage, passage, None) for query, passage in NAMES)
ROWS = SentenceTask("rerank", "Rerank", labels=(), metrics=("spearman",), official=COLUMNS[0], hub=COLUMNS[0])


@dataclass(frozen=True)
class PassageList:
    """A query and the passages that are ranked for it.

    Attributes:
        query: its text.
        passages: their texts.
        relevant: whether each passage is relevant; None if the file has no labels.
    """

    query: str
    passages: tuple[str, ...]
    relevant: tuple[bool, ...] | None

    @property
    def ranks(self) -> bool:
        """Whether it has relevant and irrelevant passages. Otherwise every order is as good as any other."""
        return self.relevant is not None and len(set(self.relevant)) == 2


def find_file(folder: Path, split: str, option: str = "--task_data") -> Path:
    """Return the file of a split in a folder, or in its subfolder `rerank`: called `SPLIT` or `…-SPLIT`.

    Raises:
        TaskDataAbsentError: there is none.
        PotstillError: there is no such folder, or it has several such files.
    """
    if not folder.is_dir():
        raise PotstillError(f"{option} {folder} is not a folder: name a folder, or files with --train_data.")
    for place in (folder / "rerank", folder):
        files = sorted(place.iterdir()) if place.is_dir() else []
        found = [file for file in files if file.name.endswith(ENDINGS) and _split_of(file) == split and file.is_file()]
        if len(found) > 1:
            raise PotstillError(
                f"{place} holds {found[0].name} and {found[1].name}: name the one to use with "
                f"--{'train' if split == 'train' else 'eval'}_data."
            )
        if found:
            return found[0]
    raise TaskDataAbsentError(
        f"{folder} has no file called {split} or …-{split} that ends in .csv, .tsv or .jsonl: name the file itself."
    )


def _split_of(file: Path) -> str:
    return stem(file).lower().replace("_", "-").rpartition("-")[2]


def read_lists(
    file: Path, columns: Sequence[str] | None, bad: BadRows, labelled: bool = False, triples: bool = True
) -> list[PassageList]:
    """Read a file of queries and passages.

    It has the columns of `COLUMNS`, and the rows with the same query are one list. Or it has a list `passages` for each
    `query`, and perhaps a list `labels`. Or it has triples of `query`, `positive` and `negative`; each of them is a
    list of two passages. A label above 0 marks a relevant passage.

    Args:
        file: a `.tsv`, `.csv`, `.jsonl` or `.parquet` file.
        columns: names of the columns of query, passage and label, if they have names of their own; without that of the
            label if there are no labels.
        bad: takes the rows that cannot be used.
        labelled: whether there must be labels.
        triples: whether the file may hold triples.

    Raises:
        PotstillError: the file cannot be read or has other columns; only some of its lists have labels; or a row cannot
            be used and `bad` does not take it.
    """
    path = str(file)
    if not file.is_file():
        raise PotstillError(f"There is no file {path}: name a file of queries and passages.")
    if not file.name.endswith(ENDINGS):
        raise PotstillError(f"{path} is no table: name a file that ends in .tsv, .csv, .jsonl or .parquet.")
    tables = (*COLUMNS, *([TRIPLES] if triples else []), LISTS, *(() if labelled else WITHOUT_LABELS))
    if columns is not None:
        tables = (Table(columns[0], columns[1], columns[-1], None),)
    rows, table = table_rows(path, ROWS, tables, bad)
    if table is TRIPLES:
        found = _triples(path, rows, bad)
    elif table is LISTS:
        found = _lists(path, rows, bad)
    elif table.label == table.pair:
        found = _merged((row[table.text], row[table.pair], None) for row in _texts(path, rows, table, bad))
    else:
        found = _merged(scored_pairs(path, rows, table, ROWS, bad)[0])
    if table is TRIPLES or table is LISTS or table.label == table.pair:
        bad.report(path, len(found))
    if not found:
        raise PotstillError(f"{path} holds no query with a passage: check that it is the right file.")
    without = sum(one.relevant is None for one in found)
    if labelled and without:
        raise PotstillError(
            f"{path} has {counted(without, 'query', 'queries')} without labels: it is scored by them, so add them."
        )
    if 0 < without < len(found):
        raise PotstillError(
            f"{path} has labels for {counted(len(found) - without, 'query', 'queries')} and none for {without:,}: "
            "give labels for all of them or for none."
        )
    return found


def without_duplicates(path: str, lists: Sequence[PassageList], bad: BadRows) -> list[PassageList]:
    """Keep one of the equal passages of a query, and say how many are left out.

    Raises:
        PotstillError: one passage of a query is relevant and not relevant, and `bad` does not take it.
    """
    found, twice, before = [], 0, bad.count
    for one in lists:
        marks: dict[str, set[bool | None]] = {}
        for passage, mark in zip(one.passages, one.relevant or [None] * len(one.passages), strict=True):
            marks.setdefault(passage, set()).add(mark)
        for passage in [passage for passage, values in marks.items() if len(values) > 1]:
            bad.add(f"{path}: a passage of the query {one.query[:60]!r} is relevant and not relevant: {passage[:60]!r}")
            del marks[passage]
        twice += sum(passage in marks for passage in one.passages) - len(marks)
        if marks:
            relevant = None if one.relevant is None else tuple(values == {True} for values in marks.values())
            found.append(PassageList(one.query, tuple(marks), relevant))
    if twice:
        single = "1 passage stands more than once under its query; it is used once."
        several = f"{twice:,} passages stand more than once under their query; each is used once."
        print_message(f"{path}: {agreeing(twice, single, several)}")
    if bad.count > before:
        count = bad.count - before
        why = agreeing(
            count, "is left out, because its labels contradict", "are left out, because their labels contradict"
        )
        print_message(f"{path}: {counted(count, 'passage')} {why}.")
    return found


def _merged(pairs: Any) -> list[PassageList]:
    """Return one list for each query, in the order of their first rows."""
    queries: dict[str, list[tuple[str, float | None]]] = {}
    for query, passage, label in pairs:
        queries.setdefault(query, []).append((passage or "", label))
    return [
        PassageList(
            query,
            tuple(passage for passage, _ in found),
            None if found[0][1] is None else tuple((label or 0) > 0 for _, label in found),
        )
        for query, found in queries.items()
    ]


def _texts(path: str, rows: Sequence[NumberedRow], table: Table, bad: BadRows) -> list[dict[Any, Any]]:
    """Return the rows whose columns are texts that are not empty."""
    found = []
    for number, row in rows:
        faults = [_fault(row.get(column)) for column in dict.fromkeys((table.text, table.pair, table.label))]
        fault = next(filter(None, faults), None)
        if fault is None:
            found.append(row)
        else:
            bad.add(f"{path}, row {number}, {fault}")
    return found


def _fault(value: Any) -> str | None:
    if isinstance(value, str) and not value.strip():
        return "has an empty text"
    fault = text_fault(value)
    return None if fault is None else f"is not usable: {fault}"


def _triples(path: str, rows: Sequence[NumberedRow], bad: BadRows) -> list[PassageList]:
    found = []
    for row in _texts(path, rows, TRIPLES, bad):
        query, positive, negative = row["query"], row["positive"], row["negative"]
        if positive == negative:
            bad.add(f"{path}: the positive and the negative passage of the query {query[:60]!r} are the same")
        else:
            found.append(PassageList(query, (positive, negative), (True, False)))
    return found


def _lists(path: str, rows: Sequence[NumberedRow], bad: BadRows) -> list[PassageList]:
    found = []
    for number, row in rows:
        values: tuple[Any, Any, Any] = (row.get("query"), row.get("passages"), row.get("labels"))
        query, passages, labels = values
        fault = _fault(query)
        if fault is None and (not isinstance(passages, list) or not passages):
            fault = "has no list of passages"
        if fault is None:
            fault = next(filter(None, map(_fault, passages)), None)
        marks: list[Any] = []
        if fault is None and labels is not None:
            marks = [score_of(label) for label in labels] if isinstance(labels, list) else []
            if len(marks) != len(passages):
                fault = f"has {counted(len(passages), 'passage')} and {counted(len(marks), 'label')}"
            elif None in marks:
                fault = f"has the label {labels[marks.index(None)]!r}, which is not a finite number"
        if fault is not None:
            bad.add(f"{path}, row {number}, {fault}")
            continue
        relevant = None if labels is None else tuple(mark > 0 for mark in marks)
        found.append(PassageList(query, tuple(passages), relevant))
    return found
