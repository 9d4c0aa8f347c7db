"""Scores a model and its export on a task, for every head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import log_softmax

from potstill.errors import PotstillError
from potstill.export.check import Agreement, Comparison, Runtime, comparison_of
from potstill.export.embeddings import EmbeddingAgreement, EmbeddingComparison
from potstill.export.examples import Examples, Logits, Metrics, rows_of_texts
from potstill.export.own import own_examples
from potstill.export.quiet import quiet
from potstill.export.source import EMBEDDING, ENCODER, Arrays, Source
from potstill.export.tags import read_tagged, tag_batches, tag_scores
from potstill.export.texts import read_texts
from potstill.finetuning.rows import sample_rows
from potstill.tasks.labels import ClassNames, match_names
from potstill.tasks.load import TaskDataAbsentError, load_split
from potstill.tasks.metrics import METRICS
from potstill.tasks.own import OWN, OwnTask
from potstill.tasks.own_tables import sources_of
from potstill.tasks.registry import find_task
from potstill.tasks.rows import BadRows, OnBadRows
from potstill.tasks.sentence import SentenceTask, Table
from potstill.tasks.squad import read_squad
from potstill.tasks.squad_answers import find_answers
from potstill.tasks.squad_score import score_answers
from potstill.tasks.squad_windows import make_windows
from potstill.tasks.sts import read_sts
from potstill.wording import counted

ROWS_AT_A_TIME = 8
MASKED_SHARE = 0.15


@dataclass(frozen=True)
class Scores:
    """The metrics of a model and of its export on a task.

    Attributes:
        before: metrics of the source. `score` is the one that is compared.
        after: metrics of the export.
        agreement: of the two models on the same rows.
        bad_rows: number of rows left out because they cannot be used.
    """

    before: Metrics
    after: Metrics
    agreement: Agreement | EmbeddingAgreement
    bad_rows: int = 0

    @property
    def lost(self) -> float:
        """Share of the source's score that the export has lost; below 0 if the export scores higher."""
        before, after = self.before["score"], self.after["score"]
        return (before - after) / abs(before) if before else float(after < before)

    def __str__(self) -> str:
        names = [name for name in self.before if name != "score"]
        metrics = ", ".join(f"{name} {self.before[name]:.2f} → {self.after[name]:.2f}" for name in names)
        left_out = f"; {counted(self.bad_rows, 'bad row')} left out" * bool(self.bad_rows)
        return f"{metrics}; {self.agreement}{left_out}"


@dataclass(frozen=True)
class CheckData:
    """Labelled data, as the inputs of a model.

    Attributes:
        parts: the data; some tasks have several parts, whose metrics are averaged.
        bad_rows: number of rows left out because they cannot be used.
    """

    parts: tuple[Examples, ...]
    bad_rows: int


def read_check_data(
    source: Source, task: str | None, check_data: str | None, max_samples: int | None, on_bad_rows: OnBadRows = "stop"
) -> CheckData:
    """Read labelled data for a model.

    Args:
        source: a model for that task.
        task: for sentences the name of a task of `finetune`, whose development set is scored; or a file that declares a
            task on the user's own files, for any head; or None for the user's own folder with the model's labels, and
            for the other heads.
        check_data: where the data are. For sentences see `load_split`; for sentence encoders `read_sts`; for questions
            a file in SQuAD's format or its folder; for tags see `read_tagged`; for fill-mask text, as `prepare` reads
            it.
        max_samples: rows to use, spread over the data; all if None.
        on_bad_rows: whether a row that cannot be used is an error, or is left out and counted.

    Raises:
        PotstillError: the data cannot be read, or the model is not for them.
    """
    bad = BadRows(on_bad_rows)
    return CheckData(tuple(_examples(source, task, check_data, max_samples, bad)), bad.count)


def score_both(source: Source, exported: Runtime, data: CheckData) -> Scores:
    """Score a model and its export on labelled data.

    Args:
        source: the model that the data were read for.
        exported: the same model in another runtime.
        data: see `read_check_data`.

    Raises:
        PotstillError: the logits are not all finite numbers.
    """
    comparison = comparison_of(source, exported)
    found = [_score(comparison, examples) for examples in data.parts]
    before, after = (
        {name: float(np.mean([metrics[side][name] for metrics in found])) for name in found[0][side]} for side in (0, 1)
    )
    return Scores(before, after, comparison.agreement(), data.bad_rows)


def _score(comparison: Comparison | EmbeddingComparison, examples: Examples) -> tuple[Metrics, Metrics]:
    source = comparison.source
    lengths = [len(row["input_ids"]) for row in examples.rows]
    order = np.argsort(lengths, kind="stable")
    sides: tuple[dict[str, Logits], ...] = ({}, {})
    for start in range(0, len(order), ROWS_AT_A_TIME):
        places = order[start : start + ROWS_AT_A_TIME]
        results = comparison.run(_padded(source, [examples.rows[place] for place in places]))
        for owner, arrays in zip((f"the model {source.name!r}", "the export"), results, strict=True):
            if not all(np.isfinite(array).all() for array in arrays.values()):
                what = "logits" if source.encoder is None else "embeddings"
                raise PotstillError(
                    f"The {what} of {owner} for some rows of --check_data are not finite numbers, so they have no "
                    "score: look for damaged weights, or leave --check_data out."
                )
        for side, arrays in zip(sides, results, strict=True):
            for name, array in arrays.items():
                logits = side.setdefault(name, [np.empty(0)] * len(order))
                for place, row in zip(places, array, strict=True):
                    if source.head.task not in ("text-classification", ENCODER.task):
                        row = row[: lengths[place]]
                    kept = row if examples.keep is None else examples.keep(int(place), row)
                    logits[place] = np.array(kept, np.float32)  # a copy, so that the batch can be freed
    return examples.score(sides[0]), examples.score(sides[1])


def _padded(source: Source, rows: list[Arrays]) -> Arrays:
    longest = max(len(row["input_ids"]) for row in rows)
    filling = {"input_ids": source.tokenizer.pad_token_id or 0}
    return {
        name: np.stack([np.pad(row[name], (0, longest - len(row[name])), constant_values=filling.get(name, 0))
                        for row in rows]).astype(np.int64)
        for name in source.inputs
    }  # fmt: skip


def _examples(
    source: Source, task: str | None, data: str | None, limit: int | None, bad: BadRows
) -> Iterator[Examples]:
    kind = source.head.task
    if source.encoder is not None:
        yield from _pairs(source, task, data, limit, bad)
        return
    declared = None if task is None else find_task(task)
    if declared is not None and declared.pipeline != kind:
        raise PotstillError(f"The model {source.name!r} is for {kind}, not for the task {task}: name another.")
    files = getattr(declared, "files", None)
    if files is not None:
        sources = sources_of(data or files.eval or (), "--check_data") if data or files.eval else []
        if not sources:
            raise PotstillError(f"--check_data is missing, and {task} names no file to score: name one as eval there.")
        data = sources[0]
    elif task in OWN:
        raise PotstillError(f"--task {task} names no columns: name a .yaml file that declares the task.")
    if isinstance(declared, OwnTask):
        for one in sources:
            yield own_examples(source, declared, one, limit, bad)
        return
    if kind == "text-classification":
        described = _sentence_task(source, task)
        for split in described.dev:
            yield _sentences(source, described, split, data, limit, bad)
        return
    if data is None:
        raise PotstillError(f"--check_data is missing: name the data of --task {task}.")
    makers = {"question-answering": _questions, "token-classification": _tagged}
    yield makers.get(kind, _tokens)(source, data, limit, bad)


def _sentence_task(source: Source, name: str | None) -> SentenceTask:
    """Return the task with a name; if there is no name, a task with the model's own labels."""
    config = source.model.config
    labels = () if config.num_labels == 1 else tuple(str(config.id2label[n]) for n in range(config.num_labels))
    if name is None and getattr(config, "problem_type", None) == "multi_label_classification":
        raise PotstillError(
            f"The model {source.name!r} gives a text several labels: declare the task in a .yaml file and name it with "
            "--task."
        )
    if name is None:
        table = Table("text", "text_pair", "label", ClassNames(labels) if labels else None, pair_may_lack=True)
        metrics = ("accuracy", "f1") if len(labels) == 2 else ("accuracy",) if labels else ("pearson", "spearman")
        return SentenceTask("labels", "the data", labels, metrics, table, table)
    task = find_task(name)
    if not isinstance(task, SentenceTask):
        raise PotstillError(
            f"An export cannot be scored on {task.title}, which is declared as {type(task)}: name another task."
        )
    if config.num_labels != max(1, len(task.labels)):
        raise PotstillError(
            f"The model {source.name!r} is not for {task.title}: it is for {source.head.task} with "
            f"{counted(config.num_labels, 'label')}. Name its own task with --task."
        )
    return task


def _sentences(
    source: Source, task: SentenceTask, split: str, data: str | None, limit: int | None, bad: BadRows
) -> Examples:
    if task.name == "labels" and data is not None and not Path(data).expanduser().is_dir():
        raise PotstillError(
            f"--check_data {data} is not a folder: name one with a {split}.jsonl, .tsv or .parquet, or a task with "
            "--task."
        )
    try:
        rows = sample_rows(load_split(task, split, data, "--check_data", bad), limit)
    except TaskDataAbsentError as error:
        if task.name != "labels":
            raise
        raise PotstillError(
            f"--check_data {data} has no {split}.tsv, .jsonl or .parquet: name the folder of such a file, or a "
            "task with --task."
        ) from error
    labels = np.asarray(rows["label"][:])
    names = [str(source.model.config.id2label.get(number, "")) for number in range(len(task.labels))]
    # A model that another program trained may number the same labels in another order.
    number_of = match_names(task.labels, names) or list(range(len(names)))

    def score(logits: dict[str, Logits]) -> Metrics:
        values = np.stack(logits["logits"]) if logits else np.empty((0, 1))
        found = values[:, 0] if task.is_regression else np.asarray(number_of)[values.argmax(axis=1)]
        return task.score(found, labels)

    return Examples(rows_of_texts(source, rows["text"][:], rows["pair"][:] if "pair" in rows.features else None), score)


def _pairs(source: Source, task: str | None, data: str | None, limit: int | None, bad: BadRows) -> Iterator[Examples]:
    """Yield each set of pairs with human scores. Its score is Spearman's correlation of the cosines with them."""
    if task is not None or data is None:
        raise PotstillError(
            f"The model {source.name!r} is a sentence encoder, which --task is not for: name a file or a folder of "
            "pairs with scores as --check_data."
        )
    assert source.encoder is not None
    prompt = source.encoder.prompts.get(source.encoder.default_prompt_name or "", "")
    for one in read_sts([Path(data).expanduser()], None, bad.on_bad_rows, "--check_data"):
        bad.count += one.left_out.get("bad", 0)
        pairs = [(text, pair or "", score) for part in one.parts.values() for text, pair, score in part]
        if limit is not None and limit < len(pairs):
            pairs = [pairs[number * len(pairs) // limit] for number in range(limit)]
        places = {text: place for place, text in enumerate(dict.fromkeys(of for row in pairs for of in row[:2]))}
        ends = np.array([[places[text], places[pair]] for text, pair, _ in pairs])
        scores = [of for *_, of in pairs]

        def score(found: dict[str, Logits], ends: Any = ends, scores: Any = scores) -> Metrics:
            vectors = np.stack(found[EMBEDDING]).astype(np.float64)
            ones, others = vectors[ends[:, 0]], vectors[ends[:, 1]]
            lengths = np.linalg.norm(ones, axis=1) * np.linalg.norm(others, axis=1)
            cosines = (ones * others).sum(axis=1) / np.maximum(lengths, 1e-12)
            spearman = METRICS["spearman"](cosines, scores)
            return {"spearman": spearman, "score": spearman}

        yield Examples(rows_of_texts(source, [prompt + text for text in places]), score)


def _questions(source: Source, data: str, limit: int | None, bad: BadRows) -> Examples:
    squad = read_squad(data, "dev", "skip", bad)
    rows = sample_rows(squad.dataset, limit)
    longest = min(384, source.max_length)
    with quiet():  # it shows a progress bar
        windows = make_windows(rows, source.tokenizer, longest, longest // 3, longest // 6)
    columns = {name: windows[name][:] for name in ("input_ids", "token_type_ids") if name in windows.features}
    inputs = [
        {name: np.asarray(columns[name][n]) if name in columns else np.full(length, name == "attention_mask", np.int64)
         for name in source.inputs}
        for n, length in enumerate(windows["length"][:])
    ]  # fmt: skip

    def score(logits: dict[str, Logits]) -> Metrics:
        impossible = squad.has_impossible
        answers = find_answers(rows, windows, logits["start_logits"], logits["end_logits"], no_answer=impossible)
        found = score_answers(rows, answers.predictions(0.0 if impossible else None))
        return {"exact": found["exact"], "f1": found["f1"], "score": found["f1"]}

    return Examples(inputs, score)


def _tagged(source: Source, data: str, limit: int | None, bad: BadRows) -> Examples:
    sentences = read_tagged(data, source.model.config.id2label, bad)
    if limit is not None and limit < len(sentences):
        sentences = [sentences[number * len(sentences) // limit] for number in range(limit)]
    rows, places = tag_batches(source, [words for words, _ in sentences])
    tags = [numbers for _, numbers in sentences]
    return Examples(rows, lambda logits: tag_scores(logits["logits"], places, tags, source.model.config.id2label))


def _tokens(source: Source, data: str, limit: int | None, bad: BadRows) -> Examples:
    """Ask for each next token of a text, or for 15 % of its tokens that are masked, the same ones in every run."""
    causal = source.head.task == "text-generation"
    generator = np.random.default_rng(0)
    rows, hidden, tokens = [], [], []
    for row in rows_of_texts(source, read_texts(data, limit or 1000)):
        ids = row["input_ids"]
        if causal and len(ids) > 1:
            rows.append(row)
            hidden.append(np.arange(len(ids) - 1))
            tokens.append(ids[1:])
        if causal:
            continue
        maskable = np.flatnonzero(~np.isin(ids, source.tokenizer.all_special_ids))
        if len(maskable) == 0:
            continue
        chosen = np.sort(generator.choice(maskable, max(1, round(MASKED_SHARE * len(maskable))), replace=False))
        rows.append(row | {"input_ids": np.copy(ids)})
        rows[-1]["input_ids"][chosen] = source.tokenizer.mask_token_id
        hidden.append(chosen)
        tokens.append(ids[chosen])
    if not rows:
        raise PotstillError(f"{data} holds no text that the model's tokenizer knows: give text in its language.")

    def keep(number: int, logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the loss of each token, and whether it was guessed. All logits would fill the memory."""
        guesses, wanted = log_softmax(logits[hidden[number]].astype(np.float64), axis=-1), tokens[number]
        return np.stack([-guesses[np.arange(len(wanted)), wanted], guesses.argmax(axis=-1) == wanted])

    def score(kept: dict[str, Logits]) -> Metrics:
        loss, right = np.concatenate(kept["logits"], axis=1).astype(np.float64).mean(axis=1)
        name = "causal-LM loss" if causal else "masked-LM loss"
        return {name: float(loss), "accuracy": 100 * float(right), "score": 100 * float(right)}

    return Examples(rows, score, keep)
