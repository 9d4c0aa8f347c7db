"""What a suite for sentence encoders and rerankers is: where its sets are, and how a model is scored on one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from potstill.evaluation.scorers import Scorer


class EncoderSet(Protocol):
    """The data of one set of a suite. It has its own score, in its own column of the tables."""

    @property
    def name(self) -> str:
        """Its name in tables, results and file names."""

    @property
    def rows(self) -> dict[str, int]:
        """Kind of row → number that is used: ``pairs``, ``queries``, ``passages``."""

    @property
    def left_out(self) -> dict[str, int]:
        """Reason → number of rows or queries that are left out: ``without a score``."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what is used."""

    def score(self, scorer: Scorer) -> dict[str, Any]:
        """Return the metrics in percent, the suite's main one also as `score`."""


@dataclass(frozen=True)
class EncoderSuite:
    """The declaration of a suite. Its sets are what the user's files hold.

    Attributes:
        name: the name on the command line. `--NAME_data` names its files.
        title: the name in tables.
        metrics: metric → its short name in tables.
        embeds: whether it needs embeddings. A reranker then cannot be scored.
        read: (files and folders, columns that the user names, `--on_bad_rows`) → the sets.
        find: the folder of all tasks' data → the files and folders of this suite there.
    """

    name: str
    title: str
    metrics: Mapping[str, str]
    embeds: bool
    read: Callable[[Sequence[Path], Sequence[str] | None, Any], Sequence[EncoderSet]]
    find: Callable[[Path], list[Path]]


def in_subfolder(name: str) -> Callable[[Path], list[Path]]:
    """Return a function that finds a suite's data in the subfolder with its name, if there is one."""
    return lambda folder: [folder / name] if (folder / name).is_dir() else []
