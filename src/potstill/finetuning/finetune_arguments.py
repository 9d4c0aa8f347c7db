"""The options of `finetune`, checked and completed."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from typing import Any, cast

import torch

from potstill.arguments import check_shares, parsed_losses
from potstill.bilstm.options import NAME
from potstill.errors import PotstillError
from potstill.finetuning.bilstm_arguments import BILSTM, BILSTM_WEIGHTS, set_augment, set_bilstm
from potstill.finetuning.finetune_options import WEIGHTS, FinetuneOptions
from potstill.finetuning.objective import TaskObjective
from potstill.finetuning.questions import QuestionOptions
from potstill.objective.ensemble import Ensemble
from potstill.objective.ranking import RankingObjective
from potstill.precision import BITS
from potstill.tasks.own import OWN, OwnTask, TagTask, check_metric, split_columns
from potstill.tasks.questions import QuestionTask
from potstill.tasks.registry import find_task
from potstill.tasks.rows import ON_BAD_ROWS
from potstill.tasks.task import USUAL, OwnFiles, Task

OF_QUESTIONS = ("stride", "max_answer_length", "n_best", "null_threshold", "on_bad_answer")
"""Options that only tasks on questions have, beside `soft_positions` and `dev_share`."""


def _usual(args: Any, one: Field[Any]) -> bool:
    default = one.default if one.default_factory is MISSING else one.default_factory()
    return bool(getattr(args, one.name) == default)


@dataclass
class FinetuneArguments(FinetuneOptions):
    """Options of `potstill finetune`.

    Raises:
        PotstillError: the task is unknown, or a value is not valid; the message names its field.
    """

    given: dict[str, Any] = field(init=False, repr=False, default_factory=dict)
    """The options that are not at their defaults, as they were given."""

    def __post_init__(self) -> None:
        self.given = {one.name: getattr(self, one.name) for one in fields(self) if one.init and not _usual(self, one)}
        for name in ("shape", "corpus"):
            self._check(name, bool(self.stages) or getattr(self, name) is None, "is for --stages: leave it out")
        defaults = USUAL if self.task is None else find_task(self.task).settings(taught=bool(self.teacher))
        set_bilstm(self)
        set_augment(self)
        if self.new_bilstm:
            defaults = BILSTM._replace(max_length=defaults.max_length)
        self.learning_rate = defaults.learning_rate if self.learning_rate is None else self.learning_rate
        self.num_train_epochs = defaults.epochs if self.num_train_epochs is None else self.num_train_epochs
        if self.per_device_train_batch_size is None:
            self.per_device_train_batch_size = defaults.batch_size
        self.max_length = defaults.max_length if self.max_length is None else self.max_length
        self.columns = None if self.columns is None else list(split_columns(self.columns) or ())
        self._set_losses()
        self._set_teachers()
        self._check_files()
        self._check_own()
        self._check_unlabelled()
        self._check("class_weights", self.class_weights in (None, "balanced"), "must be 'balanced'")
        if self.bf16 is None:
            gpu = torch.cuda.is_available() and not self.use_cpu
            self.bf16 = gpu and not self.fp16 and not self.new_bilstm and torch.cuda.is_bf16_supported()
            self.bf16 = self.bf16 and self.quantization is None and self.fixed_point is None
        for name in ("max_length", "max_answer_length", "n_best"):
            self._check(name, getattr(self, name) > 0, "must be above 0")
        self._check("stride", self.stride >= 0, "must be 0 or more")
        most = self.max_eval_samples
        self._check("max_eval_samples", most is None or most > 0, "must be above 0")
        choices: dict[str, tuple[str, ...]] = {"on_bad_answer": ("error", "skip"), "on_bad_rows": ON_BAD_ROWS}
        for name, values in choices.items():
            self._check(name, getattr(self, name) in values, f"must be {values[0]!r} or {values[1]!r}")
        self._check("freeze_encoder", not (self.freeze_encoder and self.alpha_cos), "does not go with --alpha_cos")
        self._check("quantization", self.quantization in (None, *BITS), f"must be {' or '.join(BITS)}")
        apart = (False, None, 0, "average")
        for name in ("freeze_encoder", "alpha_cos", "teacher_heads", "fixed_point"):
            together = self.quantization is not None and getattr(self, name) not in apart
            self._check(name, not together, "does not go with --quantization: leave one of them out")
        depth = self.num_hidden_layers
        self._check("num_hidden_layers", depth is None or depth > 0, "must be above 0")
        super().__post_init__()

    def _set_losses(self) -> None:
        """Set and check the losses: `losses` of a ranking, and the weights of `WEIGHTS` of any other task."""
        self.losses = parsed_losses(self.losses)
        if self.ranks:
            for name in WEIGHTS:
                self._check(name, getattr(self, name) is None, f"is no option of {self.task}: give --losses")
            self._check("freeze_encoder", not self.freeze_encoder, f"is no option of {self.task}")
            self._check_question_options()
            self.losses = self.ranking_objective().options
            return
        self._check("losses", self.losses is None, "is an option of rerank: give --alpha_ce and --alpha_task")
        squared = self.soft_loss == "mse" and self.temperature not in (None, WEIGHTS["temperature"])
        self._check("temperature", not squared, "has no meaning with --soft_loss mse: leave it out")
        for name, default in (WEIGHTS | (BILSTM_WEIGHTS if self.new_bilstm else {})).items():
            if getattr(self, name) is None:
                setattr(self, name, default)
        for name in ("alpha_ce", "alpha_task", "alpha_cos"):
            self._check(name, 0 <= getattr(self, name) < math.inf, "must be 0 or more")
        self._check("temperature", 0 < cast(float, self.temperature) < math.inf, "must be above 0")
        weights = [getattr(self, name) for name in ("alpha_ce", "alpha_task", "alpha_cos")]
        self._check("alpha_ce", not self.teacher or sum(weights) > 0, "is 0, and so is every other weight")
        self._check("soft_positions", self.soft_positions in ("answer", "all"), "must be 'answer' or 'all'")
        self._check("soft_loss", self.soft_loss in ("kl", "mse"), "must be 'kl' or 'mse'")

    def _check_question_options(self) -> None:
        for name in OF_QUESTIONS:
            self._check(name, getattr(self, name) == getattr(type(self), name), f"is no option of {self.task}")

    def _set_teachers(self) -> None:
        """Check the options of several teachers, and set their defaults."""
        if isinstance(self.teacher, list) and len(self.teacher) == 1:
            self.teacher = self.teacher[0]
        count = len(self.teachers)
        for name in ("teacher_heads", "teacher_weights"):
            self._check(
                name, count > 1 or getattr(self, name) is None, "is for several teachers: name them in --teacher"
            )
        if count < 2:
            return
        self._check_teachers(self.teachers)
        self.teacher_heads = self.teacher_heads or "average"
        kinds = ("average", "separate")
        self._check("teacher_heads", self.teacher_heads in kinds, "must be 'average' or 'separate'")
        _ = self.weights_of_teachers  # which checks them
        self._check("alpha_cos", not self.alpha_cos, "compares with the hidden states of one teacher: give one, or 0")
        if self.teacher_heads == "separate":
            self._check("teacher_heads", not self.ranks, f"is no option of {self.task}: give average")
            self._check("teacher_heads", bool(self.alpha_ce), "teaches nothing with --alpha_ce 0: give it a weight")
            rule = "does not go with --quantization, because rounded heads cannot be averaged: give average"
            self._check("teacher_heads", not self.quantization, rule)

    def check_effects(self) -> None:
        """Check that no option is given that a single run would ignore.

        `evaluate` has a check of its own: some of its runs have a teacher, and its tasks are of several kinds.

        Raises:
            PotstillError: an option has no effect.
        """
        usual = WEIGHTS | (BILSTM_WEIGHTS if self.new_bilstm else {})
        self._check_teaching({name for name in WEIGHTS if self.given.get(name, usual[name]) != usual[name]}, "teacher")
        if not self.is_question:
            self._check_question_options()
            usual_positions = self.soft_positions in (None, WEIGHTS["soft_positions"])
            self._check("soft_positions", usual_positions, f"is no option of {self.task}")

    def _check_teaching(self, given: Collection[str], teacher: str) -> None:
        """Check that some options of a teacher's losses, which are not at their defaults, have an effect.

        Args:
            given: their names.
            teacher: the option that names the teacher, or the models that have one.

        Raises:
            PotstillError: there is no teacher.
        """
        for name in WEIGHTS:
            idle = name in given and not getattr(self, teacher)
            self._check(name, not idle, f"has no effect without --{teacher}: name a model there, or leave it out")

    def _check_files(self) -> None:
        own = bool(self.task) and self.declared_task.own_files
        for name in ("train_data", "eval_data"):
            value = getattr(self, name)
            self._check(name, own or value is None, f"is no option of {self.task}: give --task_data")
            if isinstance(value, list | tuple) and len(value) == 1:
                setattr(self, name, value[0])
            elif value is not None and not isinstance(value, str):
                several = isinstance(self.declared_task, OwnTask)
                self._check(name, several, f"names {len(value)} files, but {self.task} reads one: join them")
        self._check("rerank_columns", self.ranks or self.rerank_columns is None, "is an option of rerank")
        if self.train_data and (self.eval_data or not self.ranks):
            self._check("task_data", self.task_data is None, "is not read, because --train_data and --eval_data are")
        count = 3 if self.rerank_columns is None else len(set(self.rerank_columns))
        self._check("rerank_columns", count in (2, 3), "must name query, passage and label, or query and passage")

    def _check_unlabelled(self) -> None:
        self.unlabelled = [self.unlabelled] if isinstance(self.unlabelled, str) else self.unlabelled
        for name in ("unlabelled_ratio", "unlabelled_columns"):
            texts = bool(self.unlabelled or (self.augment and name == "unlabelled_ratio"))
            self._check(name, texts or getattr(self, name) is None, "needs --unlabelled")
        most, ratio = self.max_train_samples, self.unlabelled_ratio
        rule = "must be above 0; it may be 0 with --unlabelled, whose texts then teach alone"
        self._check("max_train_samples", most is None or most > 0 or (most == 0 and bool(self.unlabelled)), rule)
        for name in ("unlabelled_ratio", "class_weights"):
            self._check(name, most != 0 or getattr(self, name) is None, "needs labelled rows to train on")
        self._check("unlabelled_ratio", ratio is None or 0 < ratio < math.inf, "must be above 0")
        if not self.unlabelled:
            return
        self._check("unlabelled", bool(self.teacher), "needs a teacher: name one with --teacher")
        fits = not self.ranks and not self.is_question
        self._check("unlabelled", fits, f"is for tasks on texts and on words: leave it out for {self.task}")
        taught = bool(self.alpha_ce or self.alpha_cos)
        self._check("unlabelled", taught, "teaches nothing with --alpha_ce 0: give it a weight")
        if self.unlabelled_alone:
            self._check_unlabelled_alone()

    def _check_unlabelled_alone(self) -> None:
        """Refuse the options that need labelled rows to train on."""
        if self.own_files.eval is None:
            raise PotstillError(
                "--eval_data is missing: without --train_data the teacher alone teaches, and the labelled rows to "
                "score must be named."
            )
        for name in ("unlabelled_ratio", "class_weights", "max_train_samples"):
            self._check(name, getattr(self, name) is None, "needs labelled rows to train on: give --train_data")
        usual = self.alpha_task in (0, WEIGHTS["alpha_task"])
        self._check("alpha_task", usual, "weighs labels, but there is no --train_data: leave it out")

    def _check_own(self) -> None:
        """Check the options of tasks on a user's own files, and set the metric."""
        task = self.declared_task if self.task else None
        read = task.columns_read if isinstance(task, OwnTask) else frozenset()
        declared = self.task if task is not None and getattr(task, "files", None) is not None else None
        for one in fields(OwnFiles):
            if one.name in ("train", "eval", "dev_share"):
                continue
            given = getattr(self, one.name) is not None
            self._check(one.name, not (given and declared), f"must stand in {declared}")
            self._check(one.name, not given or one.name in read, f"is no option of {self.task}")
        self._check("label_separator", self.label_separator != "", "must be at least one character")
        twice = next((name for name in self.columns or () if (self.columns or []).count(name) > 1), None)
        self._check("columns", twice is None, f"names {twice} twice")
        own = self.task is not None and (declared is not None or self.task in OWN)
        self._check("task_data", not own or self.task_data is None, f"is no option of {self.task}: give --train_data")
        self._check("dev_share", 0 < self.dev_share < 1, "must be a share between 0 and 1")
        usual = self.dev_share == type(self).dev_share
        splits = task is None or isinstance(task, OwnTask | QuestionTask)
        self._check("dev_share", usual or splits, f"is no option of {self.task}")
        self._check("dev_share", usual or declared is None, f"must stand in {declared}")
        if not isinstance(task, OwnTask):
            self._check("metric", self.metric is None, f"is no option of {self.task}: it has a score of its own")
            return
        if isinstance(task, TagTask):
            self._check("freeze_encoder", not self.freeze_encoder, f"is no option of {self.task}")
        self.metric = self.metric or task.metric
        if self.metric is not None:
            check_metric(task, self.metric, "--metric")

    @property
    def new_bilstm(self) -> bool:
        """Whether the model is a new BiLSTM."""
        return self.model == NAME

    @property
    def teachers(self) -> list[str]:
        """The folders or hub names of all task teachers; none if none is named."""
        return [self.teacher] if isinstance(self.teacher, str) else list(self.teacher or [])

    @property
    def weights_of_teachers(self) -> tuple[float, ...]:
        """The weight of each teacher; they add up to 1.

        Raises:
            PotstillError: there are more or fewer weights than teachers, or a weight is not above 0.
        """
        return Ensemble.of(len(self.teachers), self.teacher_weights).weights

    @property
    def own_files(self) -> OwnFiles:
        """The user's own files of the task: those of the options, and the others of the file that declares it."""
        files = getattr(self.declared_task, "files", None)
        if files is None:
            names = [one.name for one in fields(OwnFiles) if one.name not in ("train", "eval", "columns")]
            given = {name: getattr(self, name) for name in names}
            files = OwnFiles(**given, columns=split_columns(self.columns))
        named = {"train": self.train_data, "eval": self.eval_data}
        given = {
            name: source if isinstance(source, str) else tuple(source)
            for name, source in named.items()
            if source is not None
        }
        return replace(files, **given)

    @property
    def unlabelled_alone(self) -> bool:
        """Whether the soft targets of unlabelled texts are all that teaches, because no labelled rows are named."""
        task = self.declared_task if self.task else None
        return bool(self.unlabelled) and isinstance(task, OwnTask) and not self.own_files.train

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
        """Return the losses and their weights, of a task that is no ranking."""
        return TaskObjective(**{name: getattr(self, name) for name in WEIGHTS})

    def ranking_objective(self) -> RankingObjective:
        """Return the losses and their weights, of a ranking."""
        return RankingObjective.read(self.losses, bool(self.teacher))

    @property
    def ranks(self) -> bool:
        """Whether the task is to rank passages."""
        return bool(self.task) and self.declared_task.ranks

    @property
    def decide_order(self) -> frozenset[str]:
        """See `RunArguments.decide_order`. Rows of similar length are read together, so batches decide the order."""
        return frozenset({"gradient_accumulation_steps", *(["per_device_train_batch_size"] if self.ranks else [])})

    def keep_batch(self, batch: int) -> None:
        """Give each process as many rows at a time as keep the order of the rows.

        Raises:
            PotstillError: the processes cannot share the rows equally, or share lists, whose order would change.
        """
        if self.ranks:
            raise PotstillError(
                "A rerank run cannot be resumed on another number of processes, because the order of its lists would "
                "change: start as many as before."
            )
        rows = batch // self.gradient_accumulation_steps
        check_shares(rows, self.world_size)
        self.per_device_train_batch_size = rows // self.world_size

    @property
    def records(self) -> bool:
        """See `RunArguments.records`. It needs one process. The batches of a ranking have too many shapes."""
        return super().records and self.world_size == 1 and not self.ranks

    @property
    def uses_soft_targets(self) -> bool:
        """Whether the soft targets of the teacher have a weight."""
        return bool(self.teacher) and (self.ranks or bool(self.alpha_ce))

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
