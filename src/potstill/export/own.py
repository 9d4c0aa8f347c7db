"""Scores a model and its export on a task on a user's own files."""

from __future__ import annotations

from typing import Any

import numpy as np

from potstill.errors import PotstillError
from potstill.export.examples import Examples, Logits, Metrics, rows_of_texts
from potstill.export.source import Source
from potstill.export.tags import tag_batches, tag_scores
from potstill.finetuning.own_texts import label_array, text_scores
from potstill.finetuning.rows import sample_rows
from potstill.finetuning.tags import read_words
from potstill.tasks.metrics import NOT_PERCENT
from potstill.tasks.own import MultilabelTask, OwnTask, ScoreTask, TagTask
from potstill.tasks.own_rows import read_labelled
from potstill.tasks.own_tags import read_tagged_file
from potstill.tasks.rows import BadRows
from potstill.tasks.task import OwnFiles


def own_examples(source: Source, task: OwnTask, data: str, limit: int | None, bad: BadRows) -> Examples:
    """Return the rows of a file, and how the logits of a model for the task are scored.

    Args:
        source: the model. Its labels are those of the task, by name.
        task: the task; its `files` name the columns.
        data: the file to score.
        limit: rows to use, spread over the data; all if None.
        bad: takes the rows that cannot be used.

    Raises:
        PotstillError: the model is of another kind, or the file cannot be read or has labels that the model lacks.
    """
    config, files = source.model.config, task.files or OwnFiles()
    names = tuple(str(config.id2label[number]) for number in range(config.num_labels))
    if isinstance(task, TagTask):
        sentences = sample_rows(read_tagged_file(files, data, names, bad), limit)
        read_words(source.tokenizer)
        rows, places = tag_batches(source, sentences["tokens"][:])
        tags = sentences["tags"][:]

        def of_tags(logits: dict[str, Logits]) -> Metrics:
            found = tag_scores(logits["logits"], places, tags, dict(enumerate(names)))
            return found | {"score": task.score_of(found)}

        return Examples(rows, of_tags)
    several = source.threshold is not None
    if source.is_regression != isinstance(task, ScoreTask) or several != isinstance(task, MultilabelTask):
        raise PotstillError(f"The model {source.name!r} is not for {task.title}: fine-tune one on that task.")
    split = sample_rows(read_labelled(task, files, data, names, bad), limit)
    labels = label_array(task, split, len(names))

    def of_texts(logits: dict[str, Logits]) -> Metrics:
        values: Any = np.stack(logits["logits"])
        scored = text_scores(task, values, labels, names, threshold=source.threshold)
        return {name: value for name, value in scored.items() if isinstance(value, float) and name not in NOT_PERCENT}

    pairs = split["pair"][:] if "pair" in split.features else None
    return Examples(rows_of_texts(source, split["text"][:], pairs), of_texts)
