"""Read files of pairs of texts with a score: `.tsv`, `.csv`, `.jsonl` and `.parquet`, by the names of their columns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from potstill.errors import PotstillError
from potstill.tasks.load import tsv_rows
from potstill.tasks.rows import PACKED, BadRows, NumberedRow, columns_of, csv_rows, rows_of, text_lines
from potstill.tasks.sentence import Row, SentenceTask, Table, parse_rows

ENDINGS = (*(kind + packed for kind in (".tsv", ".csv", ".jsonl") for packed in PACKED), ".parquet")


def table_files(sources: Iterable[Path], option: str) -> list[Path]:
    """Return the files that a user names, and the files of the folders that a user names.

    Of a folder, files called `train`, or ending in `-train` or `_train`, are left out: models may be trained on them.

    Raises:
        PotstillError: there is no such file or folder, it is no table, or a folder holds none.
    """
    files = []
    for source in sources:
        if source.is_dir():
            inside = sorted(file for file in source.iterdir() if file.name.endswith(ENDINGS) and file.is_file())
            inside = [file for file in inside if stem(file).lower().replace("_", "-").split("-")[-1] != "train"]
            if not inside:
                raise PotstillError(
                    f"{option} {source} holds no file to score that ends in .tsv, .csv or .jsonl: name another folder."
                )
            files += inside
        elif not source.is_file():
            raise PotstillError(f"{option} {source} does not exist: name a file or a folder of files.")
        elif not source.name.endswith(ENDINGS):
            raise PotstillError(
                f"{option} {source} is no table: name a file that ends in .tsv, .csv, .jsonl or .parquet."
            )
        else:
            files.append(source)
    return files


def stem(file: Path) -> str:
    """Return the name of a file without its endings."""
    return file.name.removesuffix(next((ending for ending in ENDINGS if file.name.endswith(ending)), ""))


def read_pairs(
    file: Path, task: SentenceTask, tables: Sequence[Table], bad: BadRows, lone_texts: bool = False
) -> tuple[list[Row], int]:
    """Read the scored pairs of a file.

    Args:
        file: a `.tsv` file, whose fields are never quoted; a `.csv` file, whose fields may be; `.jsonl` or `.parquet`.
        task: the declaration, for messages. A `.tsv` file without a header has its columns `official`.
        tables: columns that a file may have; the first that it has completely are read.
        bad: takes the rows that cannot be used.
        lone_texts: whether a row may have no score. Such rows are left out and counted.

    Returns:
        The rows, and the number of rows that have no score.

    Raises:
        PotstillError: the file cannot be read, has other columns, has no scored pair, or has a bad row that `bad` does
            not take.
    """
    path = str(file)
    rows, table = table_rows(path, task, tables, bad)
    return scored_pairs(path, rows, table, task, bad, lone_texts)


def scored_pairs(
    path: str, rows: Sequence[NumberedRow], table: Table, task: SentenceTask, bad: BadRows, lone_texts: bool = False
) -> tuple[list[Row], int]:
    """Return the scored pairs in the rows of a file, and the number of rows without a score; see `read_pairs`."""
    scored, without = [], 0
    for number, row in rows:
        value = row.get(table.label)
        if lone_texts and (value is None or (isinstance(value, str) and not value.strip())):
            without += 1
        elif any(isinstance(row.get(column), str) and not row[column].strip() for column in (table.text, table.pair)):
            bad.add(f"{path}, row {number}, has an empty text")
        else:
            scored.append((number, row))
    found = parse_rows(scored, table, task, path, ".tsv" not in Path(path).suffixes, bad)
    bad.report(path, len(found))
    if not found:
        raise PotstillError(f"{path} holds no pair with a score: check that it is the right file.")
    return found, without


def table_rows(path: str, task: SentenceTask, tables: Sequence[Table], bad: BadRows) -> tuple[list[NumberedRow], Table]:
    """Return the rows of a file, and the columns that are to be read of it: the first of `tables` that it has.

    Raises:
        PotstillError: see `read_pairs`.
    """
    if ".tsv" in Path(path).suffixes:
        first = next((line for _, line in text_lines(path, bad)), "").split("\t")
        table = _matching(tables, first) or (None if task.official.has_header else task.official)
        return ([], tables[0]) if first == [""] else (list(tsv_rows(path, table or tables[0], bad)), table or tables[0])
    rows = list(csv_rows(path, bad) if ".csv" in Path(path).suffixes else rows_of(path, bad))
    columns = columns_of(rows)
    table = _matching(tables, columns)
    if table is None and rows:
        wanted = ", ".join(map(repr, dict.fromkeys((tables[0].text, tables[0].pair, tables[0].label))))
        found = ", ".join(map(repr, columns))
        raise PotstillError(f"{path} has no columns {wanted}, only {found}: name them with --{task.name}_columns.")
    return rows, table or tables[0]


def _matching(tables: Sequence[Table], columns: Iterable[Any]) -> Table | None:
    known = set(columns)
    return next((table for table in tables if {table.text, table.pair, table.label} <= known), None)


def fingerprint_of(value: Any) -> str:
    """Return a SHA-256, in hexadecimal, of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
