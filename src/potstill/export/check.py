"""Does an exported model say what its source says?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from potstill.errors import PotstillError
from potstill.export.source import Arrays, Source
from potstill.export.texts import embedded_texts

TEXTS = 48
"""Real texts of the comparison that is always made."""

NEAR = 0.05
"""Scores of a regression are the same within this share of their range."""

MASK_EVERY = 7
"""Every so many tokens of a text are hidden from a model that is to guess them."""


class Runtime(Protocol):
    """Anything that turns what a model reads into its logits."""

    def run(self, inputs: Arrays) -> Arrays:
        """Return logits by name of output."""


@dataclass(frozen=True)
class Agreement:
    """How far two models are apart.

    Attributes:
        largest: largest difference of two logits.
        spread: largest minus smallest logit of the source, that the difference may be judged by.
        same: share of answers that are the same: the best class of a text or a token, the best token for a hidden one,
            the best start and end of an answer; for a regression the scores within 5 % of their range.
        answers: how many there were.
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
    """Gathers the logits of source and export, batch by batch.

    Args:
        source: the model as PyTorch runs it.
        exported: the same in another runtime.
    """

    source: Source
    exported: Runtime
    _found: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = field(default_factory=list)
    _largest: float = 0.0
    _lowest: float = float("inf")
    _highest: float = float("-inf")
    _same: int = 0
    _answers: int = 0

    def run(self, inputs: Arrays, counts: bool = True) -> tuple[Arrays, Arrays]:
        """Run both models on a batch, and return the logits of the source and of the export.

        Args:
            inputs: what they read.
            counts: whether its answers do. Of tokens drawn at random they are not what either was made for.

        Raises:
            PotstillError: the exported model cannot run it, what it says has another shape, or what the source says is
                no number.
        """
        expected, found = self.source.run(inputs), self.exported.run(inputs)
        _check_numbers(self.source, expected)
        for name, theirs in expected.items():
            mine = np.asarray(found[name], np.float32)
            if mine.shape != theirs.shape:
                raise PotstillError(
                    f"The export's {name} have the shape {mine.shape} where those of the model have {theirs.shape}."
                )
            self._compare(inputs, theirs, mine, counts)
        return expected, found

    def _compare(self, inputs: Arrays, theirs: np.ndarray[Any, Any], mine: np.ndarray[Any, Any], counts: bool) -> None:
        inside = inputs["attention_mask"].astype(bool)
        task = self.source.head.task
        if task in ("fill-mask", "text-generation", "token-classification"):  # a padded token has no answer
            if task == "fill-mask" and counts:
                hidden = inputs["input_ids"][inside] == self.source.tokenizer.mask_token_id
            theirs, mine = theirs[inside], mine[inside]
        elif task == "question-answering":
            theirs, mine = (np.where(inside, logits, -np.inf) for logits in (theirs, mine))
        finite = np.isfinite(theirs)
        apart = np.abs(theirs[finite] - mine[finite]).max()
        self._largest = float(np.fmax(self._largest, apart)) if np.isfinite(apart) else float("inf")
        self._lowest = min(self._lowest, float(theirs[finite].min()))
        self._highest = max(self._highest, float(theirs[finite].max()))
        if not counts:
            return
        if self.source.is_regression:
            self._found.append((theirs, mine))
            return
        agree = theirs.argmax(axis=-1) == mine.argmax(axis=-1)
        if task == "fill-mask":
            agree = agree[hidden]
        self._same, self._answers = self._same + int(agree.sum()), self._answers + agree.size

    def agreement(self) -> Agreement:
        """Return how far the two are apart on all that was run."""
        spread = self._highest - self._lowest
        if self.source.is_regression:
            near = [np.abs(theirs - mine) <= max(NEAR * spread, 1e-9) for theirs, mine in self._found]
            same, answers = sum(int(of.sum()) for of in near), sum(of.size for of in near)
        else:
            same, answers = self._same, self._answers
        return Agreement(self._largest, spread, same / answers if answers else 1.0, answers)


def check_source(source: Source) -> None:
    """Run the source on one text, before hours are spent on the export of a model that says nothing.

    Raises:
        PotstillError: its logits are not all finite numbers.
    """
    _check_numbers(source, source.run(_read(source, embedded_texts(1))))


def _check_numbers(source: Source, logits: Arrays) -> None:
    if not all(np.isfinite(of).all() for of in logits.values()):
        raise PotstillError(
            f"The logits of the model {source.name!r} are not all finite numbers, although its weights are: its "
            "training diverged, so there is nothing that an export could agree with; take an earlier checkpoint."
        )


def compare(source: Source, exported: Runtime, seed: int = 0) -> Agreement:
    """Run source and export over real texts and random tokens: short, as long as can be, batched and padded.

    Args:
        source: the model as PyTorch runs it.
        exported: the same in another runtime.
        seed: of the random tokens.

    Raises:
        PotstillError: the exported model cannot run one of them.
    """
    comparison = Comparison(source, exported)
    for inputs in real_batches(source, embedded_texts(TEXTS)):
        comparison.run(inputs)
    for inputs in random_batches(source, seed):
        comparison.run(inputs, counts=False)
    return comparison.agreement()


def real_batches(source: Source, texts: list[str]) -> Iterator[Arrays]:
    """Yield texts one by one, then some of them padded to one length, and all of them as one that is too long."""
    for text in texts:
        yield _read(source, [text])
    yield _read(source, texts[:6])
    yield _read(source, [" ".join(texts), texts[0]])


def random_batches(source: Source, seed: int) -> Iterator[Arrays]:
    """Yield tokens drawn at random: the shortest, some of odd lengths with half of them padded, and the longest."""
    generator = np.random.default_rng(seed)
    for rows, length in ((1, 2), (3, 17), (1, source.max_length), (2, min(64, source.max_length))):
        ids = generator.integers(len(source.tokenizer), size=(rows, length), dtype=np.int64)
        mask = np.ones_like(ids)
        mask[1:, length // 2 :] = 0
        arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        yield {name: arrays[name] for name in source.inputs}


def _read(source: Source, texts: Iterable[str]) -> Arrays:
    """Return what a model reads of texts: with a question before each, or with tokens hidden, as its task has it."""
    texts = list(texts)
    if source.head.task == "question-answering":
        questions = [f"{' '.join(text.split()[:5])}?" for text in texts]
        return source.tokenise(questions, texts)
    inputs = source.tokenise(texts)
    if source.head.task == "fill-mask":
        inputs["input_ids"] = hide(inputs["input_ids"], source)
    return inputs


def hide(ids: np.ndarray[Any, Any], source: Source) -> np.ndarray[Any, Any]:
    """Return (B, L) ids with every seventh token hidden, special ones never."""
    special = np.isin(ids, sorted({*source.tokenizer.all_special_ids} - {source.tokenizer.unk_token_id}))
    chosen = (np.arange(ids.shape[1]) % MASK_EVERY == MASK_EVERY // 2) & ~special
    if not chosen.any():
        chosen = ~special
    return np.where(chosen, source.tokenizer.mask_token_id, ids)
