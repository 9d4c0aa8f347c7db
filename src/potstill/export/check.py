"""Compares the logits and the answers of an exported model with those of its source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from scipy.special import logit

from potstill.errors import PotstillError
from potstill.export.embeddings import EmbeddingAgreement, EmbeddingComparison, check_embeddings
from potstill.export.source import Arrays, Source
from potstill.export.texts import embedded_texts

TEXTS = 48
"""Number of real texts in the comparison that every export makes."""

NEAR = 0.05
"""Two scores of a regression are the same if they differ by at most this share of their range."""

MASK_EVERY = 7
"""For a fill-mask model, one token out of this many is masked."""


class Runtime(Protocol):
    """Anything that computes the logits of a model from its inputs."""

    def run(self, inputs: Arrays) -> Arrays:
        """Return the logits by name of output."""


@dataclass(frozen=True)
class Agreement:
    """How far two models are apart.

    Attributes:
        largest: largest difference of two logits.
        spread: largest minus smallest logit of the source. The difference is judged as a share of it.
        same: share of answers that are the same. An answer is the best class of a text or a token, the best token for a
            masked one, the best start and end of a span, or for several labels whether a label is meant. Two scores of
            a regression are the same if they differ by at most 5 % of their range.
        answers: number of answers.
    """

    largest: float
    spread: float
    same: float
    answers: int

    @property
    def relative(self) -> float:
        """Largest difference as a share of the spread."""
        return self.largest / self.spread if self.spread else float(self.largest > 0)

    def __str__(self) -> str:
        return (
            f"logits differ by at most {self.largest:.2g} ({self.relative:.2%} of their range); "
            f"{self.same:.2%} of {self.answers:,} answers are the same"
        )


@dataclass
class Comparison:
    """Compares the logits of source and export, batch by batch.

    Args:
        source: the model as PyTorch runs it.
        exported: the same model in another runtime.
    """

    source: Source
    exported: Runtime
    _regressions: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = field(default_factory=list)
    _largest: float = 0.0
    _lowest: float = float("inf")
    _highest: float = float("-inf")
    _same: int = 0
    _answers: int = 0

    def run(self, inputs: Arrays, counts: bool = True) -> tuple[Arrays, Arrays]:
        """Run both models on a batch, and return the logits of the source and of the export.

        Args:
            inputs: inputs of both models.
            counts: whether the answers count. They do not for random tokens, because neither model was made for them.

        Raises:
            PotstillError: the exported model cannot run the batch, its logits have another shape, or the source's
                logits are not all finite numbers.
        """
        expected, found = self.source.run(inputs), self.exported.run(inputs)
        _check_numbers(self.source, expected)
        for name, source_logits in expected.items():
            export_logits = np.asarray(found[name], np.float32)
            if export_logits.shape != source_logits.shape:
                raise PotstillError(
                    f"The {name} of the export have the shape {export_logits.shape}, but those of the model have "
                    f"{source_logits.shape}."
                )
            self._compare(inputs, source_logits, export_logits, counts)
        return expected, found

    def _compare(
        self, inputs: Arrays, expected: np.ndarray[Any, Any], found: np.ndarray[Any, Any], counts: bool
    ) -> None:
        inside = inputs["attention_mask"].astype(bool)
        task = self.source.head.task
        if task in ("fill-mask", "text-generation", "token-classification"):  # a padded token has no answer
            if task == "fill-mask" and counts:
                hidden = inputs["input_ids"][inside] == self.source.tokenizer.mask_token_id
            expected, found = expected[inside], found[inside]
        elif task == "question-answering":
            expected, found = (np.where(inside, logits, -np.inf) for logits in (expected, found))
        finite = np.isfinite(expected)
        apart = np.abs(expected[finite] - found[finite]).max()
        self._largest = float(np.fmax(self._largest, apart)) if np.isfinite(apart) else float("inf")
        self._lowest = min(self._lowest, float(expected[finite].min()))
        self._highest = max(self._highest, float(expected[finite].max()))
        if not counts:
            return
        if self.source.is_regression:
            self._regressions.append((expected, found))
            return
        if (threshold := self.source.threshold) is not None:
            agree = (expected >= logit(threshold)) == (found >= logit(threshold))
        else:
            agree = expected.argmax(axis=-1) == found.argmax(axis=-1)
        if task == "fill-mask":
            agree = agree[hidden]
        self._same, self._answers = self._same + int(agree.sum()), self._answers + agree.size

    def agreement(self) -> Agreement:
        """Return how far the two models are apart on all batches."""
        spread = self._highest - self._lowest
        if self.source.is_regression:
            near = [np.abs(expected - found) <= max(NEAR * spread, 1e-9) for expected, found in self._regressions]
            same, answers = sum(int(of.sum()) for of in near), sum(of.size for of in near)
        else:
            same, answers = self._same, self._answers
        return Agreement(self._largest, spread, same / answers if answers else 1.0, answers)


def check_source(source: Source) -> None:
    """Run the source on one text, before hours are spent on the export of a diverged model.

    Raises:
        PotstillError: its logits are not all finite numbers.
    """
    found = source.run(_read(source, embedded_texts(1)))
    if source.encoder is not None:
        check_embeddings(source, found)
    else:
        _check_numbers(source, found)


def comparison_of(source: Source, exported: Runtime) -> Comparison | EmbeddingComparison:
    """Return what compares a model with its export: logits, or embeddings of a sentence encoder."""
    return (Comparison if source.encoder is None else EmbeddingComparison)(source, exported)


def _check_numbers(source: Source, logits: Arrays) -> None:
    if not all(np.isfinite(of).all() for of in logits.values()):
        raise PotstillError(
            f"The logits of the model {source.name!r} are not all finite numbers, although its weights are. Its "
            "training diverged, so an export cannot be compared with it: take an earlier checkpoint."
        )


def compare(source: Source, exported: Runtime, seed: int = 0) -> Agreement | EmbeddingAgreement:
    """Compare source and export on real texts and random tokens: short ones, the longest possible, batched and padded.

    Args:
        source: the model as PyTorch runs it.
        exported: the same model in another runtime.
        seed: of the random tokens.

    Raises:
        PotstillError: the exported model cannot run one of the batches.
    """
    comparison = comparison_of(source, exported)
    for inputs in real_batches(source, embedded_texts(TEXTS)):
        comparison.run(inputs)
    for inputs in random_batches(source, seed):
        comparison.run(inputs, counts=False)
    return comparison.agreement()


def real_batches(source: Source, texts: list[str]) -> Iterator[Arrays]:
    """Yield each text alone, then six texts padded to one length, then a batch with one text that is too long."""
    for text in texts:
        yield _read(source, [text])
    yield _read(source, texts[:6])
    yield _read(source, [" ".join(texts), texts[0]])


def random_batches(source: Source, seed: int) -> Iterator[Arrays]:
    """Yield batches of random tokens: the shortest, the longest, and some in which rows are half padding."""
    generator = np.random.default_rng(seed)
    for rows, length in ((1, 2), (3, 17), (1, source.max_length), (2, min(64, source.max_length))):
        ids = generator.integers(len(source.tokenizer), size=(rows, length), dtype=np.int64)
        mask = np.ones_like(ids)
        mask[1:, length // 2 :] = 0
        arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        yield {name: arrays[name] for name in source.inputs}


def _read(source: Source, texts: Iterable[str]) -> Arrays:
    """Return a model's inputs for texts; its task decides whether they get a question or masked tokens."""
    texts = list(texts)
    if source.head.task == "question-answering":
        questions = [f"{' '.join(text.split()[:5])}?" for text in texts]
        return source.tokenise(questions, texts)
    inputs = source.tokenise(texts)
    if source.head.task == "fill-mask":
        inputs["input_ids"] = mask_tokens(inputs["input_ids"], source)
    return inputs


def mask_tokens(ids: np.ndarray[Any, Any], source: Source) -> np.ndarray[Any, Any]:
    """Return (B, L) ids in which every seventh token is masked, but never a special one."""
    special = np.isin(ids, sorted({*source.tokenizer.all_special_ids} - {source.tokenizer.unk_token_id}))
    chosen = (np.arange(ids.shape[1]) % MASK_EVERY == MASK_EVERY // 2) & ~special
    if not chosen.any():
        chosen = ~special
    return np.where(chosen, source.tokenizer.mask_token_id, ids)
