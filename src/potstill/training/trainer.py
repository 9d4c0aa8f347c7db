"""A `transformers.Trainer` whose loss is the distillation objective."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import save_fsdp_optimizer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback

from potstill.corpus import Blocks, BlockSplitter, Corpus, Masking, next_tokens
from potstill.corpus.labelling import LabelledBlocks, Labelling, unlabelled
from potstill.corpus.tokenizer import TokenizerSpec, control_ids
from potstill.errors import PotstillError
from potstill.objective import Objective
from potstill.recipe import Recipe
from potstill.student import family_of, is_headless
from potstill.student.fp8 import Fp8, check_device
from potstill.training.block_trainer import BlockTrainer
from potstill.training.checkpoints import load_weights
from potstill.training.encoder_evaluation import encoder_metrics
from potstill.training.evaluation import held_out_metrics
from potstill.training.graphs import Graphed
from potstill.training.parts import Teacher, gather_parts
from potstill.training.progress import headline, held_out_line
from potstill.training.run_record import weights_hash
from potstill.training.sharding import WholeCopy, call_sharded, check_sharding, load_whole_state
from potstill.training.step import DistillationStep
from potstill.training.teachers import TeacherTimes

STUDENT = "student."  # the student's place in the names of the parameters of a step
HELD_OUT_SEED = 0  # the held-out masks are the same for every run, whatever its own seed


class DistillationTrainer(BlockTrainer):
    """Train a student to predict what its teacher predicts. Without a teacher, train a model by masked LM alone.

    It is a `Trainer`: arguments, logging back ends, callbacks, checkpoints and launchers work as they do there. It
    differs in the data (blocks of a prepared corpus, masked on the device), the loss, and the evaluation.

    Args:
        student: the model to train, from `build_student` or any model of a known family.
        corpus: folder written by `prepare`, or an open `Corpus`.
        args: `DistillationArguments`, or `PretrainingArguments` to train without a teacher.
        teacher: model (it is frozen and put in eval mode), folder or hub name. It is required if a loss that compares
            with a teacher has a weight above 0. Otherwise only the evaluation uses it. If the vocabulary of the
            corpus is cut, a named teacher is cut here, and a model has to be cut before (`prune_embeddings`). Several
            teachers must share one vocabulary; `args` say how they are averaged.
        processing_class: tokenizer to save with the student; by default the tokenizer of the corpus.
        callbacks: as in `Trainer`.
        stop_at: share of the training at which to stop with a checkpoint (used to grow a model in stages).
        objective: the loss to minimise, in place of the losses in `args`; see `Objective`.

    Attributes:
        student: the model in training.
        run_control: ends the run; `run_control.clock.elapsed` is the seconds trained so far.
        teacher_times: measures the time of each of several teachers; None with one teacher or none.

    Raises:
        PotstillError: teachers, student, tokenizer and corpus do not fit together.
    """

    shards = True

    def __init__(
        self,
        student: PreTrainedModel,
        corpus: Corpus | str | Path,
        args: Recipe,
        teacher: Teacher | Sequence[Teacher] | None = None,
        processing_class: PreTrainedTokenizerFast | None = None,
        callbacks: list[TrainerCallback] | None = None,
        stop_at: float = 1.0,
        objective: Objective | None = None,
    ) -> None:
        if args.fsdp:
            check_sharding(args)
        parts = gather_parts(student, corpus, args, teacher, processing_class, objective)
        corpus, tokenizer, args = parts.corpus, parts.tokenizer, parts.args
        labelling, self.held_out_labelling = _labellings(
            student, corpus, tokenizer, args, parts.objective.sampled_share
        )
        fp8 = Fp8.of(getattr(args, "fp8", None))
        if fp8 is not None:
            check_device(fp8, args.device, args.bf16)
        step = DistillationStep(student, parts.teachers, parts.objective, args.seed, parts.ensemble, fp8)
        self.splitter: BlockSplitter | None = None
        self._teacher_hashes: list[str] = []
        if args.short_block_size is not None:
            spec = TokenizerSpec.of(tokenizer, "given", corpus.framed)
            self.splitter = BlockSplitter(
                corpus.train.block_size, args.short_block_size, args.short_share, spec, args.short_first
            )
        line = headline(step, corpus.train, args)
        self._whole: WholeCopy | None = None
        if args.fsdp:
            if is_headless(student) or len(step.objective_modules):
                raise PotstillError(
                    "--fsdp is for students with a language-model head, as wide as their teacher: leave it out."
                )
            self._whole = WholeCopy(student, args.should_save)
        super().__init__(step, corpus, args, tokenizer, line, held_out_line, stop_at, callbacks)
        if args.fsdp:
            _ = self.fingerprints  # of the whole teachers
            step.shard_teachers(args.device, args.world_size, torch.bfloat16 if args.bf16 else None)
        else:
            for one in parts.teachers:
                one.to(args.device)
        self.teacher_times: TeacherTimes | None = None
        if len(parts.teachers) > 1 and step.objective.needs_teacher:
            self.teacher_times = TeacherTimes(step, args.device)
            self.add_callback(self.teacher_times)
        # Each of the two lengths is compiled separately: code for any length would be slower for both.
        self.compile_and_record(dynamic=None if self.splitter is None else False)
        recorded = args.records and labelling is not unlabelled
        self.labelling = GraphedLabelling(labelling) if recorded else labelling

    @property
    def step(self) -> DistillationStep:
        """The module that runs each micro-batch, without its wrappers."""
        return self.model

    @property
    def student(self) -> PreTrainedModel:
        """The model in training."""
        return self.step.student

    @property
    def teachers(self) -> tuple[PreTrainedModel, ...]:
        """The frozen teachers."""
        return self.step.teachers

    @property
    def teacher(self) -> PreTrainedModel | None:
        """The first teacher."""
        return self.step.teacher

    @property
    def fingerprints(self) -> dict[str, str]:
        """Hashes of the contents of the corpus and, if a loss reads them, of the teachers."""
        found = {"corpus": self.corpus.fingerprint, **self.sources}
        if self.step.objective.needs_teacher:
            self._teacher_hashes = self._teacher_hashes or [weights_hash(teacher) for teacher in self.teachers]
            found |= {_nth_teacher(number): mine for number, mine in enumerate(self._teacher_hashes, 1)}
        return found

    def compute_losses(self, model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mask a micro-batch and return its losses by name. Some steps first split its blocks into shorter ones."""
        input_ids, sample_index = inputs["input_ids"], inputs["sample_index"]
        progress = self.run_control.progress(self.state)
        if self.splitter is not None and self.splitter.applies(self.state.global_step, progress):
            input_ids, sample_index = self.splitter(input_ids, sample_index)
        self.exclude_first_steps(input_ids.shape)
        labelled = self.labelling(input_ids, sample_index)
        self.step.mark("masking")
        # Around a sharded student `accelerate` puts no autocast.
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.args.bf16):
            return model(*labelled.tensors)

    def held_out(self, blocks: Blocks) -> dict[str, float]:
        """See `held_out_metrics`; `encoder_metrics` without a head.

        With `short_block_size` they are computed again on the same blocks after cutting: `short_loss` and so on.
        """
        return call_sharded(self.step, lambda: self._held_out_of_all(blocks))

    def _held_out_of_all(self, blocks: Blocks) -> dict[str, float]:
        metrics = self._held_out(blocks, self.held_out_labelling)
        if self.splitter is not None:
            split, label = self.splitter, self.held_out_labelling
            short = self._held_out(blocks, lambda *batch: label(*split(*batch)))
            metrics |= {f"short_{name}": value for name, value in short.items()}
        return metrics

    def _held_out(self, blocks: Blocks, labelling: Labelling) -> dict[str, float]:
        shared: dict[str, Any] = {
            "batch_size": self.args.per_device_eval_batch_size,
            "max_samples": self.args.max_eval_samples,
            "process_index": self.args.process_index,
            "num_processes": self.args.world_size,
            "reduce": self.sum_over_processes,
        }
        if is_headless(self.student):
            return encoder_metrics(self.step, blocks, labelling, **shared)
        shared |= {"ensemble": self.step.ensemble, "in_step": bool(self.args.fsdp)}
        return held_out_metrics(self.student, self.teachers, blocks, labelling, **shared)

    @property
    def saved(self) -> PreTrainedModel:
        """The student as it is saved. With `--fsdp` this is a copy, which `gather` brings up to date."""
        return self.student if self._whole is None else self._whole.model

    def gather(self) -> None:
        """Gather a sharded student, so that it can be saved. All processes must call this."""
        if self._whole is not None:
            self._whole.update(self.step, STUDENT)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the student as an ordinary folder."""
        if self._whole is None:
            super().save_model(output_dir, _internal_call)
            return
        self.gather()
        self._save(output_dir)

    def load_trained(self, checkpoint: str | Path) -> None:
        """See `ResumableTrainer.load_trained`."""
        if not isinstance(self.step, FSDPModule):
            super().load_trained(checkpoint)
            return
        load_weights(
            self.student,
            checkpoint,
            lambda state: load_whole_state(self.step, {STUDENT + name: tensor for name, tensor in state.items()}),
        )

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._whole is None:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        plugin = self.accelerator.state.fsdp_plugin
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.step, output_dir)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")


class GraphedLabelling:
    """Labels blocks as `labelling` does, by replaying a CUDA graph.

    Args:
        labelling: a labelling on the device. What it does may depend on the shapes of the blocks alone.
    """

    def __init__(self, labelling: Labelling) -> None:

        def named(input_ids: Tensor, sample_index: Tensor) -> dict[str, Tensor]:
            found = vars(labelling(input_ids, sample_index))
            return {name: tensor for name, tensor in found.items() if tensor is not None}

        self._replayed = Graphed(named)

    def __call__(self, input_ids: Tensor, sample_index: Tensor) -> LabelledBlocks:
        """Return the labelled blocks."""
        return LabelledBlocks(**self._replayed(input_ids, sample_index))


def _nth_teacher(number: int) -> str:
    """Return the name of a teacher in messages; teachers are counted from 1."""
    return "teacher" if number == 1 else f"{ {2: '2nd', 3: '3rd'}.get(number, f'{number}th') } teacher"


def _labellings(
    student: PreTrainedModel,
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    args: Recipe,
    sampled_share: float = 0.0,
) -> tuple[Labelling, Labelling]:
    """Return what labels the blocks in training, and what labels the held-out ones."""
    if is_headless(student):
        return unlabelled, unlabelled
    if family_of(student).causal:
        return next_tokens, next_tokens
    counts = torch.from_numpy(corpus.token_counts)
    special, mask = control_ids(tokenizer), tokenizer.mask_token_id
    rule = (args.masking, args.mlm_probability, args.mlm_smoothing)
    masking = Masking(counts, special, mask, args.seed, *rule, sampled_share=sampled_share)
    return masking.to(args.device), Masking(counts, special, mask, HELD_OUT_SEED, "uniform").to(args.device)
