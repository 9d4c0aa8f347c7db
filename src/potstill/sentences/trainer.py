"""A `transformers.Trainer` that distils a sentence encoder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback

from potstill.corpus import Blocks, Corpus, ShuffledSampler
from potstill.corpus.text_rows import slots
from potstill.errors import PotstillError
from potstill.objective import Objective, objective_from
from potstill.recipe import DistillationArguments
from potstill.sentences.encoder import SentenceEncoder
from potstill.sentences.step import RowFormat, SentenceStep, described
from potstill.student import usable_length
from potstill.student.weights import check_finite
from potstill.training.compatibility import check_launch
from potstill.training.hardware import hardware
from potstill.training.memory import fitting_memory
from potstill.training.resumable import ResumableTrainer
from potstill.training.run_record import weights_hash

LOSSES: dict[str, Any] = {"embedding_cosine": 10.0, "hidden_cosine": 1.0}
"""The losses of a sentence encoder if a recipe gives none: embeddings, and the last hidden state of every token."""

COUNTED_BLOCKS = 4096
"""Blocks from which the average number of texts in a block is estimated."""


class SentenceTrainer(ResumableTrainer):
    """Train a sentence encoder to give texts the embeddings that its teacher gives them.

    Args:
        student: the encoder to train, from `build_sentence_student`.
        corpus: folder written by `prepare --unit`, or the opened `Corpus`.
        args: options of the run; `losses` replaces the default losses.
        teacher: the encoder to learn from.
        callbacks: as in `Trainer`.
        objective: what is minimised, in place of the losses of `args`.

    Raises:
        PotstillError: teacher, student, losses and corpus do not fit together.
    """

    unit = "tokens"

    def __init__(
        self,
        student: SentenceEncoder,
        corpus: Corpus | str | Path,
        args: DistillationArguments,
        teacher: SentenceEncoder,
        callbacks: list[TrainerCallback] | None = None,
        objective: Objective | None = None,
    ) -> None:
        self.corpus = corpus = corpus if isinstance(corpus, Corpus) else Corpus.open(corpus)
        objective = objective or objective_from(args.losses or LOSSES)
        check_encoders(student, teacher, corpus, objective)
        check_launch(args)
        if len(corpus.validation) == 0:
            args.eval_strategy, args.eval_on_start = "no", False
        args.ddp_find_unused_parameters = True  # a pooler has no gradient
        step = SentenceStep(student, teacher, objective, row_format(corpus, student), args.seed)
        sampler = ShuffledSampler(
            len(corpus.train), args.blocks_per_step, args.seed if args.data_seed is None else args.data_seed
        )
        self._lengths: Counter[torch.Size] = Counter()
        self._teacher_hash = ""
        self.layer_search: list[dict[str, Any]] | None = None  # layers are not measured for sentence encoders
        super().__init__(
            step,
            args,
            sampler,
            _headline(step, corpus, args),
            _held_out_line,
            1.0,
            callbacks,
            data_collator=_unchanged,
            train_dataset=corpus.train,
            eval_dataset=corpus.validation if len(corpus.validation) else None,
            processing_class=student.tokenizer,
        )
        step.to_device(args.device)
        if args.torch_compile:
            step.compile_parts(backend=args.torch_compile_backend, mode=args.torch_compile_mode)
        if args.records:
            step.record_graphs()

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
    def trained(self) -> PreTrainedModel:
        """The student's model. Its Dense modules are checkpointed with those that the objective trains."""
        return self.student.model

    @property
    def tokens_per_step(self) -> int:
        """Tokens that all processes read for one step of the optimiser, padding included."""
        return self.args.blocks_per_step * self.corpus.train.block_size

    @property
    def units_per_step(self) -> int:
        """See `tokens_per_step`."""
        return self.tokens_per_step

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the optimiser in an epoch. The last blocks are left out if they do not fill a step."""
        return len(self.sampler) // self.args.blocks_per_step

    @property
    def fingerprints(self) -> dict[str, str]:
        """Hashes of the contents of the corpus and of the teacher."""
        self._teacher_hash = self._teacher_hash or weights_hash(self.step.teacher)
        return {"corpus": self.corpus.fingerprint, "teacher": self._teacher_hash, **self.sources}

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **options: Any) -> Any:
        """Train as `ResumableTrainer.train` does, with the parameters that the student has now."""
        self.step.refresh()
        return super().train(resume_from_checkpoint, **options)

    def compute_losses(self, model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses of a micro-batch by name."""
        input_ids = inputs["input_ids"]
        self._lengths[input_ids.shape] += 1
        if self._lengths[input_ids.shape] <= (2 if self.args.records else 1):  # compiled first, then recorded
            self.run_control.clock.exclude_step()
        return model(input_ids)

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Blocks | None = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Compare student and teacher on held-out texts, in float32.

        Returns:
            `loss`, the objective; and `distance`, the mean over the texts of 1 − cos of the embeddings, if their widths
            are equal.

        Raises:
            PotstillError: there are no held-out blocks, or a batch of them does not fit into memory.
        """
        blocks = self.corpus.validation if eval_dataset is None else eval_dataset
        if len(blocks) == 0:
            raise PotstillError(
                "The corpus has no held-out block to evaluate on: prepare it with a larger --validation_fraction."
            )
        size = self.args.per_device_eval_batch_size
        chosen = np.unique(np.linspace(0, len(blocks) - 1, min(self.args.max_eval_samples, len(blocks))).round())
        batches = [chosen[start : start + size].astype(int).tolist() for start in range(0, len(chosen), size)]
        sums = torch.zeros(4, device=self.args.device)
        training = self.step.training
        self.step.eval()
        try:
            with self.excluded_time(), fitting_memory(self.args, evaluation=True):
                for batch in batches[self.args.process_index :: self.args.world_size]:
                    input_ids = blocks.__getitems__(batch)["input_ids"].to(self.args.device)
                    with torch.compiler.set_stance("force_eager"):
                        sums += self._held_out_sums(input_ids)
                loss, count, distance, texts = self.accelerator.reduce(sums, "sum").tolist()
                metrics = {"loss": loss / count}
                if self.student.width == self.step.teacher.width:
                    metrics["distance"] = distance / texts
                metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
                self.log(metrics)
                self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        finally:
            self.step.train(training)
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

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self._staging is not None and self.args.should_save:  # this is a checkpoint, not just the student
            self.step.save_objective(output_dir or self.args.output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.step.load_objective(resume_from_checkpoint)

    def create_accelerator_and_postprocess(self) -> None:
        """Do as `Trainer` does, but let the step compile its layers itself."""
        backend, self.args.torch_compile_backend = self.args.torch_compile_backend, None
        super().create_accelerator_and_postprocess()
        self.args.torch_compile_backend = backend


def row_format(corpus: Corpus, encoder: SentenceEncoder) -> RowFormat:
    """Return how the texts of a corpus are told apart."""
    first, padding = encoder.tokenizer.cls_token_id, encoder.tokenizer.pad_token_id
    chosen = np.unique(np.linspace(0, len(corpus.train) - 1, min(COUNTED_BLOCKS, len(corpus.train))).round())
    ids = corpus.train.__getitems__(chosen.astype(int).tolist())["input_ids"]
    per_block = (ids == first).sum().item() / len(ids)
    return RowFormat(first, padding, slots(corpus.train.block_size), per_block)


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
    for name in objective.losses:
        if name in ("soft_targets", "masked_lm", "causal_lm", "logits_mse", "attention_relations"):
            raise PotstillError(
                f"losses: {name} is not for a sentence encoder: choose from embedding_cosine, embedding_mse, "
                "similarities, hidden_cosine and hidden_mse."
            )
    objective.check(described(teacher), described(student))


def _headline(step: SentenceStep, corpus: Corpus, args: DistillationArguments) -> str:
    student, teacher = step.student.model.config, step.teacher.model.config
    return (
        f"{student.model_type}, {student.num_hidden_layers} layers, {student.hidden_size} wide · learns from "
        f"{teacher.num_hidden_layers} layers by {' + '.join(step.objective.losses)} · {len(corpus.train):,} blocks of "
        f"{corpus.train.block_size} tokens, {step.rows.per_block:.1f} texts each · {args.world_size} × "
        f"{hardware(args.device)}"
    )


def _held_out_line(logs: dict[str, float]) -> str:
    if "eval_loss" not in logs:
        return ""
    distance = f", 1 − cosine {logs['eval_distance']:.4f}" if "eval_distance" in logs else ""
    return f"held-out loss {logs['eval_loss']:.4f}{distance}"


def _unchanged(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the batch unchanged: `Blocks` already returns whole batches."""
    return batch
