"""SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018), and files in their format: find an answer in a context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from potstill.tasks.task import Defaults, OwnFiles, Task


@dataclass(frozen=True)
class QuestionTask(Task):
    """A task that asks for the answers to questions in contexts. Its data have SQuAD's format.

    Attributes:
        hub_name: the dataset on the hub; None if there is none, and the data must be local.
        versions: versions of the format, as in the names of files: `train-v1.1.json`.
        no_answer: whether some questions have no answer; None if the data say so.
        files: its files, which a file that declares the task names; None if the options of the run name them.
    """

    hub_name: str | None
    versions: tuple[str, ...]
    no_answer: bool | None = False
    files: OwnFiles | None = None

    own_files: ClassVar[bool] = True
    pipeline: ClassVar[str] = "question-answering"
    by_token: ClassVar[bool] = True

    @property
    def short_names(self) -> dict[str, str]:
        """The two metrics of `score_answers` that papers print, with their short names."""
        return {"exact": "EM", "f1": "F1"}


# BERT's settings; with a teacher, the settings of DistilBERT's published script.
PLAIN, TAUGHT = Defaults(3e-5, 12, 2, 384), Defaults(5e-5, 12, 3, 384)

SQUAD = QuestionTask("squad", "SQuAD 1.1", "rajpurkar/squad", ("1.1",), defaults=PLAIN, taught=TAUGHT)
SQUAD_V2 = QuestionTask("squad_v2", "SQuAD 2.0", "rajpurkar/squad_v2", ("2.0",), True, defaults=PLAIN, taught=TAUGHT)
