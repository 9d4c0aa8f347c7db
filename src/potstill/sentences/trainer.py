"""A `transformers.Trainer` that distils a sentence encoder."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import TrainerCallback

from potstill.corpus import Blocks, Corpus
from potstill.corpus.text_rows import slots
from potstill.errors import PotstillError
from potstill.objective import Objective, objective_from
from potstill.recipe import DistillationArguments
from potstill.sentences.encoder import SentenceEncoder
from potstill.sentences.kept_embeddings import EmbeddedBlocks
from potstill.sentences.step import RowFormat, SentenceStep, described
from potstill.sentences.teacher_embeddings import check_reads, keep_embeddings
from potstill.student import usable_length
from potstill.student.weights import check_finite
from potstill.training.block_trainer import BlockTrainer
from potstill.training.compatibility import check_launch
from potstill.training.evaluation import evaluated_batches
from potstill.training.hardware import hardware
from potstill.training.objective_step import autocast_dtype
from potstill.training.run_record import weights_hash
from potstill.wording import counted

COUNTED_BLOCKS = 4096
"""Blocks from which the average number of texts in a block is estimated."""


class SentenceTrainer(BlockTrainer):
    """Train a sentence encoder to give texts the embeddings that its teacher gives them.

    Args:
        student: the encoder to train, from `build_sentence_student`.
        corpus: folder written by `prepare --unit`, or the opened `Corpus`.
        args: options of the run; `losses` replaces the default losses.
        teacher: the encoder to learn from.
        callbacks: as in `Trainer`.
        objective: what is minimised, in place of the losses of `args`.

    Attributes:
        kept_embeddings: with `teacher_embeddings: kept` the record of `keep_embeddings`, once training has begun.

    The arguments are not changed. Without losses those of `default_losses` are used.

    Raises:
        PotstillError: teacher, student, losses and corpus do not fit together.
    """

    def __init__(
        self,
        student: SentenceEncoder,
        corpus: Corpus | str | Path,
        args: DistillationArguments,
        teacher: SentenceEncoder,
        callbacks: list[TrainerCallback] | None = None,
        objective: Objective | None = None,
    ) -> None:
        corpus = corpus if isinstance(corpus, Corpus) else Corpus.open(corpus)
        losses = default_losses(teacher, student) if args.losses is None else args.losses
        objective = objective or objective_from(losses)
        check_run(student, teacher, corpus, objective, args)
        args = copy.copy(args)
        if len(corpus.validation) == 0:
            args.eval_strategy, args.eval_on_start = "no", False
        args.ddp_find_unused_parameters = True  # a pooler has no gradient
        step = SentenceStep(student, teacher, objective, row_format(corpus, student), args.seed)
        self._teacher_hash = ""
        self.kept_embeddings: dict[str, Any] | None = None
        line = _headline(step, corpus, args)
        super().__init__(step, corpus, args, student.tokenizer, line, _held_out_line, callbacks=callbacks)
        step.to_device(args.device)
        self.compile_and_record()

    @property
    def step(self) -> SentenceStep:
        """The module that runs each micro-batch, without its wrappers."""
        return self.model

    @property
    def student(self) -> SentenceEncoder:
        """The encoder in training."""
        return self.step.student

    @property
    def teachers(self) -> tuple[SentenceEncoder, ...]:
        """The frozen teacher."""
        return (self.step.teacher,)

    @property
    def teacher(self) -> None:
        """None: no language model is learnt from."""
        return None

    @property
    def fingerprints(self) -> dict[str, str]:
        """Hashes of the contents of the corpus and of the teacher."""
        return {"corpus": self.corpus.fingerprint, "teacher": self.teacher_hash, **self.sources}

    @property
    def teacher_hash(self) -> str:
        """Hash of the teacher's weights."""
        self._teacher_hash = self._teacher_hash or weights_hash(self.step.teacher)
        return self._teacher_hash

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **options: Any) -> Any:
        """Train as `BlockTrainer.train` does. If the teacher's embeddings are to be kept, they are computed before.

        Raises:
            EmbeddingInterrupted: a signal came meanwhile.
        """
        if self.args.teacher_embeddings == "kept":
            with self.accelerator.autocast():
                dtype = autocast_dtype(self.args.device.type)
            kept, self.kept_embeddings = keep_embeddings(
                self.step, self.corpus, self.args, self.teacher_hash, dtype, self.accelerator.wait_for_everyone
            )
            self.train_dataset = EmbeddedBlocks(self.corpus.train, kept)
        return super().train(resume_from_checkpoint, **options)

    def compute_losses(self, model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses of a micro-batch by name."""
        input_ids = inputs["input_ids"]
        self.exclude_first_steps(input_ids.shape)
        return model(input_ids, inputs["embeddings"]) if "embeddings" in inputs else model(input_ids)

    @torch.no_grad()
    def held_out(self, blocks: Blocks) -> dict[str, float]:
        """Compare student and teacher on held-out texts, in float32.

        Returns:
            `loss`, the objective; and `distance`, the mean over the texts of 1 − cos of the embeddings, if their widths
            are equal.
        """
        size, most = self.args.per_device_eval_batch_size, self.args.max_eval_samples
        sums = torch.zeros(4, device=self.args.device)
        training = self.step.training
        self.step.eval()
        try:
            for batch in evaluated_batches(blocks, size, most, self.args.process_index, self.args.world_size):
                input_ids = batch["input_ids"].to(self.args.device)
                with torch.compiler.set_stance("force_eager"):
                    sums += self._held_out_sums(input_ids)
        finally:
            self.step.train(training)
        loss, count, distance, texts = self.sum_over_processes(sums).tolist()
        metrics = {"loss": loss / count}
        if self.student.width == self.step.teacher.width:
            metrics["distance"] = distance / texts
        return metrics

    def _held_out_sums(self, input_ids: Tensor) -> Tensor:
        """Return (4,): the loss times the blocks, the blocks, the distances of the texts, and the texts."""
        loss = self.step._losses(input_ids)["loss"]
        student, teacher, filled = self.step.embeddings(input_ids)
        distance = student.new_zeros(())
        if student.shape == teacher.shape:
            distance = (1 - F.cosine_similarity(student, teacher, dim=-1))[filled].sum()
        count = len(input_ids)
        return torch.stack([loss * count, loss.new_tensor(count), distance, filled.sum()]).float()


def default_losses(teacher: SentenceEncoder, student: SentenceEncoder) -> dict[str, Any]:
    """Return the losses if a recipe gives none: of the embeddings, and of the last hidden state of every token.

    Embeddings of other widths are compared by the similarities of texts. `embedding_cosine` would see the student's
    embeddings only through a learned map, which does not keep their cosines.
    """
    same_hidden = teacher.model.config.hidden_size == student.model.config.hidden_size
    return {
        "embedding_cosine" if teacher.width == student.width else "similarities": 10.0,
        "hidden_cosine" if same_hidden else "hidden_mse": 1.0,
    }


def row_format(corpus: Corpus, encoder: SentenceEncoder) -> RowFormat:
    """Return how the texts of a corpus are told apart."""
    first, padding = encoder.tokenizer.cls_token_id, encoder.tokenizer.pad_token_id
    chosen = np.unique(np.linspace(0, len(corpus.train) - 1, min(COUNTED_BLOCKS, len(corpus.train))).round())
    ids = corpus.train.__getitems__(chosen.astype(int).tolist())["input_ids"]
    per_block = (ids == first).sum().item() / len(ids)
    return RowFormat(first, padding, slots(corpus.train.block_size), per_block)


def attended_length(corpus: Corpus, rows: RowFormat) -> int:
    """Return how many tokens a token of a corpus attends to: those of its own text, the mean over the tokens."""
    chosen = np.unique(np.linspace(0, len(corpus.train) - 1, min(COUNTED_BLOCKS, len(corpus.train))).round())
    found = rows(corpus.train.__getitems__(chosen.astype(int).tolist())["input_ids"])
    lengths = found.texts[found.inside].bincount().double()
    return max(1, round((lengths.square().sum() / lengths.sum()).item()))


def check_run(
    student: SentenceEncoder,
    teacher: SentenceEncoder,
    corpus: Corpus,
    objective: Objective,
    args: DistillationArguments,
) -> None:
    """Check that all parts of a run fit together.

    Raises:
        PotstillError: the first thing that does not fit, with what to do.
    """
    check_encoders(student, teacher, corpus, objective)
    if args.teacher_embeddings == "kept":
        check_reads(objective)
    check_launch(args)


def check_encoders(student: SentenceEncoder, teacher: SentenceEncoder, corpus: Corpus, objective: Objective) -> None:
    """Check that encoders, losses and corpus fit together.

    Raises:
        PotstillError: the first thing that does not fit, with what to do.
    """
    if corpus.manifest.unit == "blocks":
        raise PotstillError(
            f"The corpus {corpus.folder} holds blocks of running text, but a sentence encoder reads whole texts: "
            "prepare the text again with --unit sentences, or with --unit texts."
        )
    corpus.check_tokenizer(teacher.tokenizer, "the teacher")
    check_finite(teacher.model, "the teacher")
    for role, encoder in (("teacher", teacher), ("student", student)):
        longest = min(encoder.max_length, usable_length(encoder.model.config) or encoder.max_length)
        if longest < corpus.train.block_size:
            raise PotstillError(
                f"The {role} reads at most {longest} tokens but the blocks of {corpus.folder} have "
                f"{corpus.train.block_size}: prepare the text again with a smaller --block_size."
            )
    widths = [encoder.model.config.hidden_size for encoder in (teacher, student)]
    for name in objective.losses:
        if name == "hidden_cosine" and widths[0] != widths[1]:
            raise PotstillError(
                f"losses: hidden_cosine compares hidden states of equal width, but the teacher's are {widths[0]} wide "
                f"and the student's {widths[1]}: replace it by hidden_mse, which learns a projection between them."
            )
        if name in ("soft_targets", "masked_lm", "causal_lm", "logits_mse", "attention_relations"):
            raise PotstillError(
                f"losses: {name} is not for a sentence encoder: choose from embedding_cosine, embedding_mse, "
                "similarities, hidden_cosine and hidden_mse."
            )
    objective.check_nothing_masked()
    objective.check(described(teacher), described(student))


def _headline(step: SentenceStep, corpus: Corpus, args: DistillationArguments) -> str:
    student, teacher = step.student.model.config, step.teacher.model.config
    return (
        f"{student.model_type}, {counted(student.num_hidden_layers, 'layer')}, {student.hidden_size} wide · learns "
        f"from {counted(teacher.num_hidden_layers, 'layer')} by {' + '.join(step.objective.losses)} · "
        f"{counted(len(corpus.train), 'block')} of "
        f"{corpus.train.block_size} tokens, {step.rows.per_block:.1f} texts each · {args.world_size} × "
        f"{hardware(args.device)}"
    )


def _held_out_line(logs: dict[str, float]) -> str:
    if "eval_loss" not in logs:
        return ""
    distance = f", 1 − cosine {logs['eval_distance']:.4f}" if "eval_distance" in logs else ""
    return f"held-out loss {logs['eval_loss']:.4f}{distance}"
