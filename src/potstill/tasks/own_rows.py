"""Read the rows of a task on texts from a user's files: one or two texts, and a label, several labels or a score."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets

from potstill.errors import PotstillError
from potstill.tasks.in_memory import dataset_of
from potstill.tasks.labels import in_words, score_of
from potstill.tasks.own import MultilabelTask, OwnTask, ScoreTask
from potstill.tasks.own_labels import (
    SHOWN,
    Written,
    check_types,
    collect,
    numbers_of,
    read_names,
    some,
    tell_alike,
    tell_counts,
    written,
)
from potstill.tasks.own_tables import (
    DEV,
    TRAIN,
    OwnTable,
    all_of,
    open_table,
    sources_by_split,
    sources_of,
    split_names,
)
from potstill.tasks.rows import BadRows, OnBadRows, print_message, report_unread, text_fault
from potstill.tasks.stratified import stratified
from potstill.tasks.task import OwnFiles
from potstill.wording import agreeing, counted

TEXTS = ("text", "sentence")
LABELS = ("label", "labels")
SCORES = ("label", "score")
SEPARATOR = ","

# What other programs write into one field for a list, such as ['a', 'b'] or [0, 1].
_LIST = re.compile(r"""\[\s*(['"].*['"]|[\d\s,.-]*)\s*\]""", re.DOTALL)


@dataclass(frozen=True)
class OwnRows:
    """The rows of a task to train on and to score.

    Attributes:
        labels: names of the labels in order; empty for scores.
        splits: `train`, and `dev` or, of several files to score, the name of each; columns `text`, `pair` (of
            pairs) and `label`: a number, a list of numbers, or a score.
        bad_rows: split → number of rows left out.
    """

    labels: tuple[str, ...]
    splits: dict[str, datasets.Dataset]
    bad_rows: dict[str, int]


@dataclass
class _Split:
    """What a file holds, before its labels are numbered."""

    table: OwnTable
    bad: BadRows
    numbers: list[int] = field(default_factory=list)
    texts: list[tuple[str, ...]] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)

    @property
    def written(self) -> list[Written]:
        """The labels of all rows."""
        return [label for row in self.labels for label in (row if isinstance(row, list) else [row])]


def read_own_rows(task: OwnTask, files: OwnFiles, on_bad_rows: OnBadRows = "stop") -> OwnRows:
    """Read the files of a task.

    Rows without a text or a label cannot be used, nor can rows to score whose label no row to train on has.

    Args:
        task: the task, of any kind but tagging.
        files: its files and their columns. Without a file to score, a part of the rows to train on is held out.
        on_bad_rows: `stop`: rows that cannot be used are an error; `skip`: they are left out and counted.

    Raises:
        PotstillError: a file cannot be read or has no such column, the labels cannot be used, or rows are bad.
    """
    splits = {
        name: [_read(task, files, TRAIN if name == TRAIN else DEV, source, on_bad_rows) for source in sources]
        for name, sources in sources_by_split(files).items()
    }
    train = splits[TRAIN]
    where = all_of([part.table.where for part in train])
    names: tuple[str, ...] = ()
    if isinstance(task, ScoreTask):
        _check_scores(
            {name: [score for part in parts for score in part.labels] for name, parts in splits.items()}, where
        )
    if isinstance(task, MultilabelTask) and files.label_separator is None:
        _check_separator(train, where)
    if not isinstance(task, ScoreTask):
        listed = files.label_names is not None
        names = read_names(files.label_names or "") if listed else _collected(train, where)
        for name, parts in splits.items():
            for part in parts:
                _number(part, names, listed, None if name == TRAIN or listed else where)
        counts = Counter(number for part in train for label in part.labels for number in _list(label))
        tell_counts(counts, names, where)
        tell_alike(names, where)
    for parts in splits.values():
        for part in parts:
            part.bad.report(part.table.where, len(part.labels))
    bad_rows = {name: sum(part.bad.count for part in parts) for name, parts in splits.items()}
    found = {
        name: datasets.concatenate_datasets([_dataset(task, part, names) for part in parts])
        for name, parts in splits.items()
    }
    if len(found) == 1:
        found = _held_out(task, found[TRAIN], files.dev_share, where)
        bad_rows[DEV] = 0
    _tell_known(found)
    return OwnRows(names, found, bad_rows)


def _check_scores(scores: Mapping[str, Sequence[float]], where: str) -> None:
    """Check that the scores of rows to train on differ, and print it if those of rows to score do not.

    Raises:
        PotstillError: all scores to train on are equal.
    """
    if scores[TRAIN] and len({*scores[TRAIN]}) == 1:
        raise PotstillError(f"{where} has only the score {scores[TRAIN][0]:g}: there is nothing to learn from it.")
    for name, found in scores.items():
        if name != TRAIN and len({*found}) == 1:
            print_message(
                f"all rows of {name} have the score {found[0]:g}: no correlation is defined, and it counts as 0."
            )


def _check_separator(train: Sequence[_Split], where: str) -> None:
    """Check that rows with several labels in one field were not read as rows with one label.

    Raises:
        PotstillError: no row has several labels, and a mark that often separates labels is in some of them.
    """
    if any(len(labels) > 1 for part in train for labels in part.labels):
        return
    names = [label.name for part in train for label in part.written]
    found = next(((name, mark) for mark in ";|/\t" for name in names if mark in name), None)
    if found is not None:
        name, mark = found
        raise PotstillError(
            f"{where}: no row has several labels with {SEPARATOR!r} between them, but the label {name[:60]!r} holds "
            f"{mark!r}: say with --label_separator which one separates labels."
        )


def _tell_known(splits: Mapping[str, datasets.Dataset]) -> None:
    """Print how many rows to score have a text that is learned from too: their score says little of new texts."""

    def texts(split: datasets.Dataset) -> list[tuple[str, ...]]:
        columns = [split[name][:] for name in ("text", "pair") if name in split.column_names]
        return list(zip(*columns, strict=True))

    learned = set(texts(splits[TRAIN]))
    for name, split in splits.items():
        known = 0 if name == TRAIN else sum(one in learned for one in texts(split))
        if known:
            print_message(
                f"{known:,} of the {counted(len(split), 'row')} of {name} {agreeing(known, 'has', 'have')} a text "
                "that is among the rows to train on."
            )


def read_scored(task: OwnTask, files: OwnFiles, names: tuple[str, ...], on_bad_rows: OnBadRows = "stop") -> OwnRows:
    """Read the rows to score of a task whose labels the teacher tells; there are no rows to train on.

    Args:
        task: the task, of any kind but tagging.
        files: its files and their columns.
        names: names of the labels in order; empty for scores.
        on_bad_rows: see `read_own_rows`.
    """
    sources = sources_of(files.eval or (), "--eval_data")
    splits, bad_rows = {}, {TRAIN: 0}
    for name, source in zip(split_names(sources), sources, strict=True):
        bad = BadRows(on_bad_rows)
        splits[name] = read_labelled(task, files, source, names, bad, "the teacher")
        bad_rows[name] = bad.count
    return OwnRows(names, {TRAIN: next(iter(splits.values())).select([])} | splits, bad_rows)


def read_labelled(
    task: OwnTask, files: OwnFiles, source: str, names: tuple[str, ...], bad: BadRows, owner: str = "the model"
) -> datasets.Dataset:
    """Read one file of rows to score, with the labels that a model has; see `read_own_rows`.

    Args:
        task: the task, of any kind but tagging.
        files: the columns.
        source: the file.
        names: names of the model's labels, in order.
        bad: takes the rows that cannot be used.
        owner: the word for the model in messages.
    """
    split = _read(task, files, DEV, source, bad.on_bad_rows)
    if not isinstance(task, ScoreTask):
        listed = files.label_names is not None
        order = read_names(files.label_names or "") if listed else names
        if set(order) != set(names):
            raise PotstillError(f"The labels of {owner} are not those of {files.label_names}: {some(names)}.")
        _number(split, order, listed, None if listed else owner)
        place = [names.index(name) for name in order]
        split.labels = [[place[n] for n in row] if isinstance(row, list) else place[row] for row in split.labels]
    split.bad.report(split.table.where, len(split.labels))
    bad.count += split.bad.count
    return _dataset(task, split, names)


def _read(task: OwnTask, files: OwnFiles, name: str, source: str, on_bad_rows: OnBadRows) -> _Split:
    """Read a file, and keep the rows that have texts and labels."""
    bad = BadRows(on_bad_rows)
    table = open_table(source, name, files.columns, bad)
    text = table.column(files.text_column, TEXTS, "--text_column")
    pair = None if files.pair_column is None else table.column(files.pair_column, (), "--pair_column")
    label = table.column(files.label_column, SCORES if isinstance(task, ScoreTask) else LABELS, "--label_column")
    columns = [column for column in (text, pair, label) if column is not None]
    if len(set(columns)) < len(columns):
        raise PotstillError(f"{table.where}: {', '.join(columns)} are not different columns: name one for each value.")
    if not table.headless:
        report_unread(table.where, table.columns, {*columns, "id", "idx", "index"})
    if label in table.classes and not isinstance(task, ScoreTask):
        in_words(table.rows, label, table.classes[label])
    split, faults, without = _Split(table, bad), _Faults(table, bad), 0
    separator = files.label_separator or SEPARATOR
    for number, row in table.rows:
        texts: tuple[Any, ...] = tuple(row.get(column) for column in (text, pair) if column is not None)
        fault = next((fault for value in texts if (fault := text_fault(value, "a text")) is not None), None)
        if any(value is None for value in texts):
            fault = "without a text"
        elif fault is None and not all(value.strip() for value in texts):
            fault = "with an empty text"
        elif fault is not None:
            fault = f"with no text ({fault})"
        value = _value(task, row.get(label), separator)
        if fault is None and isinstance(value, str):
            fault = value
        if fault is not None:
            faults.add(fault, number)
            continue
        without += value == []
        split.numbers.append(number)
        split.texts.append(texts)
        split.labels.append(value)
    faults.report()
    if without:
        print_message(
            f"{table.where}: {without:,} of {counted(len(table.rows), 'row')} {agreeing(without, 'has', 'have')} no "
            f"label: {agreeing(without, 'an example', 'examples')} of none."
        )
    return split


class _Faults:
    """Rows that cannot be used, counted by what is wrong with them."""

    def __init__(self, table: OwnTable, bad: BadRows) -> None:
        self.table, self.bad = table, bad
        self.rows: dict[str, list[int]] = {}

    def add(self, fault: str, number: int) -> None:
        """Count a row."""
        self.rows.setdefault(fault, []).append(number)

    def report(self) -> None:
        """Give the rows to `bad`, with one message."""
        if not self.rows:
            return
        count = sum(map(len, self.rows.values()))
        shown = list(self.rows.items())[:SHOWN]
        parts = [
            f"{counted(len(numbers), 'row')} {fault} (the first is {self.table.unit} {numbers[0]:,})"
            for fault, numbers in shown
        ]
        if len(self.rows) > SHOWN:
            parts.append(
                f"{counted(count - sum(len(numbers) for _, numbers in shown), 'other row')} with faults of these kinds"
            )
        self.bad.add(f"{self.table.where} has {', and '.join(parts)}", count)


def _value(task: OwnTask, value: Any, separator: str) -> Any:
    """Return the label, the labels or the score of a row, or in words what is wrong with it."""
    blank = value is None or (isinstance(value, str) and not value.strip())
    if isinstance(task, ScoreTask):
        score = score_of(value)
        if score is None:
            return "without a score" if blank else f"with the score {str(value)[:40]!r}, which is not a finite number"
        return score
    if isinstance(task, MultilabelTask):
        if value is None:
            return "without labels"
        if isinstance(value, str) and _LIST.fullmatch(value.strip()):
            return f"with a list in one field ([...]): write the names alone, with {separator!r} between them"
        parts = value.split(separator) if isinstance(value, str) else value if isinstance(value, list) else [value]
        labels = [written(part) for part in parts] if not blank else []
        if None in labels:
            part = parts[labels.index(None)]
            empty = part is None or (isinstance(part, str) and not part.strip())
            wrong = "empty" if empty else "neither a name nor a number"
            return f"with the labels {str(value)[:40]!r}, one of which is {wrong}"
        return list(dict.fromkeys(labels))
    if isinstance(value, list):
        return f"with a list as its label ({str(value)[:40]}), which is for --task multilabel"
    if blank:
        return "without a label"
    return written(value) or f"with the label {str(value)[:40]!r}, which is neither a name nor a number"


def _collected(train: Sequence[_Split], where: str) -> tuple[str, ...]:
    typed = all(part.table.typed for part in train)
    return collect((label for part in train for label in part.written), where, typed)


def _number(split: _Split, names: tuple[str, ...], listed: bool, known_by: str | None) -> None:
    """Replace the labels of a split by their numbers. Rows with other labels cannot be used."""
    table, faults = split.table, _Faults(split.table, split.bad)
    every = list(dict.fromkeys(split.written))
    if not listed:
        check_types(every, table.where, table.typed)
    known = numbers_of(names, every, listed, table.where, table.typed)
    kept = []
    for place, label in enumerate(split.labels):
        missing = next((one.name for one in _list(label) if one.name not in known), None)
        if missing is None:
            kept.append(place)
        elif known_by is None:
            faults.add(f"with the label {missing!r}, which is none of --label_names", split.numbers[place])
        else:
            faults.add(f"with the label {missing!r}, which {known_by} does not have", split.numbers[place])
    faults.report()
    split.numbers = [split.numbers[place] for place in kept]
    split.texts = [split.texts[place] for place in kept]
    labels = [split.labels[place] for place in kept]
    split.labels = [
        sorted({known[one.name] for one in label}) if isinstance(label, list) else known[label.name] for label in labels
    ]


def _list(label: Any) -> list[Any]:
    return label if isinstance(label, list) else [label]


def _dataset(task: OwnTask, split: _Split, names: Sequence[str]) -> datasets.Dataset:
    columns: dict[str, Any] = {"text": [texts[0] for texts in split.texts]}
    if split.texts and len(split.texts[0]) > 1:
        columns["pair"] = [texts[1] for texts in split.texts]
    features: dict[str, Any] = {name: datasets.Value("string") for name in columns}
    if isinstance(task, ScoreTask):
        features["label"] = datasets.Value("float32")
    elif isinstance(task, MultilabelTask):
        features["label"] = datasets.List(datasets.Value("int32"))
    else:
        features["label"] = datasets.ClassLabel(names=list(names))
    return dataset_of(columns | {"label": split.labels}, features=datasets.Features(features))


def _held_out(task: OwnTask, rows: datasets.Dataset, share: float, where: str) -> dict[str, datasets.Dataset]:
    """Split rows into those to train on and those to score; each label gives the same share of its rows."""
    labels = rows["label"][:]
    strata: list[Any] = [0] * len(rows)
    how = "at random"
    if isinstance(task, MultilabelTask):  # a row belongs to the rarest of its labels
        counts = Counter(number for row in labels for number in row)
        strata = [min(row, key=lambda number: (counts[number], number), default=-1) for row in labels]
        how = "the same share of each label"
    elif not isinstance(task, ScoreTask):
        strata, how = labels, "the same share of each label"
    dev = stratified(strata, share)
    train = sorted({*range(len(rows))} - {*dev})
    if not dev or not train:
        if len(set(map(str, strata))) == len(rows) > 2:
            raise PotstillError(
                f"{where} has {len(rows):,} rows and each has another label, so none can be held out: give "
                "--eval_data, or check that --label_column names the column of the labels."
            )
        raise PotstillError(f"{where} has {counted(len(rows), 'row')}, too few to hold out a part: give --eval_data.")
    print_message(
        f"{where}: {len(dev):,} of {len(rows):,} rows {agreeing(len(dev), 'is', 'are')} held out and scored ({how}; "
        f"the same {agreeing(len(dev), 'row', 'rows')} for every seed)."
    )
    return {TRAIN: rows.select(train), DEV: rows.select(dev)}
