"""The declaration of a task, which is the same for every kind of data."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, NamedTuple


class Defaults(NamedTuple):
    """Published settings of a fine-tuning: peak learning rate, rows per step, epochs, and tokens of an input.

    BERT's paper (Devlin et al. 2019, appendix A.3) gives grids of values. The defaults here are their middle values.
    """

    learning_rate: float = 3e-5
    batch_size: int = 32
    epochs: float = 3
    max_length: int = 128


USUAL = Defaults()


@dataclass(frozen=True)
class OwnFiles:
    """Where the rows of a task are, and how they are read.

    Attributes:
        train: to train on: a file, a folder that `datasets` saved, the id of a dataset on the hub, or a pattern; or
            several of them, whose rows follow each other.
        eval: the same, to score, each file by itself; None for a part of `train`.
        text_column: the column of the text, or of the words; None for its usual name.
        pair_column: the column of the second text of a pair; None if there is none.
        label_column: the column of the label, the labels, the score or the tags; None for its usual name.
        columns: names of the columns of files whose first line does not name them.
        label_names: a file with the names of the labels, one a line. Files may then write their numbers, from 0.
        label_separator: what stands between the labels of a text in one field; a comma if None.
        dev_share: share of the rows of `train` that is scored if there is no `eval`.
    """

    train: str | tuple[str, ...] | None = None
    eval: str | tuple[str, ...] | None = None
    text_column: str | None = None
    pair_column: str | None = None
    label_column: str | None = None
    columns: tuple[str, ...] | None = None
    label_names: str | None = None
    label_separator: str | None = None
    dev_share: float = 0.2


@dataclass(frozen=True)
class Task:
    """The declaration of a task. A subclass adds the fields that one kind of data needs.

    `finetune`, `evaluate`, `compare` and `export` read everything about a task from its declaration. So a new task is
    one entry in `potstill.tasks.registry.TASKS`.

    Attributes:
        name: the name on the command line.
        title: the name in papers.
        suite: the suite that the task belongs to: `evaluate --suite` runs all tasks of a suite. The GLUE macro score is
            the mean over the tasks whose suite is `glue`. A task without a suite is a suite of its own.
        defaults: published settings of its fine-tuning.
        taught: published settings with a task teacher; `defaults` if None.
        pipeline: the name of such tasks in `transformers.pipeline`; a class attribute.
        by_token: whether an answer is a position among tokens; a class attribute. A teacher must then read the same
            tokens.
        own_files: whether `--train_data` and `--eval_data` name its files; a class attribute.
        ranks: whether its rows are passages in lists, one list for each query; a class attribute. Its losses are those
            of `potstill.objective.ranking`.
    """

    name: str
    title: str
    _: KW_ONLY
    suite: str | None = None
    defaults: Defaults = USUAL
    taught: Defaults | None = None

    pipeline: ClassVar[str]
    by_token: ClassVar[bool] = False
    own_files: ClassVar[bool] = False
    ranks: ClassVar[bool] = False

    @property
    def suite_name(self) -> str:
        """The suite that runs the task: the declared one, or the task's own name."""
        return self.suite or self.name

    @property
    def short_names(self) -> dict[str, str]:
        """Metric or split → its short name in tables. Tables print only these and the score."""
        raise NotImplementedError

    def settings(self, taught: bool) -> Defaults:
        """Return the published settings, with a task teacher or without."""
        return self.taught if taught and self.taught is not None else self.defaults
