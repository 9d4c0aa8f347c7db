"""Which layers of a teacher its student starts from, found by measuring choices on held-out blocks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from potstill.corpus import Corpus, Masking, next_tokens
from potstill.corpus.labelling import LabelledBlocks, Labelling, unlabelled
from potstill.corpus.masking import masked_per_block
from potstill.corpus.tokenizer import control_ids
from potstill.errors import PotstillError
from potstill.student import choose_layers, family_of, is_headless
from potstill.student.layers import LAYER_RULES, default_depth
from potstill.student.weights import check_finite
from potstill.training.compatibility import check_reading
from potstill.training.evaluation import evaluated_blocks
from potstill.training.layer_scores import LayerScore, UntrainedStudents
from potstill.training.parts import load_teachers
from potstill.wording import counted

FEWEST_BLOCKS, FEWEST_TOKENS = 16, 4096
MASK_SEED = 1  # the masks differ from those of the evaluation, which has seed 0
SHARE = 0.15  # of the tokens of a block that are predicted


@dataclass(frozen=True)
class LayerSearch:
    """What a search found, and what it measured.

    Attributes:
        tried: the score of each choice that was measured, the best one first.
        finished: whether no exchange of one layer makes the best choice better; False if the time was over before.
        seconds: how long the search took.
        blocks: number of held-out blocks that it read.
        tokens: number of tokens that were predicted; of all tokens without a head; of texts for a sentence encoder.
        evaluated_too: whether some of these blocks are among those of the run's evaluation.
        unit: what `tokens` counts: tokens or texts.
    """

    tried: list[LayerScore]
    finished: bool
    seconds: float
    blocks: int
    tokens: int
    evaluated_too: bool
    unit: str = "tokens"

    @property
    def layers(self) -> list[int]:
        """The best choice."""
        return list(self.tried[0].layers)

    def record(self) -> dict[str, Any]:
        """Return the search for a file of JSON."""
        return asdict(self) | {"tried": [score.record() for score in self.tried]}


def find_layers(
    teacher: PreTrainedModel | str,
    corpus: Corpus | str | Path,
    num_hidden_layers: int | None = None,
    seconds: float = 30.0,
    fold_token_types: bool = True,
    batch_size: int = 32,
    max_eval_samples: int = 256,
    report: Callable[[str], None] = lambda line: None,
) -> LayerSearch:
    """Find the layers of a teacher with which its student starts best.

    The loss of untrained students is measured on held-out blocks: masked LM, or causal LM of a causal model. First come
    the students of all rules (see `choose_layers`). Then the best choice so far is improved: one of its layers is
    exchanged for another one of the teacher, as long as that lowers the loss. All layers stay in the teacher's order.
    Where the layers are of several kinds, each choice has the kinds that `Family.adjust_layers` asks for.

    `alternate` is always measured, so the result is never worse than `alternate` on these blocks. A search that is not
    stopped by its time limit gives the same result in each run.

    The blocks are of the validation split. Those that an evaluation of `max_eval_samples` leaves out are taken, if
    they are enough; otherwise the evaluation reads them too. The masks differ from those of the evaluation.

    Args:
        teacher: a language model or an encoder of a known family, or its folder or hub name. Without a head,
            choices are compared by the distance of the last hidden states.
        corpus: folder written by `prepare`, or an open `Corpus`. It has held-out blocks.
        num_hidden_layers: depth of the student; half of the teacher's if None.
        seconds: time limit. A measurement that has begun ends after it.
        fold_token_types: see `build_student`.
        batch_size: blocks that are read at once.
        max_eval_samples: of the run's evaluation.
        report: called with one line for each better choice, and one at the end.

    Raises:
        PotstillError: the corpus has no held-out block; teacher and corpus do not fit together; or the depth is
            impossible.
    """
    corpus = corpus if isinstance(corpus, Corpus) else Corpus.open(corpus)
    check_held_out(corpus)
    if isinstance(teacher, str):
        teacher = load_teachers([teacher], corpus)[0][0]
    else:
        check_finite(teacher, "the teacher")
    check_reading([("teacher", teacher)], corpus, corpus.tokenizer())

    def students(blocks: list[int]) -> tuple[UntrainedStudents, int]:
        batches, headless = _labelled(teacher, corpus, blocks, batch_size), is_headless(teacher)
        tokens = sum(batch.input_ids.numel() if headless else int((batch.labels >= 0).sum()) for batch in batches)
        return UntrainedStudents(teacher, batches, fold_token_types), tokens

    wanted = blocks_to_read(corpus.validation.block_size)
    return search_layers(teacher, corpus, num_hidden_layers, students, wanted, seconds, max_eval_samples, report)


def search_layers(
    teacher: PreTrainedModel,
    corpus: Corpus,
    num_hidden_layers: int | None,
    students: Callable[[list[int]], tuple[UntrainedStudents, int]],
    wanted: int,
    seconds: float,
    max_eval_samples: int,
    report: Callable[[str], None],
    unit: str = "tokens",
) -> LayerSearch:
    """Search among the layers of a teacher; see `find_layers`.

    Args:
        teacher: of the student.
        corpus: has held-out blocks.
        num_hidden_layers: depth of the student; half of the teacher's if None.
        students: given the numbers of held-out blocks, returns what scores choices on them, and how many of `unit`
            they hold. The teacher is in eval mode.
        wanted: number of blocks to measure on.
        seconds: time limit.
        max_eval_samples: of the run's evaluation.
        report: called with one line for each better choice, and one at the end.
        unit: see `LayerSearch`.

    Raises:
        PotstillError: there is no held-out block, or the depth is impossible.
    """
    started = time.monotonic()
    check_held_out(corpus)
    choices = Choices(teacher, num_hidden_layers)
    chosen, evaluated_too = _blocks(corpus, wanted, max_eval_samples)
    was_training = teacher.training
    teacher.eval()
    try:
        scores, number = students(chosen)
        tried, finished = _search(scores, choices, started + seconds, report)
    finally:
        teacher.train(was_training)
    taken = round(time.monotonic() - started, 1)
    report(
        f"layers {_listed(tried[0].layers)} chosen of {counted(len(tried), 'choice')} on "
        f"{counted(len(chosen), 'held-out block')} in "
        f"{taken:.1f} seconds{'' if finished else ', when the time was over'}"
    )
    return LayerSearch(tried, finished, taken, len(chosen), number, evaluated_too, unit)


def check_held_out(corpus: Corpus) -> None:
    """Make sure that there are blocks to measure layers on.

    Raises:
        PotstillError: there are none.
    """
    if len(corpus.validation) == 0:
        raise PotstillError(
            "--layers auto measures layers on held-out blocks, and the corpus has none: name a rule such as --layers "
            "alternate, or prepare the corpus with a larger --validation_fraction."
        )


def blocks_to_read(block_size: int) -> int:
    """Return how many held-out blocks of so many tokens a search reads, if the corpus has as many."""
    return max(FEWEST_BLOCKS, math.ceil(FEWEST_TOKENS / block_size))


class Choices:
    """The choices of layers that a student may start from.

    Args:
        teacher: of the student.
        depth: of the student; half of the teacher's if None.

    Raises:
        PotstillError: the teacher has fewer layers.
    """

    def __init__(self, teacher: PreTrainedModel, depth: int | None) -> None:
        self._adjust = family_of(teacher).adjust_layers
        self._config = teacher.config
        self._all: int = teacher.config.num_hidden_layers
        self._depth = default_depth(self._all) if depth is None else depth
        if self._depth > self._all:
            raise PotstillError(
                f"--layers auto cannot fill {depth} student layers from a teacher of {self._all}: ask for at most "
                f"{self._all}, or list the layers to copy (repeats are allowed)."
            )

    def of_rules(self) -> Iterator[tuple[int, ...]]:
        """Yield the choice of each rule, `alternate` first."""
        for rule in LAYER_RULES:
            yield self._possible(choose_layers(self._all, self._depth, rule))

    def near(self, layers: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """Yield the choices that exchange one layer for another one.

        The last layers are exchanged first: most of these choices begin alike, which makes them cheap to measure.
        """
        for old in sorted(layers, reverse=True):
            for new in range(self._all):
                if new not in layers:
                    yield self._possible(sorted({*layers, new} - {old}))

    def _possible(self, layers: list[int]) -> tuple[int, ...]:
        return tuple(self._adjust(self._config, layers))


def _search(
    students: UntrainedStudents, choices: Choices, end: float, report: Callable[[str], None]
) -> tuple[list[LayerScore], bool]:
    """Return the scores of all choices that were measured, the best one first, and whether the search is complete."""
    tried: dict[tuple[int, ...], LayerScore] = {}

    def is_better(layers: tuple[int, ...]) -> bool:
        """Measure a choice that is new; return whether it is better than all before."""
        if layers in tried:
            return False
        score = students.score(layers)
        better = not tried or _rank(score) < min(map(_rank, tried.values()))
        tried[layers] = score
        if better:
            report(f"layers {_listed(layers)} without training: {score}")
        return better

    def ranked() -> list[LayerScore]:
        return sorted(tried.values(), key=_rank)  # stable: of equal ones, the first that was measured

    for layers in choices.of_rules():
        if tried and time.monotonic() > end:
            return ranked(), False
        is_better(layers)
    improved = True
    while improved:
        improved = False
        best = ranked()[0].layers
        students.start_from(best)
        for layers in choices.near(best):
            if time.monotonic() > end:
                return ranked(), False
            if is_better(layers):
                improved = True
                break
    return ranked(), True


def _rank(score: LayerScore) -> tuple[float, float]:
    """Return what orders scores, the best one first: the loss, then the KL. What is not a number comes last."""
    loss, kl = (math.inf if math.isnan(value) else value for value in (score.loss, score.kl or 0.0))
    return loss, kl


def _blocks(corpus: Corpus, wanted: int, max_eval_samples: int) -> tuple[list[int], bool]:
    """Return the held-out blocks to measure on, and whether some of them are among those of the evaluation."""
    size = len(corpus.validation)
    left = sorted(set(range(size)) - set(evaluated_blocks(size, max_eval_samples)))
    both = len(left) < wanted
    among = list(range(size)) if both else left
    return [among[number] for number in evaluated_blocks(len(among), wanted)], both


def _labelled(teacher: PreTrainedModel, corpus: Corpus, chosen: list[int], batch_size: int) -> list[LabelledBlocks]:
    """Return the labelled blocks in batches, on the teacher's device."""
    labelled = []
    for start in range(0, len(chosen), batch_size):
        blocks = corpus.validation.__getitems__(chosen[start : start + batch_size])
        inputs = blocks["input_ids"].to(teacher.device), blocks["sample_index"].to(teacher.device)
        if is_headless(teacher):
            label: Labelling = unlabelled
        elif family_of(teacher).causal:
            label = _causal
        else:
            label = _masking(corpus).to(teacher.device)
        labelled.append(label(*inputs))
    return labelled


def _masking(corpus: Corpus) -> Masking:
    tokenizer = corpus.tokenizer()
    counts = torch.from_numpy(corpus.token_counts)
    return Masking(counts, control_ids(tokenizer), tokenizer.mask_token_id, MASK_SEED, "uniform", SHARE)


def _causal(input_ids: Tensor, sample_index: Tensor) -> LabelledBlocks:
    """Return the blocks with about as many labels as masked blocks have, evenly spaced: all would take much memory."""
    every = next_tokens(input_ids, sample_index)
    step = max(1, every.labels.shape[1] // masked_per_block(input_ids.shape[1], SHARE))
    return LabelledBlocks(every.input_ids, every.positions[:, ::step], every.labels[:, ::step])


def _listed(layers: Sequence[int]) -> str:
    return ",".join(map(str, layers))
