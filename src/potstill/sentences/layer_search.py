"""Which layers of a sentence encoder its student starts from, found by measuring embeddings of held-out texts."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from potstill.corpus import Corpus
from potstill.corpus.labelling import LabelledBlocks, unlabelled
from potstill.sentences.encoder import SentenceEncoder
from potstill.sentences.rows_pooling import pool_rows
from potstill.sentences.step import RowFormat, prepare_for_rows
from potstill.student import Reads, family_of
from potstill.training.layer_scores import UntrainedStudents
from potstill.training.layer_search import LayerSearch, search_layers

FEWEST_TEXTS = 128
"""Held-out texts that a search reads, if the corpus has as many."""


class UntrainedEncoders(UntrainedStudents):
    """Scores the encoder that a choice of layers would give, by the mean over texts of 1 − cosine of the embeddings.

    Args:
        encoder: the teacher, in eval mode, as `prepare_for_rows` leaves it.
        batches: held-out blocks of whole texts, on its device.
        rows: finds the texts in a block.
    """

    def __init__(self, encoder: SentenceEncoder, batches: Sequence[LabelledBlocks], rows: RowFormat) -> None:
        self._encoder = encoder
        self._rows = rows
        super().__init__(encoder.model, batches)

    def _read(self, model: PreTrainedModel, batch: LabelledBlocks) -> Tensor:
        """Return the float32 embeddings (N, D) of the texts."""
        rows = self._rows(batch.input_ids)
        states = family_of(model).encode_rows(model, batch.input_ids, rows, Reads(pooled=True))
        pooled = pool_rows(self._encoder.pooling.modes, states.last, rows)
        return self._encoder.finish(pooled)[rows.filled].float()

    def _student(self, layers: Sequence[int]) -> PreTrainedModel:
        student = super()._student(layers)
        student.set_attn_implementation(self._teacher.config._attn_implementation)
        return student


def find_encoder_layers(
    encoder: SentenceEncoder,
    corpus: Corpus,
    rows: RowFormat,
    num_hidden_layers: int | None = None,
    seconds: float = 30.0,
    batch_size: int = 32,
    max_eval_samples: int = 256,
    report: Callable[[str], None] = lambda line: None,
) -> LayerSearch:
    """Find the layers of a sentence encoder with which its student starts best.

    It searches as `find_layers` does. Choices are compared by the mean over held-out texts of 1 − cosine of the
    untrained student's and the teacher's embeddings. Both are pooled, go through the Dense modules and are normalised
    as the teacher's are.

    Args:
        encoder: the teacher; it is not changed.
        corpus: blocks of whole texts. Some are held out.
        rows: finds the texts in a block.
        num_hidden_layers: see `find_layers`; so are the others.
        seconds: time limit.
        batch_size: blocks that are read at once.
        max_eval_samples: of the run's evaluation.
        report: called with lines of progress.

    Raises:
        PotstillError: the corpus has no held-out block, the encoder cannot read blocks of whole texts, or the depth is
            impossible.
    """
    encoder = copy.deepcopy(encoder).eval()
    prepare_for_rows(encoder, "teacher")
    device = encoder.model.device

    def students(blocks: list[int]) -> tuple[UntrainedStudents, int]:
        batches, texts = [], 0
        for start in range(0, len(blocks), batch_size):
            read = corpus.validation.__getitems__(blocks[start : start + batch_size])
            input_ids = read["input_ids"].to(device)
            texts += int((input_ids == rows.first).sum())
            batches.append(unlabelled(input_ids, read["sample_index"].to(device)))
        with torch.no_grad():
            return UntrainedEncoders(encoder, batches, rows), texts

    wanted = math.ceil(FEWEST_TEXTS / rows.per_block)
    return search_layers(
        encoder.model, corpus, num_hidden_layers, students, wanted, seconds, max_eval_samples, report, "texts"
    )
