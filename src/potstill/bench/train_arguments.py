"""The options of `bench train`: those of `distill` and `pretrain`, and those of the measurement."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from potstill.arguments import option
from potstill.recipe import DistillationArguments, PretrainingArguments

ROUNDS = 5  # with a baseline, whose rounds alternate with potstill's


@dataclass
class BenchTrainArguments(DistillationArguments, PretrainingArguments):
    """Options of `potstill bench train`. Any recipe can be given. Its settings for evaluating, saving, logging,
    growing, cutting blocks and the length of training are ignored.
    """

    teacher: list[str] | str | None = option(
        None,
        "Folder or hub name of the teacher, a language model or the folder of a sentence encoder; random weights if "
        "not given.",
        several=True,
    )
    corpus: str | None = option(None, "Folder written by `potstill prepare`; random tokens if not given.")
    output_dir: str | None = option(None, "Not used: a bench leaves no files.")
    num_hidden_layers: int | None = option(  # type: ignore[assignment]
        None, "Layers of the student, half of the teacher's if not given. With --pretrain, layers of the model."
    )
    hidden_size: int | None = option(  # type: ignore[assignment]
        None, "Width of the student. Without --teacher, that of the random teacher or model too; 768 if not given."
    )
    num_attention_heads: int | None = option(
        None, "Attention heads, of the same models as --hidden_size; one for every 64 of the width if not given."
    )
    intermediate_size: int | None = option(
        None, "Width of the feed-forward layers, of the same models; 4 × hidden_size if not given."
    )
    bench_steps: int = option(20, "Optimiser steps to measure.")
    bench_warmup: int = option(5, "Optimiser steps before the measured ones. The first includes compilation.")
    gradient_accumulation_steps: int = option(1, "Micro-batches of a step, but no more than --bench_accumulation.")
    bench_accumulation: int = option(
        8,
        "Micro-batches of a measured step at most. All micro-batches of a large recipe would take too long, and with 8 "
        "the optimiser's share of the time is already small.",
    )
    block_size: int = option(512, "Tokens of a block, unless --corpus is given.")
    vocab_size: int = option(30522, "Entries of the vocabulary, unless --corpus, --teacher or --tokenizer is given.")
    teacher_layers: int = option(12, "Layers of the teacher, unless --teacher is given.")
    pretrain: bool = option(
        False,
        "Measure masked-LM pre-training of a model of the teacher's shape, as `pretrain` does it, instead of "
        "distillation.",
    )
    baseline: bool = option(
        False,
        "Also measure a plain step with the same losses (eager, logits at all positions), in alternating rounds.",
    )
    baseline_batch_size: int | None = option(
        None, "Blocks per device and micro-batch of the baseline; --per_device_train_batch_size if not given."
    )
    json: str | None = option(None, "File to write the measurements to, as JSON.")
    accumulation_of_recipe: int = field(init=False, default=1)
    default_sizes: ClassVar[dict[str, int]] = {}  # sizes that are not given follow from the teacher

    masking: Literal["frequency", "uniform"] | None = option(  # type: ignore[assignment]
        None, "How masked tokens are chosen. If not given, as in `distill`, or with --pretrain as in `pretrain`."
    )

    not_offered: ClassVar[frozenset[str]] = DistillationArguments.not_offered | {
        *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "model", "report_to", "push_to_hub"),
        *("num_train_epochs", "max_steps", "max_train_minutes", "short_block_size", "short_share"),
        *("short_first", "average_weights"),
        *("eval_strategy", "save_strategy", "logging_strategy", "eval_on_start", "logging_first_step"),
        "load_best_model_at_end",
    }
    """Options that are refused or ignored."""

    def __post_init__(self) -> None:
        self.masking = self.masking or ("uniform" if self.pretrain else "frequency")
        self._check("grow", self.grow is None or self.pretrain, "belongs to `pretrain`: add --pretrain")
        for name in ("bench_steps", "bench_accumulation", "block_size", "vocab_size", "teacher_layers"):
            self._check(name, getattr(self, name) > 0, "must be above 0")
        self._check("bench_warmup", self.bench_warmup > 0, "must be above 0, because the first step is slower")
        size = self.baseline_batch_size
        self._check("baseline_batch_size", size is None or size > 0, "must be above 0")
        kept = self.teacher_embeddings != "computed"
        self._check("teacher_embeddings", not kept, "is measured with `computed` only: leave it out")
        self._check("teacher", len(self.teachers) < 2, "names several models, but a bench measures with one: name one")
        self._check("model", self.model is None, "cannot be continued in a bench: give its shape, or leave it out")
        both_given = self.teacher is not None and self.model_type is not None
        self._check("model_type", not both_given, "is for a random teacher: leave it out, because --teacher decides it")
        if self.pretrain:
            self._check("teacher", self.teacher is None, "is not used with --pretrain; leave it out")
            self.losses = None
        self.accumulation_of_recipe = self.gradient_accumulation_steps
        self.gradient_accumulation_steps = min(self.gradient_accumulation_steps, self.bench_accumulation)
        self.max_steps = self.bench_warmup + self.rounds * self.steps_per_round
        self.max_train_minutes = self.resume_from_checkpoint = self.short_block_size = self.average_weights = None
        self.short_share, self.short_first = type(self).short_share, 0.0
        self.eval_strategy = self.save_strategy = self.logging_strategy = "no"
        self.report_to = "none"
        self.eval_on_start = self.logging_first_step = self.load_best_model_at_end = self.push_to_hub = False
        self.output_dir = tempfile.gettempdir()  # until the bench makes its own folder
        super().__post_init__()

    @property
    def rounds(self) -> int:
        """Number of rounds. With a baseline its rounds alternate with potstill's."""
        return min(ROUNDS, self.bench_steps) if self.baseline else 1

    @property
    def steps_per_round(self) -> int:
        """Measured optimiser steps of a round."""
        return math.ceil(self.bench_steps / self.rounds)
