"""Read a user's table of any kind: `.csv`, `.tsv`, `.jsonl`, `.json`, `.parquet`, a `datasets` folder or a hub id."""

from __future__ import annotations

import difflib
import glob
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from potstill.corpus.fields import delimiter_of, is_quoted
from potstill.corpus.sources import compression_of
from potstill.corpus.tables import checked_tables, saved_dataset
from potstill.corpus.tokenizer import quiet_hub
from potstill.errors import PotstillError, first_line
from potstill.hub_access import hub_or_cache
from potstill.tasks.rows import (
    PACKED,
    BadRows,
    NumberedRow,
    columns_of,
    csv_rows,
    named_classes,
    print_message,
    rows_of,
)
from potstill.tasks.task import OwnFiles
from potstill.wording import counted

TRAIN, DEV = "train", "dev"
HUB_SPLITS = {TRAIN: ("train",), DEV: ("validation", "dev", "test")}

RESERVED = {TRAIN, "score", "per_label", "confusion", "threshold"}
"""Names in results that stand for something else than a source to score."""

TABLES = (*(kind + packed for kind in (".csv", ".tsv", ".jsonl", ".json") for packed in PACKED), ".parquet")
"""Endings of files of rows."""


@dataclass(frozen=True)
class OwnTable:
    """The rows of a file, or of a split of a dataset.

    Attributes:
        where: the file or dataset, for messages.
        rows: its rows, with the numbers that messages name.
        typed: whether it distinguishes numbers from text.
        classes: column → names of the numbers in it, as `datasets` records them.
        headless: whether its columns have names only because the user gave them.
        unit: the word for a number of `rows`.
    """

    where: str
    rows: list[NumberedRow]
    typed: bool
    classes: dict[str, list[str]]
    headless: bool = False
    unit: str = "row"

    @property
    def columns(self) -> list[Any]:
        """The columns of all rows, in order."""
        return list(columns_of(self.rows))

    def column(self, given: str | None, usual: Sequence[str], option: str) -> str:
        """Return the column that holds a value of a task.

        Args:
            given: its name, if the user gave it.
            usual: its usual names.
            option: the option that gives the name, for messages.

        Raises:
            PotstillError: there is no such column; the message names the nearest one.
        """
        columns = [str(column) for column in self.columns]
        found = next((name for name in ((given,) if given else usual) if name in columns), None)
        if found is not None:
            return found
        wanted = given or usual[0]
        lower = {column.casefold(): column for column in reversed(columns)}
        near = difflib.get_close_matches(wanted.casefold(), lower, 1)
        hint = f"; the nearest is {lower[near[0]]!r}" if near else ""
        shown = ", ".join(repr(column[:40]) for column in columns[:12]) + ", …" * (len(columns) > 12)
        for mark, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
            if not self.typed and len(columns) == 1 and mark in columns[0]:
                raise PotstillError(
                    f"{self.where} has a single column, because {name} separate its fields: a .csv file has commas "
                    "and a .tsv file has tabs, so save it as one of them."
                )
        how = f"name the column with {option}"
        if not self.typed and not self.headless:
            how += ", or give --columns if the first line does not name the columns"
        raise PotstillError(f"{self.where} has no column {wanted!r}, only {shown or 'none at all'}{hint}: {how}.")


def open_table(source: str, split: str, columns: Sequence[str] | None, bad: BadRows) -> OwnTable:
    """Read a table.

    Args:
        source: a file, a folder that `datasets` saved, or the id of a dataset on the hub.
        split: `train` or `dev`, for datasets that have several splits.
        columns: names of the columns of a `.csv` or `.tsv` file whose first line does not name them.
        bad: takes the rows that cannot be read.

    Raises:
        PotstillError: there is no such file, its format is unknown, or it cannot be read.
    """
    path = Path(source).expanduser()
    if path.is_dir() or not (path.exists() or _looks_like_a_path(source)):
        return _of_dataset(source, path, split, columns)
    check_file(path, TABLES, "a table", ".csv, .tsv, .jsonl, .json or .parquet")
    where = str(path)
    delimiter = delimiter_of(where)
    if delimiter is None:
        _refuse_columns(where, columns)
        table = OwnTable(where, list(rows_of(where, bad)), True, named_classes(where))
    else:
        quoted = is_quoted(where)
        rows = list(csv_rows(where, bad, columns, delimiter, quoted))
        table = OwnTable(where, rows, False, {}, columns is not None, "line")
        if delimiter == "\t" and _some_quoted(rows, quoted):
            how = "are read as quoted" if quoted else "are read as they are, quotation marks included"
            print_message(f"{where}: the fields {how}.")
    if not table.rows and not bad.count:
        raise PotstillError(f"{where} has no rows: check that it is the right file.")
    return table


def sources_by_split(files: OwnFiles, what: str = "a file") -> dict[str, list[str]]:
    """Return the files, folders and datasets of each split: all those to train on, and each one to score by itself.

    Args:
        files: as the user named them.
        what: what there is to train on, for the message that it is missing.

    Returns:
        `train`, and `dev` for one source to score, or a name for each of several, see `split_names`. Without a source
        to score there is only `train`, unless all sources to train on are datasets with splits of their own.

    Raises:
        PotstillError: nothing is named to train on, a pattern matches no file, or a file is named twice.
    """
    if files.train is None:
        raise PotstillError(
            f"--train_data is missing: name {what} to train on, or for texts --teacher and --unlabelled in its place."
        )
    train = sources_of(files.train, "--train_data")
    scored = train if all(map(has_splits, train)) else []
    if files.eval is not None:
        scored = sources_of(files.eval, "--eval_data")
    return {TRAIN: train} | {name: [source] for name, source in zip(split_names(scored), scored, strict=True)}


def sources_of(names: str | Sequence[str], option: str) -> list[str]:
    """Return files, folders and datasets in order; a pattern stands for the files that match it, sorted.

    Args:
        names: what the user named, one or several.
        option: the option that names them, for messages.

    Raises:
        PotstillError: there is no name, a pattern matches no file, or a file is named twice.
    """
    found: list[str] = []
    for name in [names] if isinstance(names, str) else names:
        path = Path(name).expanduser()
        if path.exists() or not glob.has_magic(name):
            found.append(name)
            continue
        matches = sorted(match for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
        if not matches:
            raise PotstillError(f"{option}: the pattern {name} matches no file: check it.")
        found += matches
    twice = next((name for name, count in Counter(found).items() if count > 1), None)
    if twice is not None:
        raise PotstillError(f"{option} names {twice} twice: name it once.")
    if not found:
        raise PotstillError(f"{option} names no file: name one.")
    return found


def split_names(sources: Sequence[str]) -> list[str]:
    """Return a short name for each source to score.

    It is `dev` for a single one. Each of several has the name of its file without endings, with as many of the folders
    before it as tell them apart.
    """
    if len(sources) == 1:
        return [DEV]
    paths = [Path(source).parts for source in sources]
    stems = []
    for source in map(Path, sources):
        name = source.name.removesuffix(compression_of(source.name) or "")
        stems.append(name if source.is_dir() else Path(name).stem)
    names = stems
    for depth in range(2, 2 + max(map(len, paths), default=0)):
        if len({*names}) == len(names) and not {*names} & RESERVED:
            break
        names = ["/".join([*parts[-depth:-1], stem]) for parts, stem in zip(paths, stems, strict=True)]
    # Files of one name that differ in their endings alone, such as a.csv and a.tsv.
    return names if len({*names}) == len(names) and not {*names} & RESERVED else [*sources]


def all_of(sources: Sequence[str]) -> str:
    """Return how messages call several sources."""
    more = len(sources) - 1
    return sources[0] + (f" and {counted(more, 'more file')}" if more else "")


def check_file(path: Path, endings: Sequence[str], what: str, in_words: str) -> None:
    """Raise a `PotstillError` if there is no such file, or if its name has none of the endings."""
    if not path.exists():
        raise PotstillError(f"There is no file {path}: check the path.")
    if not path.name.lower().endswith(tuple(endings)):
        raise PotstillError(f"{path} has no format of {what} that can be read: give {in_words}.")


def has_splits(source: str) -> bool:
    """Return whether a source is a dataset with its own splits: a saved folder of several, or a hub id."""
    path = Path(source).expanduser()
    return (path / "dataset_dict.json").is_file() or not (path.exists() or _looks_like_a_path(source))


def _some_quoted(rows: Sequence[NumberedRow], quoted: bool) -> bool:
    """Return whether the way in which a file is read makes a difference."""
    return quoted or any(value.startswith('"') for _, row in rows for value in row.values())


def _refuse_columns(where: str, columns: Sequence[str] | None) -> None:
    if columns is not None:
        raise PotstillError(f"--columns is for .csv and .tsv files, but {where} names its columns: leave it out.")


def _looks_like_a_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or source.lower().endswith(TABLES)


def _of_dataset(source: str, path: Path, split: str, columns: Sequence[str] | None) -> OwnTable:
    where = f"the dataset {source}"
    _refuse_columns(where, columns)
    if path.is_dir() and not any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        raise PotstillError(f"{path} is a folder that datasets did not save: name a file in it.")
    try:
        with quiet_hub(), nullcontext() if path.is_dir() else hub_or_cache():
            found = saved_dataset(path) if path.is_dir() else datasets.load_dataset(source)
    except PotstillError:
        raise
    except Exception as error:  # of almost any type
        raise PotstillError(
            f"{where[0].upper()}{where[1:]} cannot be opened on the hub, and there is no file {source}: "
            f"{first_line(error)}."
        ) from error
    if isinstance(found, dict):
        name = next((name for name in HUB_SPLITS[split] if name in found), None)
        if name is None:
            has, needed = ", ".join(found), " or ".join(HUB_SPLITS[split])
            raise PotstillError(f"{where[0].upper()}{where[1:]} has the splits {has}, but none called {needed}.")
        found, where = found[name], f"{where} ({name})"
    classes = {}
    for column, feature in found.features.items():
        inside = getattr(feature, "feature", feature)
        if isinstance(inside, datasets.ClassLabel):
            classes[column] = list(inside.names)
    rows: list[dict[Any, Any]] = []
    try:
        # As Arrow, `datasets` opens no images or sounds, which can lie anywhere on the disk or in the network.
        for table in checked_tables(found.with_format("arrow").iter(batch_size=1000)):
            rows += table.to_pylist()
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise PotstillError(
            f"{where[0].upper()}{where[1:]} is damaged ({first_line(error)}): save it again."
        ) from error
    return OwnTable(where, list(enumerate(rows, 1)), True, classes)
