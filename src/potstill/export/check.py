"""Does an exported model say what its source says?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from potstill.export.source import Arrays, Source

SENTENCES = (
    "Yes.",
    "The old distillery stands where the two rivers meet.",
    "It was, by any measure, the best thing that she had ever read; he could not get beyond the first page.",
    "Numbers such as 3,141.59, names such as Ångström, and signs such as €, § and % are text too.",
    "In the beginning there was a mash of malt and water, which was stirred for hours, drained, cooled and left to the "
    "yeast, and what came of it was boiled twice in a pot of copper, for nothing else gave the same spirit.",
)
QUESTION = "Where does the distillery stand?"


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
        same: share of answers that are the same: the largest logit of each row, token or window; for a regression
            the share of scores within 1 % of the spread.
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


def compare(source: Source, exported: Runtime, seed: int = 0) -> Agreement:
    """Run source and export over sentences and over random tokens: short, as long as can be, batched and padded.

    Args:
        source: the model as PyTorch runs it.
        exported: the same in another runtime.
        seed: of the random tokens.
    """
    largest, lowest, highest, same, answers = 0.0, np.inf, -np.inf, 0, 0
    regression = source.head.task == "text-classification" and source.model.config.num_labels == 1
    for inputs in batches(source, seed):
        expected, found = source.run(inputs), exported.run(inputs)
        inside = inputs["attention_mask"].astype(bool)
        for name, theirs in expected.items():
            mine = np.asarray(found[name], np.float32)
            if source.head.task in ("fill-mask", "token-classification"):  # a padded token has no answer
                theirs, mine = theirs[inside], mine[inside]
            elif source.head.task == "question-answering":
                theirs, mine = (np.where(inside, logits, -np.inf) for logits in (theirs, mine))
            finite = np.isfinite(theirs)
            largest = max(largest, float(np.abs(theirs[finite] - mine[finite]).max()))
            lowest, highest = min(lowest, float(theirs[finite].min())), max(highest, float(theirs[finite].max()))
            if regression:
                agree = np.abs(theirs - mine) <= 0.01 * max(highest - lowest, 1e-9)
            else:
                agree = theirs.argmax(axis=-1) == mine.argmax(axis=-1)
            same, answers = same + int(agree.sum()), answers + agree.size
    return Agreement(largest, highest - lowest, same / answers, answers)


def batches(source: Source, seed: int) -> Iterator[Arrays]:
    """Yield what both models are run on."""
    pairs = [QUESTION] * len(SENTENCES) if source.head.task == "question-answering" else None
    for number, sentence in enumerate(SENTENCES):
        yield source.tokenise([sentence], None) if pairs is None else source.tokenise([QUESTION], [sentence])
        if number == len(SENTENCES) - 1:
            yield source.tokenise(pairs or list(SENTENCES), list(SENTENCES) if pairs else None)
    generator = np.random.default_rng(seed)
    for rows, length in ((1, 2), (3, 17), (1, source.max_length), (2, min(64, source.max_length))):
        ids = generator.integers(len(source.tokenizer), size=(rows, length), dtype=np.int64)
        mask = np.ones_like(ids)
        mask[1:, length // 2 :] = 0  # the second row and those after it are half padding
        arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        yield {name: arrays[name] for name in source.inputs}
