"""Tasks on a user's own files: classification, several labels a text, regression, tagging, and questions."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import yaml

from potstill.errors import PotstillError, first_line
from potstill.tasks.metrics import METRICS
from potstill.tasks.questions import QuestionTask
from potstill.tasks.task import Defaults, OwnFiles, Task
from potstill.yaml_files import parse_yaml, read_yaml_text

_FILES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt", ".conll", ".conllu", ".gz", ".xz", ".zst")

TASK_FILES = (".yaml", ".yml")
"""Endings of a file that declares a task."""


@dataclass(frozen=True)
class OwnTask(Task):
    """A task whose rows are in the user's own files.

    Attributes:
        metric: the metric that is its score; None for the usual one.
        files: where its rows are; None if the options of the run say so.
    """

    metric: str | None = None
    files: OwnFiles | None = None

    own_files: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]]
    """Metrics that may be the score, the usual one first."""

    columns_read: ClassVar[frozenset[str]]
    """Fields of `OwnFiles` that mean something for this kind of task, beside the files and `dev_share`."""

    @property
    def short_names(self) -> dict[str, str]:
        """The metrics that tables print, with their short names."""
        return {name: METRICS[name].short for name in self.metrics}

    def score_of(self, metrics: dict[str, float], chosen: str | None = None) -> float:
        """Return the metric that is the score.

        Raises:
            PotstillError: the task has no such metric for these labels.
        """
        name = chosen or self.metric or next(name for name in self.metrics if name in metrics)
        if name not in metrics:
            raise PotstillError(f"--metric is {name}, but these labels have {', '.join(metrics)}: choose one of them.")
        return metrics[name]


@dataclass(frozen=True)
class ClassTask(OwnTask):
    """One label for a text or a pair of texts."""

    pipeline: ClassVar[str] = "text-classification"
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1", "micro_f1", "matthews")
    columns_read: ClassVar[frozenset[str]] = frozenset(
        {"text_column", "pair_column", "label_column", "columns", "label_names"}
    )


@dataclass(frozen=True)
class MultilabelTask(OwnTask):
    """Any number of labels for a text or a pair of texts."""

    pipeline: ClassVar[str] = "text-classification"
    metrics: ClassVar[tuple[str, ...]] = ("micro_f1", "macro_f1", "mean_average_precision")
    columns_read: ClassVar[frozenset[str]] = ClassTask.columns_read | {"label_separator"}


@dataclass(frozen=True)
class ScoreTask(OwnTask):
    """A number for a text or a pair of texts."""

    pipeline: ClassVar[str] = "text-classification"
    metrics: ClassVar[tuple[str, ...]] = ("pearson", "spearman")
    columns_read: ClassVar[frozenset[str]] = ClassTask.columns_read - {"label_names"}


@dataclass(frozen=True)
class TagTask(OwnTask):
    """A tag for each word of a sentence."""

    pipeline: ClassVar[str] = "token-classification"
    by_token: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = ("f1", "accuracy")
    columns_read: ClassVar[frozenset[str]] = frozenset({"text_column", "label_column", "columns"})


KINDS: dict[str, type[OwnTask]] = {
    "classification": ClassTask,
    "multilabel": MultilabelTask,
    "regression": ScoreTask,
    "tagging": TagTask,
}
"""Kind of a task on labels → its class."""

SPANS = Defaults(3e-5, 12, 2, 384)
QUESTIONS = QuestionTask("questions", "Questions", None, (), None, defaults=SPANS, taught=Defaults(5e-5, 12, 3, 384))

OWN: dict[str, Task] = {kind: task(kind, kind.capitalize()) for kind, task in KINDS.items()} | {"questions": QUESTIONS}
"""Name on the command line → task, for files that the options of the run name."""


def is_task_file(name: str) -> bool:
    """Return whether the name of a task is that of a file that declares it."""
    return name.endswith(TASK_FILES)


def read_task(path: str) -> Task:
    """Return the task that a file declares.

    The file is a mapping in YAML: `kind`, `train`, and perhaps `name`, `eval`, `metric` and the other fields of
    `OwnFiles`. Paths in it are relative to the file.

    Raises:
        PotstillError: there is no such file, or it is no such mapping; the message names the field.
    """
    file = Path(path).expanduser()
    try:
        stat = file.stat()
    except OSError as error:
        raise PotstillError(f"There is no file {path} that declares a task: check the path.") from error
    return _read_task(file, (stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=64)
def _read_task(file: Path, _version: Any) -> Task:
    try:
        text = read_yaml_text(file)
        values, root = parse_yaml(text), yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise PotstillError(f"{file}{line}, cannot be read as YAML: {error.problem or first_line(error)}.") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise PotstillError(f"{file} cannot be read as YAML: {first_line(error)}.") from error
    written = [key.value for key, _ in root.value] if isinstance(root, yaml.MappingNode) else []
    twice = next((name for name, times in Counter(map(str, written)).items() if times > 1), None)
    if twice is not None:
        raise PotstillError(f"{file} names {twice} twice: leave one out.")
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise PotstillError(f"{file} declares no task: write a mapping with kind, train and label_column, for example.")
    places = {field.name: field.type for field in fields(OwnFiles)}
    known = ["kind", "name", "metric", *places]
    unknown = next((name for name in values if name not in known), None)
    if unknown is not None:
        raise PotstillError(
            f"{file} has a field {unknown!r}, which is none of {', '.join(known)}{_near(unknown, known)}."
        )
    kind = values.get("kind")
    kinds = [*KINDS, "questions"]
    if kind not in kinds:
        raise PotstillError(f"{file}: kind is {kind!r}: it must be one of {', '.join(kinds)}.")
    for name in values.keys() - {"columns", "dev_share"}:
        several = name in ("train", "eval") and _are_texts(values[name])
        if not several and (not isinstance(values[name], str) or not values[name]):
            what = "a text, or a list of texts" if name in ("train", "eval") else "a text"
            raise PotstillError(f"{file}: {name} is {values[name]!r}: it must be {what}.")
    # A teacher can train a model on unlabelled texts alone.
    if "train" not in values and not (kind in ("classification", "multilabel", "regression") and "eval" in values):
        raise PotstillError(f"{file} has no field train: name the file to train on.")
    share = values.get("dev_share", OwnFiles.dev_share)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise PotstillError(f"{file}: dev_share is {share!r}: it must be a share between 0 and 1.")
    columns = values.get("columns")
    if columns is not None and not (isinstance(columns, str) or _are_texts(columns)):
        raise PotstillError(f"{file}: columns is {columns!r}: it must be a list of names.")
    name = values.get("name", file.name.removesuffix(".yml").removesuffix(".yaml"))
    if name.startswith(".") or not name.isprintable() or "/" in name or "\\" in name:
        raise PotstillError(f"{file}: name is {name!r}, which cannot be the name of a folder: choose another.")
    here = {part: _all_beside(file, values[part]) for part in ("train", "eval", "label_names") if part in values}
    given = {part: values[part] for part in places if part in values} | here | {"dev_share": float(share)}
    files = OwnFiles(**given | {"columns": split_columns(columns)})
    if len({*(files.columns or ())}) < len(files.columns or ()):
        raise PotstillError(f"{file}: columns names one column twice: give each a name of its own.")
    if kind == "questions":
        refuse_unread(files, (), f"{file}: {{}} is for tasks on labels, not for questions.")
        if "metric" in values:
            raise PotstillError(f"{file}: metric is for tasks on labels; that of questions is F1.")
        listed = next((part for part in ("train", "eval") if isinstance(values.get(part), list)), None)
        if listed is not None:
            raise PotstillError(f"{file}: {listed} is a list, but questions are read from one file: name it.")
        return QuestionTask(name, name, None, (), None, defaults=SPANS, taught=QUESTIONS.taught, files=files)
    task = KINDS[kind](name, name, metric=values.get("metric"), files=files)
    refuse_unread(files, task.columns_read, f"{file}: {{}} is no field of {kind}.")
    if task.metric is not None:
        check_metric(task, task.metric, f"{file}: metric")
    return task


def refuse_unread(files: OwnFiles, read: Sequence[str] | frozenset[str], message: str) -> None:
    """Raise a `PotstillError` for a given field that the kind of task does not read; `{}` stands for its name."""
    always = {"train", "eval", "dev_share"}
    for field in fields(OwnFiles):
        if field.name not in always and field.name not in read and getattr(files, field.name) is not None:
            raise PotstillError(message.format(field.name))


def check_metric(task: OwnTask, metric: str, where: str) -> None:
    """Raise a `PotstillError` if a metric cannot be the score of a task; `where` names the option or the field."""
    if metric not in task.metrics:
        near = _near(metric, task.metrics)
        raise PotstillError(f"{where} is {metric!r}: it must be one of {', '.join(task.metrics)}{near}.")


def split_columns(columns: Sequence[str] | str | None) -> tuple[str, ...] | None:
    """Return names of columns that are given as a list, or with commas between them."""
    if columns is None:
        return None
    words = [columns] if isinstance(columns, str) else columns
    return tuple(name.strip() for word in words for name in word.split(","))


def _beside(file: Path, path: str) -> str:
    """Return a path that is relative to a file; the id of a dataset on the hub stays as it is.

    A hub id is an owner and a name, and is taken for a path only if there is such a folder.
    """
    beside = file.parent / Path(path).expanduser()
    is_id = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path) and not path.lower().endswith(_FILES) and not beside.exists()
    return path if is_id else str(beside)


def _all_beside(file: Path, paths: str | list[str]) -> str | tuple[str, ...]:
    return _beside(file, paths) if isinstance(paths, str) else tuple(_beside(file, path) for path in paths)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name.casefold(), known, 1)
    return f"; the nearest is {near[0]}" if near else ""
