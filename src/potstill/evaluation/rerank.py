"""Reranking: how far up a model puts the relevant ones of the passages that are given for a query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from potstill.errors import PotstillError
from potstill.evaluation.scorers import Scorer
from potstill.evaluation.suite import EncoderSuite, in_subfolder
from potstill.tasks.pairs import fingerprint_of, stem, table_files
from potstill.tasks.ranking import rank_measures
from potstill.tasks.rerank_lists import read_lists
from potstill.tasks.rows import BadRows, OnBadRows


@dataclass(frozen=True)
class RerankSet:
    """The passages of each query; see `EncoderSet`.

    Attributes:
        name: name of the file.
        queries: query → its passages and whether each is relevant.
        left_out: see `EncoderSet`.
    """

    name: str
    queries: dict[str, list[tuple[str, bool]]]
    left_out: dict[str, int]

    @property
    def rows(self) -> dict[str, int]:
        """The numbers of queries and of passages."""
        return {"queries": len(self.queries), "passages": sum(map(len, self.queries.values()))}

    @cached_property
    def fingerprint(self) -> str:
        """See `EncoderSet`."""
        return fingerprint_of(self.queries)

    def score(self, scorer: Scorer) -> dict[str, Any]:
        """Return the means over the queries of average precision (MAP) and reciprocal rank (MRR).

        Of passages with equal scores the irrelevant ones count as ranked first.
        """
        pairs = [(query, passage) for query, passages in self.queries.items() for passage, _ in passages]
        found = scorer.scores([query for query, _ in pairs], [passage for _, passage in pairs])
        return rank_measures(found, [[mark for _, mark in passages] for passages in self.queries.values()])


def read(sources: Sequence[Path], columns: Sequence[str] | None, on_bad_rows: OnBadRows) -> list[RerankSet]:
    """Read files of query, passage and label, or of lists of passages: see `read_lists`. Each file is a set.

    Queries without a relevant passage, or without another one, are left out and counted: every order of their passages
    is as good as any other. The clean sets of TREC-QA leave them out too.

    Args:
        sources: files, and folders of files.
        columns: names of the columns of query, passage and label, if they have names of their own.
        on_bad_rows: ``stop`` or ``skip``.

    Raises:
        PotstillError: see `table_files` and `read_lists`; or no query is left.
    """
    sets = []
    for file in table_files(sources, "--rerank_data"):
        bad = BadRows(on_bad_rows)
        queries: dict[str, list[tuple[str, bool]]] = {}
        for one in read_lists(file, columns, bad, labelled=True, triples=False):
            queries.setdefault(one.query, []).extend(zip(one.passages, one.relevant or (), strict=True))
        marks = {query: {mark for _, mark in passages} for query, passages in queries.items()}
        left_out = {
            "queries without a relevant passage": sum(found == {False} for found in marks.values()),
            "queries without an irrelevant passage": sum(found == {True} for found in marks.values()),
            "bad": bad.count,
        }
        kept = {query: passages for query, passages in queries.items() if len(marks[query]) == 2}
        if not kept:
            raise PotstillError(
                f"{file} has no query with both a relevant and an irrelevant passage: check its labels."
            )
        sets.append(RerankSet(stem(file), kept, {reason: count for reason, count in left_out.items() if count}))
    return sets


SUITE = EncoderSuite(
    "rerank", "Rerank", {"map": "MAP", "mrr": "MRR"}, embeds=False, read=read, find=in_subfolder("rerank")
)
