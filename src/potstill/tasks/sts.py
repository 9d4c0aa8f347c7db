"""Semantic textual similarity: whether cosines of sentences are in the order of human scores (Agirre et al. 2012)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from potstill.errors import PotstillError
from potstill.tasks.metrics import METRICS
from potstill.tasks.pairs import fingerprint_of, read_pairs, stem, table_files
from potstill.tasks.rows import BadRows, OnBadRows
from potstill.tasks.sentence import Row, SentenceTask, Table

COLUMNS = tuple(Table("sentence1", "sentence2", score, None) for score in ("score", "label"))
PAIRS = SentenceTask("sts", "STS", labels=(), metrics=("spearman",), official=Table(1, 2, 0, None), hub=COLUMNS[0])
"""Files of the shared tasks of SemEval have no header: score, sentence, sentence."""

SPLITS = {"train", "dev", "test", "validation"}


class Cosines(Protocol):
    """Anything that embeds sentences."""

    def cosines(self, texts: Sequence[str], others: Sequence[str]) -> NDArray[np.float64]:
        """Return the cosine of each text with its other, (N,)."""


@dataclass(frozen=True)
class StsSet:
    """The pairs of a set.

    Attributes:
        name: ``STS13`` for all files of 2013; else the name of the file.
        parts: name of a file in the set → its pairs.
        left_out: reason → number of rows that are left out: ``without a score``.
    """

    name: str
    parts: dict[str, list[Row]]
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> dict[str, int]:
        """The number of pairs."""
        return {"pairs": sum(map(len, self.parts.values()))}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the pairs."""
        return fingerprint_of(self.parts)

    def score(self, scorer: Cosines) -> dict[str, Any]:
        """Return Spearman's correlation of the cosines with the scores, over all pairs together, and for each file."""
        rows = [row for part in self.parts.values() for row in part]
        found = scorer.cosines([text for text, _, _ in rows], [pair or "" for _, pair, _ in rows])
        whole = METRICS["spearman"](found, [score for *_, score in rows])
        metrics: dict[str, Any] = {"spearman": whole, "score": whole}
        start = 0
        for name, part in self.parts.items() if len(self.parts) > 1 else ():
            of_part = METRICS["spearman"](found[start : start + len(part)], [score for *_, score in part])
            metrics[name] = {"spearman": of_part, "score": of_part}
            start += len(part)
        return metrics


def read_sts(
    sources: Sequence[Path], columns: Sequence[str] | None, on_bad_rows: OnBadRows, option: str = "--sts_data"
) -> list[StsSet]:
    """Read STS files. The files of a year are one set: the benchmark takes the correlation over all their pairs.

    Args:
        sources: files, and folders of files. `YEAR-NAME.tsv` is a file of the year.
        columns: names of the columns of the score and of both sentences, if they have names of their own.
        on_bad_rows: ``stop`` or ``skip``.
        option: the option that names the sources, for messages.

    Raises:
        PotstillError: see `table_files` and `read_pairs`; or two files have the same name.
    """
    tables = COLUMNS if columns is None else (Table(columns[1], columns[2], columns[0], None),)
    sets: dict[str, StsSet] = {}
    for file in table_files(sources, option):
        year = re.fullmatch(r"(?:19|20)(\d\d)-(.+)", stem(file))
        name = f"STS{year[1]}" if year else stem(file)
        if name in SPLITS:
            name = f"{file.resolve().parent.name} {name}"
        bad = BadRows(on_bad_rows)
        rows, without = read_pairs(file, PAIRS, tables, bad, lone_texts=True)
        one, part = sets.setdefault(name, StsSet(name, {})), year[2] if year else name
        if part in one.parts:
            raise PotstillError(f"{file} would be read as {part} of {name}, as another file is: give it another name.")
        one.parts[part] = rows
        for reason, count in (("without a score", without), ("bad", bad.count)):
            if count:
                one.left_out[reason] = one.left_out.get(reason, 0) + count
    return [*sets.values()]
