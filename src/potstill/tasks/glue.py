"""The nine tasks of GLUE (Wang et al. 2018, arXiv 1804.07461), in the official download and on the hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from potstill.tasks.sentence import SentenceTask, Table

HUB = "nyu-mll/glue"
SUITE = "glue"
ENTAILMENT = ("entailment", "not_entailment")


def _task(
    name: str,
    title: str,
    labels: tuple[str, ...],
    metrics: tuple[str, ...],
    *,
    official: tuple[str | int, str | int | None, str | int],
    hub: tuple[str, str | None],
    words: bool = False,
    dev: tuple[str, ...] = ("dev",),
    hub_splits: Mapping[str, str] | None = None,
    short_splits: Mapping[str, str] | None = None,
) -> SentenceTask:
    """Make a task. `words` is true if the official download writes labels as words instead of numbers."""
    by_word: dict[Any, int] = {label: number for number, label in enumerate(labels)}
    by_number: dict[Any, int] = {str(number): number for number in range(len(labels))}
    either = {number: number for number in by_number.values()} | by_number | by_word  # files of users may have either
    return SentenceTask(
        name=name,
        title=title,
        labels=labels,
        metrics=metrics,
        official=Table(*official, (by_word if words else by_number) or None),
        hub=Table(*hub, "label", either or None),
        hub_name=HUB,
        hub_config=name,
        dev=dev,
        hub_splits=hub_splits or {"dev": "validation"},
        short_splits=short_splits,
        suite=SUITE,
    )


COLA = _task(
    "cola",
    "CoLA",
    ("unacceptable", "acceptable"),
    ("matthews",),
    official=(3, None, 1),  # no header: source, label, the original's mark, sentence
    hub=("sentence", None),
)
MNLI = _task(
    "mnli",
    "MNLI",
    ("entailment", "neutral", "contradiction"),
    ("accuracy",),
    official=("sentence1", "sentence2", "gold_label"),
    hub=("premise", "hypothesis"),
    words=True,
    dev=("dev_matched", "dev_mismatched"),
    hub_splits={"dev_matched": "validation_matched", "dev_mismatched": "validation_mismatched"},
    short_splits={"dev_matched": "m", "dev_mismatched": "mm"},
)
MRPC = _task(
    "mrpc",
    "MRPC",
    ("not_equivalent", "equivalent"),
    ("accuracy", "f1"),
    official=("#1 String", "#2 String", "Quality"),
    hub=("sentence1", "sentence2"),
)
QNLI = _task(
    "qnli",
    "QNLI",
    ENTAILMENT,
    ("accuracy",),
    official=("question", "sentence", "label"),
    hub=("question", "sentence"),
    words=True,
)
QQP = _task(
    "qqp",
    "QQP",
    ("not_duplicate", "duplicate"),
    ("accuracy", "f1"),
    official=("question1", "question2", "is_duplicate"),
    hub=("question1", "question2"),
)
RTE = _task(
    "rte",
    "RTE",
    ENTAILMENT,
    ("accuracy",),
    official=("sentence1", "sentence2", "label"),
    hub=("sentence1", "sentence2"),
    words=True,
)
SST2 = _task(
    "sst2",
    "SST-2",
    ("negative", "positive"),
    ("accuracy",),
    official=("sentence", None, "label"),
    hub=("sentence", None),
)
STSB = _task(
    "stsb",
    "STS-B",
    (),
    ("pearson", "spearman"),
    official=("sentence1", "sentence2", "score"),
    hub=("sentence1", "sentence2"),
)
WNLI = _task(
    "wnli",
    "WNLI",
    ("not_entailment", "entailment"),
    ("accuracy",),
    official=("sentence1", "sentence2", "label"),
    hub=("sentence1", "sentence2"),
)

GLUE = {task.name: task for task in (COLA, MNLI, MRPC, QNLI, QQP, RTE, SST2, STSB, WNLI)}
"""The nine tasks by name. The macro score does not use this dictionary but the tasks whose suite is `glue`."""
