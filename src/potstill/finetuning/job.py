"""All that a fine-tuning needs before the first step: data, tokenizer, rows, and what a teacher says of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from potstill.corpus import load_tokenizer
from potstill.corpus.fingerprint import tokenizer_fingerprint
from potstill.errors import PotstillError
from potstill.finetuning.frozen import FrozenEncoder
from potstill.finetuning.models import load_config, load_task_teacher, load_with_head
from potstill.finetuning.options import TASKS, FinetuneArguments
from potstill.finetuning.predict import soft_targets
from potstill.finetuning.questions import QuestionData
from potstill.finetuning.rows import Rows
from potstill.finetuning.sentences import SentenceData
from potstill.student.loading import model_folder
from potstill.tasks.glue import GLUE
from potstill.tasks.imdb import IMDB

TaskData = SentenceData | QuestionData
LENGTHS = 8
"""Lengths of batches that are recorded: enough that little is padding, few enough that each comes often."""


@dataclass(frozen=True)
class Job:
    """What is trained on and scored, as one model reads it.

    Attributes:
        args: of the run.
        data: of the task.
        tokenizer: of the model.
        train: rows to train on.
        dev: rows to score, by split.
        hidden_teacher: the teacher, if its hidden states are wanted.
    """

    args: FinetuneArguments
    data: TaskData
    tokenizer: PreTrainedTokenizerFast
    train: Rows
    dev: dict[str, Rows]
    hidden_teacher: PreTrainedModel | None = None

    @classmethod
    def prepare(cls, args: FinetuneArguments, data: TaskData | None = None) -> Job:
        """Read the data of the task, if it is not given, and tokenise it.

        Raises:
            PotstillError: data, tokenizer or config are not there, or cannot be used.
        """
        tokenizer, max_length = _tokenizer(args, args.model or "", "model")
        data = data or load_data(args)
        multiple = _multiple(args, max_length)
        train = data.rows(data.train, tokenizer, max_length, multiple)
        dev = {name: data.rows(split, tokenizer, max_length, multiple) for name, split in data.dev.items()}
        return cls(args, data, tokenizer, train, dev)

    def new_model(self) -> Any:
        """Load the model with a new head, drawn by the seed: `logits` or start and end logits come out."""
        args = self.args
        model = load_with_head(args.model or "", self.data.head, self.tokenizer, args.seed, **self.data.shape())
        return FrozenEncoder.on(model, isinstance(self.data, QuestionData), args.seed) if args.freeze_encoder else model

    def taught(self) -> Job:
        """Return the same job with the soft targets of `args.teacher` beside its rows.

        Raises:
            PotstillError: the teacher is not one for this task, or reads other tokens where it must read the same.
        """
        args, name = self.args, self.args.teacher or ""
        teacher = load_task_teacher(name, self.data.head, self.data.labels)
        tokenizer, max_length = _tokenizer(args, name, "teacher")
        same = tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(self.tokenizer)
        if not same and (args.is_question or args.alpha_cos):
            what = "Answers are places among tokens" if args.is_question else "The cosine is taken token by token"
            raise PotstillError(
                f"{what}, but the teacher {name!r} has another tokenizer than the model: give a teacher with the same "
                f"one{'' if args.is_question else ', or --alpha_cos 0'}."
            )
        if args.alpha_cos:
            widths = teacher.config.hidden_size, load_config(args.model or "").hidden_size
            if widths[0] != widths[1]:
                raise PotstillError(
                    f"The cosine compares hidden states of equal width, but the teacher's are {widths[0]} wide and the "
                    f"model's {widths[1]}: pass --alpha_cos 0."
                )
        if same:
            rows = self.train
        else:
            rows = self.data.rows(self.data.train, tokenizer, max_length, _multiple(args, max_length))
        dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        with args.main_process_first(local=False, desc="soft targets"):
            folder = model_folder(name, "teacher")
            found = soft_targets(teacher.to(args.device), folder, rows, args.per_device_eval_batch_size, dtype)
        if isinstance(self.data, QuestionData):
            tokens = {"soft_start": found["start_logits"], "soft_end": found["end_logits"]}
            train = replace(self.train, tokens=self.train.tokens | tokens)
        else:
            train = replace(self.train, values=self.train.values | {"soft": found["logits"]})
        return replace(self, train=train, hidden_teacher=teacher if args.alpha_cos else None)


def load_data(args: FinetuneArguments) -> TaskData:
    """Read the data of a task.

    Raises:
        TaskDataAbsentError: there is none in the folder given.
        PotstillError: it cannot be read.
    """
    if args.is_question:
        options = args.question_options()
        return QuestionData(args.task or "", args.task_data, options, args.max_train_samples, args.max_eval_samples)
    task = IMDB if args.task == IMDB.name else GLUE[args.task or ""]
    return SentenceData(task, args.task_data, args.max_train_samples, args.max_eval_samples)


def _tokenizer(args: FinetuneArguments, name: str, role: str) -> tuple[PreTrainedTokenizerFast, int]:
    """Return a model's tokenizer, and the longest input that is wanted and that the model can read."""
    config = load_config(name, role)
    tokenizer = load_tokenizer(name, role=role)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise PotstillError(f"The tokenizer of the {role} {name!r} has no token to pad with: set its pad_token.")
        tokenizer.pad_token = tokenizer.eos_token
    positions = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    if config.model_type in ("roberta", "xlm-roberta", "camembert"):
        positions -= config.pad_token_id + 1  # where positions begin
    limit = min(tokenizer.model_max_length, positions)
    wanted = args.max_length or limit
    if wanted > limit and wanted != TASKS[args.task or ""].max_length:
        raise PotstillError(
            f"--max_length is {wanted}, but the {role} {name!r} reads at most {limit} tokens: lower it."
        )
    return tokenizer, min(wanted, limit)


def _multiple(args: FinetuneArguments, max_length: int) -> int:
    recorded = args.cuda_graphs and not args.freeze_encoder and args.device.type == "cuda"
    return max(8, -(-max_length // LENGTHS)) if recorded else 8
