"""Reranking: put the relevant ones of the passages that are given for a query first. The data are the user's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from potstill.tasks.task import Defaults, Task


@dataclass(frozen=True)
class RerankTask(Task):
    """A task whose model gives a query and a passage one score. Its data are lists of passages, one for each query."""

    pipeline: ClassVar[str] = "text-classification"
    own_files: ClassVar[bool] = True
    ranks: ClassVar[bool] = True

    @property
    def short_names(self) -> dict[str, str]:
        """The two measures of `rank_measures`, with their short names."""
        return {"map": "MAP", "mrr": "MRR"}


RERANK = RerankTask("rerank", "Rerank", defaults=Defaults(5e-5, 32, 3, 256))
