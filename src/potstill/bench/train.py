"""The verb `bench train`: measures the training step of a recipe on this machine."""

from __future__ import annotations

import copy
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)

from potstill.bench.flops import StepFlops, matrix_product_rate, step_flops
from potstill.bench.plain import PlainTraining
from potstill.bench.result import Speed, TrainBench
from potstill.bench.sentences import check_bench_options, given_corpus, is_for_sentences, padding_of, sentence_corpus
from potstill.bench.synthetic import random_corpus
from potstill.bench.train_arguments import BenchTrainArguments
from potstill.corpus import Corpus, load_tokenizer
from potstill.corpus.masking import labelled_per_block
from potstill.errors import PotstillError
from potstill.files import check_output_file
from potstill.json_files import check_finite
from potstill.objective import objective_from
from potstill.sentences.new_student import choose_sentence_sizes, load_sentence_teacher, new_sentence_student
from potstill.sentences.trainer import SentenceTrainer, attended_length
from potstill.student import family_of, load_masked_lm
from potstill.student.family import new_tokenizer_kind
from potstill.training.block_trainer import BlockTrainer
from potstill.training.compile_workers import start_compile_workers
from potstill.training.hardware import hardware
from potstill.training.kept_memory import kept_memory
from potstill.training.memory import fitting_memory
from potstill.training.new_student import new_student
from potstill.training.part_clock import PartClock, synchronise
from potstill.training.parts import load_teachers
from potstill.training.pretrain import ends, initial_model
from potstill.training.trainer import DistillationTrainer
from potstill.versions import versions

RANDOM_WIDTH = 768
"""Width of random models if none is given."""


def bench_train(args: BenchTrainArguments) -> TrainBench:
    """Measure the training step of a recipe on this machine: tokens per second, time by part, utilisation, memory.

    The bench runs the training of `distill`, or with `--pretrain` that of `pretrain`, without logging, evaluating and
    saving. Models and tokens are random unless `--teacher` and `--corpus` are given, which does not change the speed.
    The bench leaves no files. Under `torchrun` all processes are measured together.

    Args:
        args: a recipe, and the options of the bench itself.

    Returns:
        The measurements; `str` of them is a report.

    Raises:
        PotstillError: bad input, or a step does not fit into memory.
    """
    if args.json and args.process_index == 0:
        check_output_file(args.json, "--json", in_folder=True)
    with TemporaryDirectory(prefix="potstill-bench-") as folder:
        args.output_dir = folder
        with fitting_memory(args), kept_memory(args.device):
            result = _measure(args, Path(folder))
    check_finite(asdict(result), "The measurement is no result")
    if args.json and args.process_index == 0:
        result.save(args.json)
    return result


class _Measured(BlockTrainer):
    """A trainer that marks the end of each part of a step on a clock."""

    def attach(self, clock: PartClock) -> None:
        """Mark the parts on this clock from now on."""
        self.step.mark = clock.mark

    def training_step(self, *args: Any, **options: Any) -> Any:
        loss = super().training_step(*args, **options)
        self.step.mark("backward")
        return loss


class _MeasuredTrainer(_Measured, DistillationTrainer):
    """A measured trainer of language models."""


class _MeasuredSentenceTrainer(_Measured, SentenceTrainer):
    """A measured trainer of sentence encoders."""


class _Rounds(TrainerCallback):
    """Starts the clock after the warm-up, and stops it after each round of steps.

    Args:
        clock: gets marks for the parts that the trainer itself does.
        args: numbers of steps and rounds.
        wait_for_everyone: returns when all processes have called it.
        after_round: called after each round.
        started: time when the building of the models began, by `time.perf_counter`.
    """

    def __init__(
        self,
        clock: PartClock,
        args: BenchTrainArguments,
        wait_for_everyone: Callable[[], None],
        after_round: Callable[[], None],
        started: float,
    ) -> None:
        self.clock = clock
        self.warmup, self.steps_per_round, self.rounds = args.bench_warmup, args.steps_per_round, args.rounds
        self.wait_for_everyone = wait_for_everyone
        self.after_round = after_round
        self.started = started
        self.first_step_seconds = 0.0

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mark that the batches of the step are ready."""
        self.clock.mark("data")

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Mark that the optimiser has taken its step and the gradients are cleared."""
        self.clock.mark("optimiser")
        if state.global_step == 1:
            synchronise(self.clock.device)
            self.first_step_seconds = time.perf_counter() - self.started
        measured = state.global_step - self.warmup
        if measured < 0 or measured % self.steps_per_round:
            return
        if measured > 0:
            self.clock.stop()
            self.after_round()
        if len(self.clock.rounds) < self.rounds:
            self.wait_for_everyone()
            self.clock.start()


class _Baseline:
    """The plain training. Each of its rounds follows a round of potstill's own."""

    def __init__(self, build: Callable[[], PlainTraining], args: BenchTrainArguments) -> None:
        self.build = build
        self.args = args
        self.training: PlainTraining | None = None
        self.peak_memory: int | None = None

    def run_round(self) -> None:
        """Run a round of steps. The first call builds the models and warms up before."""
        allocated = _allocated(self.args.device)
        first = self.training is None
        self.training = self.training or self.build()
        try:
            with fitting_memory(self.args):
                if first:
                    self.training.run(self.args.bench_warmup)
                    _reset_peak(self.args.device)
                    self._time_steps(self.training)
                    peak = _peak_memory(self.args.device) if self.args.device.type == "cuda" else None
                    self.peak_memory = None if peak is None else peak - allocated
                else:
                    self._time_steps(self.training)
        except PotstillError as error:
            size = self.args.baseline_batch_size or self.args.per_device_train_batch_size
            raise PotstillError(
                f"The plain step of --baseline does not fit into memory with {size} blocks, because it needs more than "
                "potstill's own: give a smaller --baseline_batch_size."
            ) from error

    def _time_steps(self, training: PlainTraining) -> None:
        training.clock.start()
        training.run(self.args.steps_per_round)
        training.clock.stop()


def _measure(args: BenchTrainArguments, folder: Path) -> TrainBench:
    if is_for_sentences(args):
        return _measure_sentences(args, folder)
    corpus = _corpus(args, folder)
    started = time.perf_counter()
    start_compile_workers(args)
    student, teacher = _models(args, corpus)
    alone = objective_from({"causal_lm" if family_of(student).causal else "masked_lm": 1.0})
    trainer = _MeasuredTrainer(student, corpus, args, teacher, objective=alone if args.pretrain else None)
    labelling, objective = trainer.labelling, trainer.step.objective

    def plain_training() -> PlainTraining:
        student, teacher = _models(args, corpus)  # with the weights that the trainer's models had at the start
        size = args.baseline_batch_size or args.per_device_train_batch_size
        return PlainTraining(student, teacher, objective, corpus.train, labelling, args, size)

    labelled = labelled_per_block(family_of(student).causal, corpus.train.block_size, args.mlm_probability)
    flops = step_flops(student, teacher, objective, corpus.train.block_size, labelled)
    return _run(args, trainer, started, student, teacher, flops, labelled, plain_training)


def _measure_sentences(args: BenchTrainArguments, folder: Path) -> TrainBench:
    check_bench_options(args)
    corpus = sentence_corpus(args, folder)
    started = time.perf_counter()
    start_compile_workers(args)
    teacher = load_sentence_teacher(args.teachers[0], corpus)
    student = new_sentence_student(args, teacher, corpus, choose_sentence_sizes(args, teacher, corpus)[0])
    trainer = _MeasuredSentenceTrainer(student, corpus, args, teacher)
    length = attended_length(corpus, trainer.step.rows)
    flops = step_flops(student.model, teacher.model, trainer.step.objective, length, 0)
    result = _run(args, trainer, started, student.model, teacher.model, flops, 0)
    return replace(result, texts_per_block=trainer.step.rows.per_block, padding=padding_of(corpus, trainer.step.rows))


def _run(
    args: BenchTrainArguments,
    trainer: _Measured,
    started: float,
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    flops: StepFlops,
    labelled: int,
    plain_training: Callable[[], PlainTraining] | None = None,
) -> TrainBench:
    """Train, and return the measurements.

    Args:
        args: of the bench.
        trainer: of the models.
        started: time when the building of the models began.
        student: the model in training.
        teacher: the frozen model.
        flops: of a step.
        labelled: tokens of a block that are predicted.
        plain_training: makes the training of the baseline.
    """
    objective, block_size = trainer.step.objective, trainer.corpus.train.block_size
    baseline = _Baseline(plain_training, args) if args.baseline and plain_training is not None else None
    peak_memory: int | None = None

    def after_round() -> None:
        nonlocal peak_memory
        if peak_memory is None:  # after the first round, because the baseline's models need memory later
            peak_memory = _peak_memory(args.device)
        if baseline is not None:
            baseline.run_round()

    def before_round() -> None:
        trainer.accelerator.wait_for_everyone()
        _reset_peak(args.device)

    clock = PartClock(args.device)
    rounds = _Rounds(clock, args, before_round, after_round, started)
    trainer.add_callback(rounds)
    trainer.attach(clock)
    Trainer.train(trainer)  # not `DistillationTrainer.train`, which handles checkpoints: a signal ends a bench at once
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    accumulated = args.gradient_accumulation_steps

    def speed(clock: PartClock, batch_size: int, peak: int | None) -> Speed:
        tokens = batch_size * accumulated * args.world_size * block_size
        return Speed.of(clock, args.steps_per_round, accumulated, tokens, batch_size, peak)

    ours = speed(clock, args.per_device_train_batch_size, peak_memory)
    plain, ratio = None, None
    if baseline is not None and baseline.training is not None:
        baseline.training.close()
        size = args.baseline_batch_size or args.per_device_train_batch_size
        plain = speed(baseline.training.clock, size, baseline.peak_memory)
        by_round = zip(ours.tokens_per_second_by_round, plain.tokens_per_second_by_round, strict=True)
        ratio = statistics.median(own / baseline_rate for own, baseline_rate in by_round)
    return TrainBench(
        hardware=hardware(args.device),
        on_cuda=args.device.type == "cuda",
        processes=args.world_size,
        dtype=str(dtype).removeprefix("torch."),
        compiled=args.torch_compile,
        recorded=args.records,
        versions=versions("potstill", "torch", "transformers"),
        model=_shape(student),
        teacher=_shape(teacher) if teacher is not None and objective.needs_teacher else None,
        objective=objective.losses,
        block_size=block_size,
        labelled_per_block=labelled,
        gradient_accumulation_steps=accumulated,
        gradient_accumulation_steps_of_recipe=args.accumulation_of_recipe,
        warmup_steps=args.bench_warmup,
        measured_steps=args.rounds * args.steps_per_round,
        seconds_to_first_step=rounds.first_step_seconds,
        speed=ours,
        flops_per_token=flops,
        matrix_product_flops_per_second=matrix_product_rate(args.device, dtype),
        baseline=plain,
        ratio_to_baseline=ratio,
    )


def _corpus(args: BenchTrainArguments, folder: Path) -> Corpus:
    """Open the given corpus, or write one of random tokens that is large enough for all steps."""
    largest = max(args.per_device_train_batch_size, args.baseline_batch_size or 0)
    if args.corpus:
        return given_corpus(args.corpus, largest)
    if name := (*args.teachers, args.tokenizer)[0]:
        tokenizer = load_tokenizer(name)
    else:
        tokenizer = new_tokenizer_kind(args.model_type).meaningless(args.vocab_size, args.block_size)
    # Two steps more than are taken: batches are read ahead, and the end of an epoch would take extra time.
    blocks = largest * args.gradient_accumulation_steps * args.world_size * (args.max_steps + 2)
    return random_corpus(folder / "blocks", blocks, args.block_size, tokenizer, args.seed)


def _models(args: BenchTrainArguments, corpus: Corpus) -> tuple[PreTrainedModel, PreTrainedModel | None]:
    """Return the model to train and its teacher, with the same weights in each call."""
    shape = copy.copy(args)
    shape.hidden_size = args.hidden_size or RANDOM_WIDTH
    shape.max_position_embeddings = max(args.max_position_embeddings, corpus.train.block_size)
    if args.teachers:
        name = args.teachers[0]
        cut = corpus.kept_tokens is not None
        teacher = load_teachers([name], corpus)[0][0] if cut else load_masked_lm(name)
    else:
        tokenizer = corpus.tokenizer()
        depth = args.teacher_layers if not args.pretrain else args.num_hidden_layers or args.teacher_layers
        teacher = initial_model(shape, depth, len(tokenizer), tokenizer.pad_token_id, *ends(tokenizer))
    if args.pretrain:
        return teacher, None
    student = new_student(args, teacher, corpus)
    return student, teacher


def _shape(model: PreTrainedModel) -> dict[str, Any]:
    names = ("model_type", "num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
    return {name: getattr(model.config, name) for name in names} | {"parameters": model.num_parameters()}


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak_memory(device: torch.device) -> int:
    """Return the peak bytes of tensors on a CUDA device since `_reset_peak`, or else those of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 2**10
