"""The options of `finetune`: `TrainingArguments`, the task, and the weights of a task teacher's losses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from potstill.arguments import RunArguments, option
from potstill.errors import PotstillError
from potstill.finetuning.objective import TaskObjective
from potstill.finetuning.questions import QuestionOptions
from potstill.tasks.questions import QuestionTask
from potstill.tasks.registry import TASKS, find_task
from potstill.tasks.rows import ON_BAD_ROWS, OnBadRows
from potstill.tasks.task import USUAL, Task

OPTIONS_READ = ("potstill.tasks.registry",)
"""Other modules whose contents are in the help of the options."""


def _lengths() -> str:
    """Return the default maximum lengths in words: that of most tasks first, then the tasks with another one."""
    common = USUAL.max_length
    others: dict[int, list[str]] = {}
    for name, task in TASKS.items():
        if task.defaults.max_length != common:
            others.setdefault(task.defaults.max_length, []).append(name)
    return ", ".join([str(common), *(f"for {' and '.join(names)} {length}" for length, names in others.items())])


@dataclass
class FinetuneArguments(RunArguments):
    """Options of `potstill finetune`.

    Raises:
        PotstillError: the task is unknown, or a value is not valid; the message names its field.
    """

    model: str | None = option(None, "Folder or hub name of the model to fine-tune.", required=True)
    task: str | None = option(None, f"Task to fine-tune it on: {', '.join(TASKS)}.", required=True)
    task_data: str | None = option(
        None, "Folder with the data of the task or of all tasks, or one file for SQuAD; the hub's dataset if not given."
    )
    max_length: int | None = option(None, f"Longest input in tokens; {_lengths()} if not given.")
    max_train_samples: int | None = option(
        None, "Number of training rows, a random sample that is the same for all seeds; all if not given."
    )
    max_eval_samples: int | None = option(
        None, "Number of rows of each dev split to score, sampled in the same way; all if not given."
    )
    freeze_encoder: bool = option(
        False, "Do not train the encoder; train a BiLSTM with attention on its hidden states, as was done with ELMo."
    )
    teacher: str | None = option(None, "Folder or hub name of a model that is already fine-tuned on the task.")
    alpha_ce: float = option(0.5, "Weight of the teacher's soft targets.")
    alpha_task: float = option(0.5, "Weight of the labels, if there is a teacher.")
    alpha_cos: float = option(
        0.0, "Weight of the cosine loss between hidden states of model and teacher; their widths must be equal."
    )
    temperature: float = option(2.0, "Temperature of the soft targets.")
    soft_positions: Literal["answer", "all"] = option(
        "answer", "Tokens for the soft targets of a span: those where an answer may start or end, or all."
    )
    without_teacher_too: bool = option(
        True, "With --teacher, also do the same run without it, and report that score too."
    )
    stride: int = option(128, "SQuAD: tokens that two consecutive windows of a context share.")
    max_answer_length: int = option(30, "SQuAD: maximum length of an answer in tokens.")
    n_best: int = option(20, "SQuAD: number of best answers to keep for each question.")
    null_threshold: float = option(
        0.0, "SQuAD 2.0: predict no answer if its score exceeds the best answer's by more than this."
    )
    dev_share: float = option(0.2, "SQuAD from one file: share of the articles to hold out and score.")
    on_bad_answer: Literal["error", "skip"] = option(
        "error", "SQuAD: what to do if the context does not contain an answer at answer_start: error or skip."
    )
    on_bad_rows: OnBadRows = option(
        "stop", "What to do with rows that cannot be used, such as broken lines: stop, or skip and count them."
    )
    seed: int = option(42, "Seed of the head's initial weights, the order of the rows, and dropout.")

    learning_rate: float | None = option(None, "Peak learning rate of AdamW; the task's default if not given.")
    num_train_epochs: float | None = option(None, "Passes over the data; the task's default if not given.")
    per_device_train_batch_size: int | None = option(None, "Rows per device and step; the task's default if not given.")
    per_device_eval_batch_size: int = option(128, "Rows to score at a time.")
    weight_decay: float = option(0.01, "Weight decay of AdamW.")
    warmup_steps: float = option(0.1, "Linear warm-up: below 1 a share of the training, from 1 on a number of steps.")
    bf16: bool | None = option(None, "Compute in bfloat16 under autocast; if not given, on GPUs that support it.")
    cuda_graphs: bool = option(True, "Record a step as a CUDA graph for each length of batch, and replay it.")
    logging_steps: float = option(100, "Number of steps between two lines of the log.")
    metric_for_best_model: str | None = option(
        "score", "Metric by which --load_best_model_at_end chooses; higher is better."
    )
    eval_strategy: str = option("no", "When to score the dev set before the end: no, steps or epoch.")
    save_strategy: str = option("no", "When to save checkpoints: no, steps or epoch; a signal saves one in any case.")
    dataloader_drop_last: bool = option(False, "Leave out the last rows of an epoch if they do not fill a batch.")
    dataloader_num_workers: int = option(
        0, "Processes that make batches; 0, the training process itself, is fast enough."
    )

    def __post_init__(self) -> None:
        defaults = USUAL if self.task is None else find_task(self.task).settings(taught=bool(self.teacher))
        self.learning_rate = defaults.learning_rate if self.learning_rate is None else self.learning_rate
        self.num_train_epochs = defaults.epochs if self.num_train_epochs is None else self.num_train_epochs
        if self.per_device_train_batch_size is None:
            self.per_device_train_batch_size = defaults.batch_size
        self.max_length = defaults.max_length if self.max_length is None else self.max_length
        if self.bf16 is None:
            gpu = torch.cuda.is_available() and not self.use_cpu
            self.bf16 = gpu and not self.fp16 and torch.cuda.is_bf16_supported()
        for name in ("max_length", "max_answer_length", "n_best"):
            self._check(name, getattr(self, name) > 0, "must be above 0")
        self._check("stride", self.stride >= 0, "must be 0 or more")
        for name in ("max_train_samples", "max_eval_samples"):
            value = getattr(self, name)
            self._check(name, value is None or value > 0, "must be above 0")
        for name in ("alpha_ce", "alpha_task", "alpha_cos"):
            self._check(name, 0 <= getattr(self, name) < math.inf, "must be 0 or more")
        self._check("temperature", 0 < self.temperature < math.inf, "must be above 0")
        self._check(
            "alpha_ce",
            not self.teacher or self.alpha_ce + self.alpha_task + self.alpha_cos > 0,
            "is 0, and so is every other weight",
        )
        choices = {"soft_positions": ("answer", "all"), "on_bad_answer": ("error", "skip"), "on_bad_rows": ON_BAD_ROWS}
        for name, values in choices.items():
            self._check(name, getattr(self, name) in values, f"must be {values[0]!r} or {values[1]!r}")
        self._check("freeze_encoder", not (self.freeze_encoder and self.alpha_cos), "does not go with --alpha_cos")
        super().__post_init__()

    @property
    def declared_task(self) -> Task:
        """The declaration of the task.

        Raises:
            PotstillError: no task is named.
        """
        if not self.task:
            raise PotstillError("--task is missing: fine-tuning needs a model and a task.")
        return find_task(self.task)

    @property
    def is_question(self) -> bool:
        """Whether the task is to find answers in a context."""
        return bool(self.task) and isinstance(self.declared_task, QuestionTask)

    def objective(self) -> TaskObjective:
        """Return the losses and their weights."""
        return TaskObjective(self.alpha_ce, self.alpha_task, self.alpha_cos, self.temperature, self.soft_positions)

    def question_options(self) -> QuestionOptions:
        """Return how questions are read and answered."""
        return QuestionOptions(
            stride=self.stride,
            max_answer_length=self.max_answer_length,
            n_best=self.n_best,
            null_threshold=self.null_threshold,
            dev_share=self.dev_share,
            on_bad_answer=self.on_bad_answer,
            on_bad_rows=self.on_bad_rows,
        )
