"""Prepares a fine-tuning: data, tokenizer, tokenised rows, and a teacher's logits for them."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from potstill.bilstm.config import BiLSTMConfig
from potstill.corpus import load_tokenizer
from potstill.corpus.fingerprint import tokenizer_fingerprint
from potstill.errors import PotstillError
from potstill.finetuning.augment_options import AugmentOptions
from potstill.finetuning.augmented import augmented
from potstill.finetuning.class_weights import weights_of
from potstill.finetuning.data import TaskData, load_data
from potstill.finetuning.finetune_arguments import FinetuneArguments
from potstill.finetuning.frozen import FrozenEncoder, FrozenEncoderConfig
from potstill.finetuning.model_source import model_source
from potstill.finetuning.models import load_config, load_task_teacher, load_with_head
from potstill.finetuning.rows import Array, Rows
from potstill.finetuning.several_teachers import column
from potstill.finetuning.soft_targets import soft_targets
from potstill.finetuning.tags import TagData
from potstill.finetuning.teacher_labels import TeacherLabels, left_out_message
from potstill.finetuning.teaching import Fit, fit_of
from potstill.finetuning.unlabelled import Unlabelled, columns_of, mask_of, read_unlabelled
from potstill.finetuning.unlabelled_words import read_unlabelled_words
from potstill.finetuning.word_classes import Tagger
from potstill.live_line import say
from potstill.precision.simulated import simulate
from potstill.student import takes_token_types, usable_length
from potstill.student.loading import check_vocabulary
from potstill.student.model_files import model_folder
from potstill.student.shallower import chosen_layers, shallower
from potstill.tasks.rows import print_message

LENGTHS = 8
"""Number of lengths of recorded batches. More lengths would save padding; with fewer, each length occurs more often."""


@dataclass(frozen=True)
class Job:
    """The rows to train on and to score, tokenised for one model.

    Attributes:
        args: the options of the run.
        data: the data of the task.
        tokenizer: the model's tokenizer.
        train: rows to train on.
        dev: split → rows to score.
        hidden_teacher: the teacher, if its hidden states are used.
        teacher_on_labels: name → figure on how well the teacher predicts the labels of the training rows, or of the
            rows to score if no training row has a label; of several teachers the folder of each → these.
        layers: the layers of the model that are kept; None for all.
        unlabelled: texts without labels, for the teacher alone; `with_teacher` adds them to `train`. None for none.
        class_weights: (C,) factors of the classes in the loss on the labels; None for 1.
        source: the folder or hub name that the model is loaded from.
    """

    args: FinetuneArguments
    data: TaskData
    tokenizer: PreTrainedTokenizerFast
    train: Rows
    dev: dict[str, Rows]
    hidden_teacher: PreTrainedModel | None = None
    teacher_on_labels: dict[str, Any] | None = None
    layers: list[int] | None = None
    unlabelled: Unlabelled | None = None
    class_weights: torch.Tensor | None = None
    source: str = ""

    @classmethod
    def prepare(cls, args: FinetuneArguments, data: TaskData | None = None) -> Job:
        """Read the data of the task, if it is not given, and tokenise it.

        Raises:
            PotstillError: data, tokenizer or config are missing, or cannot be used.
        """
        source = model_source(args)
        reader = InputReader.of(args, source, "model")
        layers = chosen_layers(reader.config, args.num_hidden_layers, args.layers)
        data = data or load_data(args)
        if args.class_weights and not data.labels:
            raise PotstillError(
                f"--class_weights is {args.class_weights}, but {args.declared_task.title} has no classes: leave it out."
            )
        unlabelled = unlabelled_texts(args, data) if args.unlabelled else None
        if args.augment:
            unlabelled = _with_synthetic(args, data, reader.tokenizer, unlabelled)
        train = reader.rows(data, data.train)
        dev = {name: reader.rows(data, split) for name, split in data.dev.items()}
        if args.ranks:  # whoever loads the reranker then reads as many tokens of a pair as the training did
            reader.tokenizer.model_max_length = reader.max_length
        weights = None
        if args.class_weights:
            weights = weights_of(train, data.labels or ())
        more: dict[str, Any] = {"layers": layers, "unlabelled": unlabelled, "class_weights": weights, "source": source}
        return cls(args, data, reader.tokenizer, train, dev, **more)

    @property
    def drawn(self) -> int:
        """The number of unlabelled rows in an epoch; 0 before `with_teacher` has added them."""
        labelled, ratio = self.train.labelled, self.args.unlabelled_ratio
        if labelled is None:
            return 0
        return len(self.train) - labelled if ratio is None else max(1, round(ratio * labelled))

    def new_model(self) -> Any:
        """Load the model with a head initialised with the seed; it returns `logits`, or start and end logits."""
        args = self.args
        # A frozen encoder and a new BiLSTM have new heads in any case.
        tell = None if args.freeze_encoder or args.new_bilstm else _tell_once
        model = load_with_head(self.source, self.data.head, self.tokenizer, args.seed, tell, **self.data.shape())
        if args.new_bilstm:
            model.draw(args.seed)
        model = model if self.layers is None else shallower(model, self.layers)
        if args.quantization:
            simulate(model, args.quantization, every_token=args.declared_task.pipeline != "text-classification")
        return FrozenEncoder.on(model, args.is_question, args.seed) if args.freeze_encoder else model

    def with_teacher(self) -> Job:
        """Return the same job with the soft targets of `args.teacher`, or of each of several, added to its rows.

        Raises:
            PotstillError: a teacher is not a model for this task, reads other tokens where it must read the same, or
                contradicts the labels.
        """
        args, train, measured = self.args, self.train, {}
        teachers = [self._teacher(name) for name in args.teachers]  # all are checked before one of them computes
        texts = None
        if self.unlabelled is not None:
            texts = InputReader.of(args, self.source, "model").rows(self.data, self.unlabelled.rows)
        for number, teacher in enumerate(teachers):
            if len(teachers) > 1:
                self._say(f"teacher {number + 1} of {len(teachers)}: {teacher.reader.name}")
            teacher.model.to(args.device)
            rows = self.train if teacher.same else teacher.reader.rows(self.data, self.data.train)
            # Where the teacher alone teaches, the only labels are those of the rows to score.
            checked = (
                rows if len(rows) else teacher.reader.rows(self.data, concatenate_datasets([*self.data.dev.values()]))
            )
            logits, left_out = self._logits(teacher, checked, "rows")
            found = self._measured(teacher, checked, logits, left_out)
            if found is not None:
                measured[teacher.reader.name] = found
            if not len(rows):
                logits = {of: array[:0] for of, array in logits.items()}
            train = self._taught(train, rows, logits, teacher.reader, number)
            if texts is not None and self.unlabelled is not None:
                rows = (
                    texts
                    if teacher.same
                    else teacher.reader.rows(self.data, self.unlabelled.rows_for(teacher.reader.tokenizer))
                )
                logits = self._logits(teacher, rows, "unlabelled texts")[0]
                texts = self._taught(texts, rows, logits, teacher.reader, number)
            if len(teachers) > 1:
                teacher.model.to("cpu")
        train = train if texts is None else train.followed_by(texts)
        hidden = teachers[0].model if args.alpha_cos else None
        about = measured if len(teachers) > 1 else measured.get(teachers[0].reader.name)
        return replace(self, train=train, hidden_teacher=hidden, teacher_on_labels=about or None)

    def _teacher(self, name: str) -> _Teacher:
        """Load a teacher and its tokenizer.

        Raises:
            PotstillError: see `with_teacher`.
        """
        args, data = self.args, self.data
        model, labels = load_task_teacher(name, data.head, data.labels, data.shape().get("problem_type"))
        reader = InputReader.of(args, name, "teacher")
        same_ids = tokenizer_fingerprint(reader.tokenizer) == tokenizer_fingerprint(self.tokenizer)
        if args.declared_task.by_token or args.alpha_cos:
            self._check_same_tokens(reader, model, same_ids)
            reader = replace(reader, max_length=self.train.limit)
        same_types = reader.token_types == ("token_type_ids" in self.train.tokens)
        return _Teacher(model, labels, reader, same_ids and same_types and reader.max_length == self.train.limit)

    def _measured(
        self, teacher: _Teacher, rows: Rows, logits: dict[str, Array], left_out: float
    ) -> dict[str, float] | None:
        """Return and log how well a teacher predicts the training labels; see `_fit`."""
        labels = teacher.labels
        fit = self._fit(teacher.reader.name, rows, logits, labels is not None and labels.named)
        measured = dict(fit.measured) if fit else None
        if labels is not None and labels.left_out:
            self._say(left_out_message(labels.left_out, left_out))
            measured = (measured or {}) | {"probability_left_out": 100 * left_out}
        return measured

    def _logits(self, teacher: _Teacher, rows: Rows, what: str) -> tuple[dict[str, Array], float]:
        """Return a teacher's logits of rows in the order of the task's labels, and the probability of other labels."""
        args, labels = self.args, teacher.labels
        dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        with args.main_process_first(local=False, desc="soft targets"):
            folder = model_folder(teacher.reader.name, "teacher")
            logits = soft_targets(teacher.model, folder, rows, args.per_device_eval_batch_size, dtype, what)
        if labels is None:
            return logits, 0.0
        return {"logits": labels.in_order(logits["logits"])}, labels.probability_left_out(logits["logits"])

    def _taught(self, student: Rows, teacher: Rows, logits: dict[str, Array], reader: InputReader, number: int) -> Rows:
        """Return the student's rows with the logits of a teacher of the same rows, and of this number from 0."""
        by_token, by_row = (
            {column(name, number): values for name, values in columns.items()}
            for columns in self.data.soft_columns(logits)
        )
        tokens, values = student.tokens | by_token, student.values | by_row
        if self.args.alpha_cos and reader.token_types:
            tokens["teacher_token_type_ids"] = teacher.tokens["token_type_ids"]
        return replace(student, tokens=tokens, values=values)

    def _say(self, line: str) -> None:
        if self.args.should_log:
            say(line)

    def _fit(self, name: str, rows: Rows, logits: dict[str, Array], named: bool) -> Fit | None:
        """Return and log how well a teacher predicts the labels of rows.

        Raises:
            PotstillError: the teacher contradicts the labels, and its soft targets have a weight.
        """
        fit, which = fit_of(self.data, rows, logits, named), "training" if len(self.train) else "scored"
        if fit is None:
            return None
        if fit.fault is not None and self.args.uses_soft_targets:
            raise PotstillError(f"the teacher {name!r} contradicts the {which} labels: {fit.message}; {fit.fault}.")
        self._say(f"the teacher on the {which} labels: {fit.message}")
        return fit

    def _check_same_tokens(self, reader: InputReader, teacher: PreTrainedModel, same_ids: bool) -> None:
        """Check that a teacher reads the same tokens as the model and, for the cosine, has hidden states as wide."""
        args, name, longest = self.args, reader.name, self.train.limit
        by_token = args.declared_task.by_token
        reason = "Answers are token positions" if by_token else "The cosine compares token by token"
        if not same_ids:
            raise PotstillError(
                f"{reason}, but the teacher {name!r} has another tokenizer than the model: give a teacher with the "
                f"same one{'' if by_token else ', or --alpha_cos 0'}."
            )
        if reader.max_length < longest:
            raise PotstillError(
                f"{reason}, but the teacher {name!r} reads at most {reader.max_length} tokens and the model reads "
                f"{longest}: give --max_length {reader.max_length}."
            )
        if args.alpha_cos:
            widths = [getattr(config, "hidden_size", None) for config in (teacher.config, load_config(self.source))]
            if None in widths or widths[0] != widths[1]:
                raise PotstillError(
                    f"The cosine compares hidden states of equal width, but the teacher's are {widths[0]} wide and the "
                    f"model's {widths[1]}: give --alpha_cos 0."
                )


@dataclass(frozen=True)
class _Teacher:
    """A task teacher.

    Attributes:
        model: on the CPU at first.
        labels: where it has the labels of the task; None for a task without labels.
        reader: its tokenizer and limits.
        same: whether it reads the rows of the student as they are.
    """

    model: PreTrainedModel
    labels: TeacherLabels | None
    reader: InputReader
    same: bool


@dataclass(frozen=True)
class InputReader:
    """The config, tokenizer and limits with which a model reads text.

    Attributes:
        name: the model's folder or hub name.
        role: the word for it in messages: ``model`` or ``teacher``.
        config: the model's config.
        tokenizer: the model's tokenizer, with a padding token.
        max_length: maximum length of an input in tokens: as requested, but not more than the model can read.
        multiple: see `Rows`.
        token_types: whether the model takes `token_type_ids`.
    """

    name: str
    role: str
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerFast
    max_length: int
    multiple: int
    token_types: bool

    @classmethod
    def of(cls, args: FinetuneArguments, name: str, role: str) -> InputReader:
        """Read a model's config and tokenizer.

        Raises:
            PotstillError: config or tokenizer are missing or cannot be used, the tokenizer has ids that the model has
                no embedding for, or `max_length` is more than the model can read.
        """
        config = load_config(name, role)
        if isinstance(config, BiLSTMConfig):
            for option in ("freeze_encoder", "alpha_cos"):
                if getattr(args, option):
                    raise PotstillError(
                        f"--{option} is for transformers, and the {role} {name!r} is a BiLSTM: leave it out."
                    )
        encoder = config if not isinstance(config, FrozenEncoderConfig) else AutoConfig.for_model(**config.encoder)
        # The tokenizer is saved in this form, so that its output always fits the model that is saved with it.
        tokenizer = load_tokenizer(name, takes_token_types(encoder), role)
        if tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise PotstillError(f"The tokenizer of the {role} {name!r} has no padding token: set its pad_token.")
            tokenizer.pad_token = tokenizer.eos_token
        if getattr(encoder, "pad_token_id", None) is None:
            # The model is loaded with the same id: it may count positions from it.
            encoder.pad_token_id = tokenizer.pad_token_id
        limit = min(tokenizer.model_max_length, usable_length(encoder) or tokenizer.model_max_length)
        requested = args.max_length or limit
        if requested > limit and requested != args.declared_task.settings(bool(args.teacher)).max_length:
            raise PotstillError(
                f"--max_length is {requested}, but the {role} {name!r} reads at most {limit} tokens: lower it."
            )
        max_length = min(requested, limit)
        check_vocabulary(tokenizer, encoder, f"the {role} {name!r}")
        types = "token_type_ids" in tokenizer.model_input_names
        return cls(name, role, encoder, tokenizer, max_length, _multiple(args, max_length), types)

    def rows(self, data: TaskData, split: Dataset) -> Rows:
        """Tokenise a split."""
        return data.rows(split, self.tokenizer, self.max_length, self.multiple)


def _with_synthetic(
    args: FinetuneArguments, data: TaskData, tokenizer: PreTrainedTokenizerFast, given: Unlabelled | None
) -> Unlabelled:
    """Return the synthetic texts of a run, after those that are given; see `augmented`."""
    options = AugmentOptions.read(args.augment)
    with args.main_process_first(local=False, desc="synthetic texts"):
        made = augmented(
            *(data.train, data.dev.values(), options, mask_of(tokenizer)),
            lambda name: Tagger(name, args.device, args.per_device_eval_batch_size),
            None if given is None else given.rows,
        )
    return made if given is None else given.and_also(made)


def unlabelled_texts(args: FinetuneArguments, data: TaskData) -> Unlabelled:
    """Read the texts, or the words, without labels of a run; see `read_unlabelled`."""
    if isinstance(data, TagData):
        return read_unlabelled_words(args, data.train, data.dev.values())
    columns = columns_of(args, args.declared_task, "pair" in data.train.column_names)
    return read_unlabelled(
        args.unlabelled or (), columns, data.train, data.dev.values(), args.output_dir or "", args.on_bad_rows
    )


@functools.cache
def _tell_once(line: str) -> None:
    """Print a line that would be the same for the same run with another seed, or without its teacher."""
    print_message(line)


def _multiple(args: FinetuneArguments, max_length: int) -> int:
    recorded = args.records and not args.freeze_encoder
    return max(8, -(-max_length // LENGTHS)) if recorded else 8
