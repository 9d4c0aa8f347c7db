"""A `transformers.Trainer` whose loss is the distillation objective."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback

from potstill.corpus import Blocks, BlockSplitter, Corpus, Masking, ShuffledSampler
from potstill.corpus.masking import MaskedBlocks
from potstill.corpus.tokenizer import TokenizerSpec, control_ids
from potstill.errors import PotstillError
from potstill.objective import Objective
from potstill.recipe import Recipe
from potstill.training.evaluation import held_out_metrics
from potstill.training.graphs import Graphed
from potstill.training.memory import fitting_memory
from potstill.training.parts import Teacher, gather_parts
from potstill.training.progress import headline, held_out_line
from potstill.training.resumable import ResumableTrainer
from potstill.training.run_record import weights_hash
from potstill.training.step import DistillationStep
from potstill.training.teachers import TeacherTimes

HELD_OUT_SEED = 0  # the held-out masks are the same for every run, whatever its seed


class DistillationTrainer(ResumableTrainer):
    """Train a student to say what its teacher says; without a teacher, train a model by masked LM alone.

    It is a `Trainer`: arguments, logging back ends, callbacks, checkpoints and launchers work as they do there. What
    differs is the data (blocks of a prepared corpus, masked on the device), the loss, and the evaluation.

    Args:
        student: the model to train, from `build_student` or any model of a known family.
        corpus: folder written by `prepare`, or the opened `Corpus`.
        args: `DistillationArguments`, or `PretrainingArguments` to train without a teacher.
        teacher: model (it is frozen and put in eval mode), folder or hub name. Needed if a loss that compares with a
            teacher has a weight above 0; without such a loss it only serves the evaluation. Several teachers must have
            one vocabulary; `args` say how they become one.
        processing_class: tokenizer to save with the student; the corpus's own if not given.
        callbacks: as in `Trainer`.
        stop_at: share of the training at which to stop with a checkpoint (used to grow a model in stages).
        objective: what is minimised, in place of what `args` say of losses: see `Objective`.

    Attributes:
        student: the model in training.
        run_control: ends the run; `run_control.clock.elapsed` is the seconds trained so far.
        teacher_times: what each of several teachers takes of a step; None where there is but one.

    Raises:
        PotstillError: teachers, student, tokenizer and corpus do not fit together.
    """

    unit = "tokens"

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
        parts = gather_parts(student, corpus, args, teacher, processing_class, objective)
        corpus, tokenizer, args = parts.corpus, parts.tokenizer, parts.args
        counts = torch.from_numpy(corpus.token_counts)
        special, mask = control_ids(tokenizer), tokenizer.mask_token_id
        masking = Masking(counts, special, mask, args.seed, args.masking, args.mlm_probability, args.mlm_smoothing)
        seed = args.seed if args.data_seed is None else args.data_seed
        sampler = ShuffledSampler(len(corpus.train), args.blocks_per_step, seed)
        step = DistillationStep(student, parts.teachers, parts.objective, args.seed, parts.ensemble)
        self.corpus = corpus
        self._lengths: Counter[torch.Size] = Counter()  # how often a batch of such a shape was read
        self.splitter: BlockSplitter | None = None
        self._teacher_hashes: list[str] = []
        if args.short_block_size is not None:
            spec = TokenizerSpec.of(tokenizer, "given")
            self.splitter = BlockSplitter(corpus.train.block_size, args.short_block_size, args.short_share, spec)
        super().__init__(
            step,
            args,
            sampler,
            headline(step, corpus.train, args),
            held_out_line,
            stop_at,
            callbacks,
            data_collator=_as_it_is,
            train_dataset=corpus.train,
            eval_dataset=corpus.validation if len(corpus.validation) else None,
            processing_class=tokenizer,
        )
        for one in parts.teachers:
            one.to(args.device)
        self.teacher_times: TeacherTimes | None = None
        if len(parts.teachers) > 1 and step.objective.needs_teacher:
            self.teacher_times = TeacherTimes(step, args.device)
            self.add_callback(self.teacher_times)
        if args.torch_compile:
            # Two lengths are compiled one by one: code for any length would be slower at both.
            dynamic = None if self.splitter is None else False
            backend, mode = args.torch_compile_backend, args.torch_compile_mode
            self.step.compile_parts(backend=backend, mode=mode, dynamic=dynamic)
        self.masking: Callable[[Tensor, Tensor], MaskedBlocks] = masking.to(args.device)
        if args.records:
            self.step.record_graphs()
            self.masking = GraphedMasking(masking)
        self.held_out_masking = Masking(counts, special, mask, HELD_OUT_SEED, "uniform").to(args.device)

    @property
    def step(self) -> DistillationStep:
        """What is run for each micro-batch, out of its wrappers."""
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
    def tokens_per_step(self) -> int:
        """Tokens that all processes read for one step of the optimiser."""
        return self.args.blocks_per_step * self.corpus.train.block_size

    @property
    def trained(self) -> PreTrainedModel:
        """The student: the teacher's weights are in no checkpoint."""
        return self.student

    @property
    def fingerprints(self) -> dict[str, str]:
        """The corpus and, if a loss reads them, the teachers → a hash of what they hold."""
        found = {"corpus": self.corpus.fingerprint, **self.sources}
        if self.step.objective.needs_teacher:
            self._teacher_hashes = self._teacher_hashes or [weights_hash(teacher) for teacher in self.teachers]
            found |= {_nth_teacher(number): mine for number, mine in enumerate(self._teacher_hashes, 1)}
        return found

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the optimiser in an epoch; blocks that fill no whole one are left out."""
        return len(self.sampler) // self.args.blocks_per_step

    @property
    def units_per_step(self) -> int:
        """Tokens that all processes read for one step of the optimiser."""
        return self.tokens_per_step

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **options: Any) -> Any:
        """Train, as `ResumableTrainer.train` does; the student may have got other parameters since it was given."""
        self.step.refresh()
        return super().train(resume_from_checkpoint, **options)

    def compute_losses(self, model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mask a micro-batch, cut before that if it is the step's turn, and return its losses by name."""
        input_ids, sample_index = inputs["input_ids"], inputs["sample_index"]
        if self.splitter is not None and self.splitter.applies(self.state.global_step):
            input_ids, sample_index = self.splitter(input_ids, sample_index)
        self._lengths[input_ids.shape] += 1
        if self._lengths[input_ids.shape] <= (2 if self.args.records else 1):  # it is compiled, and then recorded
            self.run_control.clock.exclude_step()
        masked = self.masking(input_ids, sample_index)
        self.step.mark("masking")
        return model(masked.input_ids, masked.positions, masked.labels)

    def evaluate(
        self, eval_dataset: Blocks | None = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate student and teachers on held-out blocks: see `held_out_metrics` for what is measured.

        With `short_block_size`, once more on the same blocks cut, as `short_loss` and so on.

        Raises:
            PotstillError: there are no such blocks, or a batch of them does not fit into memory.
        """
        blocks = self.corpus.validation if eval_dataset is None else eval_dataset
        if len(blocks) == 0:
            raise PotstillError(
                "The corpus has no held-out block to evaluate on: prepare it with a larger --validation_fraction."
            )
        with self.excluded_time():
            with fitting_memory(self.args, evaluation=True):
                metrics = self._held_out(blocks, self.held_out_masking)
                if self.splitter is not None:
                    cut, mask = self.splitter, self.held_out_masking
                    short = self._held_out(blocks, lambda *batch: mask(*cut(*batch)))
                    metrics |= {f"short_{name}": value for name, value in short.items()}
            metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self._staging is not None and self.args.should_save:  # a checkpoint, not the student alone
            self.step.save_objective(output_dir or self.args.output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.step.load_objective(resume_from_checkpoint)

    def _held_out(self, blocks: Blocks, masking: Callable[[Tensor, Tensor], MaskedBlocks]) -> dict[str, float]:
        return held_out_metrics(
            self.student,
            self.teachers,
            blocks,
            masking,
            batch_size=self.args.per_device_eval_batch_size,
            max_samples=self.args.max_eval_samples,
            process_index=self.args.process_index,
            num_processes=self.args.world_size,
            reduce=lambda sums: self.accelerator.reduce(sums, "sum"),
            ensemble=self.step.ensemble,
        )

    def create_accelerator_and_postprocess(self) -> None:
        """Do as `Trainer` does, but let the step compile its layers itself."""
        backend, self.args.torch_compile_backend = self.args.torch_compile_backend, None
        super().create_accelerator_and_postprocess()
        self.args.torch_compile_backend = backend


class GraphedMasking:
    """Masks blocks as `masking` does, replayed as a CUDA graph.

    Args:
        masking: on the device.
    """

    def __init__(self, masking: Masking) -> None:
        self._replayed = Graphed(lambda input_ids, sample_index: vars(masking(input_ids, sample_index)))

    def __call__(self, input_ids: Tensor, sample_index: Tensor) -> MaskedBlocks:
        """Return the masked blocks; see `Masking`."""
        return MaskedBlocks(**self._replayed(input_ids, sample_index))


def _nth_teacher(number: int) -> str:
    """Return what messages call a teacher, counted from 1."""
    return "teacher" if number == 1 else f"{ {2: '2nd', 3: '3rd'}.get(number, f'{number}th') } teacher"


def _as_it_is(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Collate nothing: `Blocks` returns whole batches."""
    return batch
