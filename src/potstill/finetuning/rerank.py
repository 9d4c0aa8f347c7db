"""Prepares reranking for a model: lists of passages to train on and to score, the head, and the score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from potstill.errors import PotstillError
from potstill.finetuning.rows import Array, Rows
from potstill.finetuning.sentences import Predict, tokenised
from potstill.objective.ranking import RankingObjective
from potstill.tasks.in_memory import dataset_of
from potstill.tasks.ranking import rank_measures
from potstill.tasks.rerank_lists import PassageList, find_file, read_lists, without_duplicates
from potstill.tasks.rows import BadRows, OnBadRows, print_message
from potstill.wording import agreeing, counted

TRAIN, DEV = "train", "dev"

FEATURES = {"text": datasets.Value("string"), "pair": datasets.Value("string"), "label": datasets.Value("float32")}
FEATURES |= {"list": datasets.Value("int64")}

IDENTITY = {"activation_fn": "torch.nn.modules.linear.Identity"}
"""In a config, it tells the CrossEncoder of sentence-transformers to return the score as it is.

Its default is a sigmoid, which makes large scores equal in float32.
"""


class RerankData:
    """The data of a reranker.

    Args:
        files: the files of both splits, from `files_of`.
        columns: see `read_lists`.
        objective: the losses, which say whether labels are needed.
        max_train_samples: number of passages to train on: whole lists, a random sample that is the same for all seeds.
        max_eval_samples: number of passages to score, sampled in the same way.
        on_bad_rows: `stop`: a row that cannot be used is an error; `skip`: it is left out and counted.

    Attributes:
        bad_rows: split → number of rows left out.
        bad_answers: always 0: only questions have such answers.
        labelled: whether the training lists have labels.

    Raises:
        PotstillError: the data cannot be read, have no labels though a loss needs them, or have nothing to compare.
    """

    head = AutoModelForSequenceClassification
    labels: tuple[str, ...] = ()
    bad_answers = 0

    def __init__(
        self,
        files: tuple[Path, Path],
        columns: Sequence[str] | None,
        objective: RankingObjective,
        max_train_samples: int | None = None,
        max_eval_samples: int | None = None,
        on_bad_rows: OnBadRows = "stop",
    ) -> None:
        bad = {name: BadRows(on_bad_rows) for name in (TRAIN, DEV)}
        train = read_lists(files[0], columns, bad[TRAIN])
        train = without_duplicates(str(files[0]), train, bad[TRAIN])
        _check_train(str(files[0]), train, objective)
        self.labelled = train[0].relevant is not None
        scored = read_lists(files[1], columns, bad[DEV], labelled=True)
        dev = [one for one in scored if one.ranks]
        if not dev:
            raise PotstillError(
                f"{files[1]} has no query with both a relevant and an irrelevant passage: check its labels."
            )
        if count := len(scored) - len(dev):
            print_message(
                f"{files[1]}: {count:,} of {len(scored):,} queries {agreeing(count, 'is', 'are')} not scored, because "
                f"all or none of {agreeing(count, 'its', 'their')} passages are relevant."
            )
        self.bad_rows = {name: rows.count for name, rows in bad.items()}
        self.train = _dataset(_sample(train, max_train_samples))
        self.dev = {DEV: _dataset(_sample(dev, max_eval_samples))}

    def shape(self) -> dict[str, Any]:
        """Return the fields of a model's config that describe the task. A trained head of one score is kept."""
        return {"num_labels": 1, "problem_type": None, "sentence_transformers": IDENTITY}

    def rows(self, split: datasets.Dataset, tokenizer: PreTrainedTokenizerFast, max_length: int, multiple: int) -> Rows:
        """Tokenise a split: see `tokenised`. The rows have the column `lists`, and `labels` if there are any."""
        values: dict[str, Array] = {"lists": np.asarray(split["list"][:], np.int64)}
        labels = split["label"][:]
        if labels[0] is not None:
            values["labels"] = np.asarray(labels, np.float32)
        return tokenised(split, tokenizer, max_length, multiple, values)

    def soft_columns(self, logits: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
        """Return a teacher's scores, (rows, 1), as a column of `Rows`, (rows,)."""
        return {}, {"soft": np.asarray(logits["logits"])[:, 0]}

    def score(self, predict: Predict, dev: dict[str, Rows]) -> dict[str, Any]:
        """Return MAP and MRR, and MAP as `score`, in percent.

        Args:
            predict: returns `logits`, (rows, 1).
            dev: the dev split → its rows.

        Raises:
            PotstillError: scores of the model are not finite.
        """
        scores = predict(dev[DEV])["logits"][:, 0]
        wrong = int((~np.isfinite(scores)).sum())
        if wrong:
            raise PotstillError(
                f"The model's scores of {wrong} of the {counted(len(scores), 'passage')} of dev are not finite, so "
                "the model "
                "cannot be scored: train with a lower --learning_rate, or in float32 (--bf16 false --fp16 false)."
            )
        return {**rank_measures(scores, marks_of(dev[DEV]))}


def marks_of(rows: Rows) -> list[list[bool]]:
    """Return whether each row of each list is relevant; the rows of a list follow each other."""
    borders = np.flatnonzero(np.diff(rows.values["lists"])) + 1
    return [(part > 0).tolist() for part in np.split(rows.values["labels"], borders)]


def files_of(
    train_data: Sequence[str] | str | None, eval_data: Sequence[str] | str | None, task_data: str | None
) -> tuple[Path, Path]:
    """Return the files to train on and to score: those that are named, or those in a folder.

    Raises:
        PotstillError: a file is not named and there is no folder to find it in, or the folder does not hold it.
    """
    found = []
    for split, named in ((TRAIN, train_data), (DEV, eval_data)):
        if named is None and task_data is None:
            raise PotstillError(
                f"--{'train' if split == TRAIN else 'eval'}_data is missing: name a file of queries and passages, or a "
                "folder with --task_data."
            )
        if isinstance(named, str):
            found.append(Path(named).expanduser())
        else:  # the options take no more than one file
            found.append(find_file(Path(task_data or "").expanduser(), split))
    return found[0], found[1]


def _check_train(path: str, lists: Sequence[PassageList], objective: RankingObjective) -> None:
    """Check that the losses have something to learn from, and tell of lists that some losses cannot use."""
    if lists[0].relevant is None and objective.reads_labels:
        name = next(loss.name for loss in objective.losses if loss.reads_labels)
        raise PotstillError(
            f"{path} has no labels, so only a teacher can teach: name one with --teacher, and leave {name} out of "
            "--losses."
        )
    lone = sum(len(one.passages) == 1 for one in lists)
    comparing = [loss.name for loss in objective.losses if loss.compares]
    if not lone or not comparing:
        return
    if lone == len(lists) and objective.only_compares:
        raise PotstillError(
            f"{path} has one passage for each query, and {' and '.join(comparing)} compare{'s' * (len(comparing) == 1)}"
            " passages: give several passages for a query, or the loss score_mse."
        )
    print_message(
        f"{path}: {lone:,} of {counted(len(lists), 'query', 'queries')} {agreeing(lone, 'has', 'have')} one passage; "
        f"{' and '.join(comparing)} skip{'s' * (len(comparing) == 1)} {agreeing(lone, 'it', 'them')}."
    )


def _sample(lists: Sequence[PassageList], limit: int | None) -> list[PassageList]:
    """Return lists, in their order, that have together at most `limit` passages; all lists if it is None."""
    kept: set[int] = set()
    count = 0
    for place in np.random.default_rng(0).permutation(len(lists)).tolist():
        size = len(lists[place].passages)
        if limit is None or count + size <= limit or not kept:
            kept.add(place)
            count += size
    return [one for place, one in enumerate(lists) if place in kept]


def _dataset(lists: Sequence[PassageList]) -> datasets.Dataset:
    rows = [
        (one.query, passage, None if one.relevant is None else float(one.relevant[place]), number)
        for number, one in enumerate(lists)
        for place, passage in enumerate(one.passages)
    ]
    columns = dict(zip(FEATURES, map(list, zip(*rows, strict=True)), strict=True))
    return dataset_of(columns, features=datasets.Features(FEATURES))
