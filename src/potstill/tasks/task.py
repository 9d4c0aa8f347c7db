"""What the rest of the package knows of a task, whatever its data are."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, NamedTuple


class Defaults(NamedTuple):
    """Published settings of a fine-tuning: peak learning rate, rows a step, passes over the data, tokens of an input.

    BERT's paper (Devlin et al. 2019, appendix A.3) names grids. The values here are the middles of them.
    """

    learning_rate: float = 3e-5
    batch_size: int = 32
    epochs: float = 3
    max_length: int = 128


USUAL = Defaults()


@dataclass(frozen=True)
class Task:
    """The declaration of a task. A subclass adds what one kind of data needs.

    `finetune`, `evaluate`, `compare` and `export` read all that they know of a task from its declaration, so that a new
    task is one entry in `potstill.tasks.registry.TASKS`.

    Attributes:
        name: as the command line knows it.
        title: as papers print it.
        suite: the suite it belongs to: `evaluate --suite` runs all tasks of one. The GLUE macro score is the mean over
            the tasks whose suite is `glue`. A task without one is a suite of its own.
        defaults: published settings of its fine-tuning.
        taught: the same with a task teacher; `defaults` if None.
        pipeline: what `transformers.pipeline` calls such tasks, of the class.
        by_token: whether an answer is a place among tokens, of the class. A teacher has to read the same tokens then.
    """

    name: str
    title: str
    _: KW_ONLY
    suite: str | None = None
    defaults: Defaults = USUAL
    taught: Defaults | None = None

    pipeline: ClassVar[str]
    by_token: ClassVar[bool] = False

    @property
    def suite_name(self) -> str:
        """The suite that it is run by: the one it declares, or else its own name."""
        return self.suite or self.name

    @property
    def short_names(self) -> dict[str, str]:
        """Metric or split → the short name that tables print. They print no others beside the score."""
        raise NotImplementedError

    def settings(self, taught: bool) -> Defaults:
        """Return the published settings, with a task teacher or without."""
        return self.taught if taught and self.taught is not None else self.defaults
