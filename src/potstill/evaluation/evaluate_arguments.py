"""The options of `evaluate`: models, suites, seeds, and the data of some suites. The others are those of `finetune`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from potstill.arguments import named_models, option, parsed_mapping
from potstill.bilstm.options import NAME
from potstill.errors import PotstillError
from potstill.evaluation.results import Plan
from potstill.evaluation.suites import ENCODER_SUITES
from potstill.finetuning.finetune_arguments import OF_QUESTIONS, FinetuneArguments
from potstill.finetuning.finetune_options import WEIGHTS
from potstill.tasks.own import OWN, is_task_file
from potstill.tasks.questions import QuestionTask
from potstill.tasks.registry import TASKS, find_task, suites

OPTIONS_READ = ("potstill.evaluation.suites",)
"""See `potstill.finetuning.finetune_arguments`."""

LEARNING_RATES = (2e-5, 3e-5, 5e-5, 1e-4, 3e-4)
"""BERT's grid (Devlin et al. 2019), and the higher rates that small models need (Turc et al. 2019)."""

OF_FINETUNE = (
    *("train_data", "eval_data", "losses", "num_hidden_layers", "layers", "metric", "quantization"),
    *("teacher_heads", "teacher_weights", "augment"),
    *("stages", "shape", "corpus"),
    *("text_column", "pair_column", "label_column", "columns", "label_names", "label_separator"),
)
"""Options of `finetune` that make no sense for several models or tasks."""

DISTILLED = " (D)"
"""Added to the name of a model for the same model with the second distillation, as in the paper."""

UNLABELLED = " (D, unlabelled)"
"""Added to the name of a model for the same model with the second distillation on unlabelled texts too."""

TAUGHT = (DISTILLED, UNLABELLED)


def untaught(model: str) -> str:
    """Return the name of a model without what the second distillation adds to it."""
    return next((model.removesuffix(ending) for ending in TAUGHT if model.endswith(ending)), model)


def _suites_in_words() -> str:
    *most, last = dict.fromkeys([*suites(), *ENCODER_SUITES])
    return f"{', '.join(most)} or {last}"


@dataclass
class EvaluateArguments(FinetuneArguments):
    """Options of `potstill evaluate`. The options of `finetune` apply to each of its runs.

    Raises:
        PotstillError: a value is not valid; the message names its field.
    """

    models: list[str] | None = option(
        None,
        "Models as NAME=FOLDER; the others are compared with the first one. Several folders of one name are seeds of "
        "one model, for suites that train nothing.",
        required=True,
    )
    suite: list[str] | None = option(
        None,
        f"{_suites_in_words()}, or a .yaml file that declares a task on your own files, or several of them; give some "
        "tasks of glue as glue:cola,rte.",
        required=True,
    )
    seeds: int = option(5, "Runs of each model and task; their seeds are --seed, --seed + 1 and so on.")
    sts_data: list[str] | None = option(
        None,
        "Files or folders of scored pairs of sentences, for the suite sts; the folder sts of --task_data if not given.",
    )
    sts_columns: list[str] | None = option(None, "Names of their columns: score, sentence, sentence.")
    retrieval_data: list[str] | None = option(
        None, "Folders with corpus.jsonl, queries.jsonl and qrels.tsv, for the suite retrieval."
    )
    rerank_data: list[str] | None = option(None, "Files or folders of queries with passages, for the suite rerank.")
    rerank_columns: list[str] | None = option(None, "Names of their columns: query, passage, label.")
    train_data: list[str] | str | None = option(None, "An option of `finetune`.")
    eval_data: list[str] | str | None = option(None, "An option of `finetune`; use --rerank_data here.")
    losses: dict | str | None = option(None, "An option of `finetune`.")
    num_hidden_layers: int | None = option(None, "An option of `finetune`.")
    layers: str | None = option(None, "An option of `finetune`.")
    unlabelled: list[str] | str | None = option(
        None,
        "Texts without labels, which also teach the models of --second_distillation in runs of their own: files, "
        "folders or patterns.",
        several=True,
    )
    teacher_heads: Literal["average", "separate"] | None = option(None, "An option of `finetune`.")
    teacher_weights: list[float] | None = option(None, "An option of `finetune`.")
    search: bool = option(
        False, "Try learning rates (2e-5 to 3e-4) with the first seed, and run all seeds with the one that scores best."
    )
    second_distillation: list[str] | None = option(
        None, "Names of models to fine-tune once more, with the first model, fine-tuned, as their teacher."
    )
    runs_per_gpu: int | None = option(
        None, "Runs that share a GPU; if not given, 4 for models below 50 M parameters, else 1."
    )

    model: str | None = option(None, "An option of `finetune`; use --models here.")
    task: str | None = option(None, "An option of `finetune`; use --suite here.")

    not_offered: ClassVar[frozenset[str]] = FinetuneArguments.not_offered | {
        *("model", "task", "teacher", "resume_from_checkpoint", "overwrite_output_dir", "without_teacher_too"),
        *OF_FINETUNE,
    }

    def __post_init__(self) -> None:
        """Check the options of `evaluate` itself. The arguments of the runs check the others."""
        if not self.output_dir:
            raise PotstillError("--output_dir is missing: name the folder to write to.")
        if not self.models:
            raise PotstillError("--models is missing: name models as NAME=FOLDER; the first is the reference.")
        for name, instead in (("model", "--models"), ("task", "--suite"), ("teacher", "--second_distillation")):
            if getattr(self, name) is not None:
                raise PotstillError(f"--{name} is an option of `finetune`: give {instead}.")
        for name in OF_FINETUNE:
            if getattr(self, name) is not None:
                raise PotstillError(f"--{name} is an option of `finetune`: leave it out.")
        for name in ("sts_columns", "rerank_columns"):
            columns = getattr(self, name)
            if columns is not None and len(set(columns)) != 3:
                raise PotstillError(f"--{name} names {len(set(columns))} columns: it must name 3.")
        encoder_suites, tasks = self.encoder_suites(), self.tasks()
        for suite in ENCODER_SUITES:
            for name in (f"{suite}_data", f"{suite}_columns"):
                if suite not in encoder_suites and getattr(self, name, None) is not None:
                    raise PotstillError(f"--{name} is for the suite {suite}: add {suite} to --suite, or leave it out.")
        if encoder_suites and self.second_distillation:
            raise PotstillError(
                f"--second_distillation fine-tunes models and the suite {encoder_suites[0]} does not: evaluate on it "
                "separately."
            )
        paths = [path for _, path in named_models(self.models)]
        self._check(
            "bilstm", self.bilstm is None or NAME in paths, f"is for a model named as lstm={NAME}: leave it out"
        )
        self._check_texts(tasks)
        self._check_idle(tasks)
        if self.search and not tasks:
            raise PotstillError(
                f"--search tries learning rates, but the suite {encoder_suites[0]} trains nothing: leave it out."
            )
        if self.seeds < 2 and tasks:
            raise PotstillError(
                f"--seeds is {self.seeds}: a median over seeds and their spread need at least 2, better 5; use "
                "`potstill finetune` for a single run."
            )
        if self.runs_per_gpu is not None and self.runs_per_gpu < 1:
            raise PotstillError(f"--runs_per_gpu is {self.runs_per_gpu}: it must be above 0.")
        if self.search and self.learning_rate is not None:
            raise PotstillError("--search chooses the learning rate itself: leave --learning_rate out.")
        if self.resume_from_checkpoint:
            raise PotstillError("--resume_from_checkpoint is not needed: give the same --output_dir again.")
        if self.overwrite_output_dir:
            raise PotstillError("--overwrite_output_dir would delete finished runs: name another --output_dir.")
        names = [name for name, _ in named_models(self.models)]
        for name in names:
            ending = next((ending for ending in TAUGHT if name.endswith(ending)), None)
            if ending is not None:
                raise PotstillError(
                    f"The name {name!r} ends in {ending!r}, which --second_distillation adds to names: choose "
                    "another name."
                )
        for name in self.second_distillation or []:
            if name not in names[1:]:
                others = f"choose from {', '.join(names[1:])}" if names[1:] else "give more models with --models"
                raise PotstillError(f"--second_distillation {name!r} is none of the models after the first: {others}.")
        self.plan({}, encoder_suites).check()
        # The arguments of the runs check the other options.
        taught = names[0] + UNLABELLED if self.unlabelled else names[0]
        for task in tasks:
            options = self.run_options(taught, task, self.seed)
            FinetuneArguments(**options | ({"teacher": names[0]} if self.second_distillation else {}))

    def _check_texts(self, tasks: Sequence[str]) -> None:
        """Check the options of texts without labels."""
        for name in ("unlabelled_ratio", "unlabelled_columns"):
            if not self.unlabelled and getattr(self, name) is not None:
                raise PotstillError(f"--{name} needs --unlabelled: name texts, or leave it out.")
        if self.unlabelled and not self.second_distillation:
            raise PotstillError(
                "--unlabelled needs --second_distillation: name the models that the first one is to teach with these "
                "texts."
            )
        if self.unlabelled and len(tasks) != 1:
            raise PotstillError(
                f"--unlabelled is for the texts of one task, but --suite has {len(tasks)}: evaluate on each separately."
            )

    def _check_idle(self, tasks: Sequence[str]) -> None:
        """Check that no option is given that every run would ignore."""
        self._check_teaching(
            {name for name, usual in WEIGHTS.items() if getattr(self, name) not in (None, usual)}, "second_distillation"
        )
        if any(isinstance(find_task(self._declared_by(task)), QuestionTask) for task in tasks):
            return
        for name in (*OF_QUESTIONS, "soft_positions", "dev_share"):
            usual = getattr(self, name) in (getattr(type(self), name), WEIGHTS.get(name))
            self._check(name, usual, "is for tasks on questions, and --suite has none: leave it out")

    def tasks(self) -> list[str]:
        """Return the tasks that models are fine-tuned on, in the order of the suites.

        Raises:
            PotstillError: there is no such suite or task.
        """
        return [task for suite, task in self._chosen() if suite not in ENCODER_SUITES]

    def encoder_suites(self) -> list[str]:
        """Return the suites that train nothing, in order.

        Raises:
            PotstillError: there is no such suite or task.
        """
        return [suite for suite, _ in self._chosen() if suite in ENCODER_SUITES]

    def _chosen(self) -> list[tuple[str, str]]:
        """Return suite and task; the task of a suite that trains nothing is the suite, and a file is its own suite."""
        found: list[tuple[str, str]] = []
        known = suites() | {name: (name,) for name in ENCODER_SUITES}
        for suite in self.suite or []:
            if is_task_file(suite):
                found.append((suite, find_task(suite).name))
                continue
            name, colon, selected = suite.partition(":")
            if name not in known:
                if name in OWN:
                    raise PotstillError(
                        f"{name} is a kind of task on your own files: name a .yaml file that declares one."
                    )
                parent = TASKS[name].suite_name if name in TASKS else ""
                within = f" ({name} is a task of {parent}: give {parent}:{name})" if parent else ""
                raise PotstillError(f"There is no suite {name!r}; the suites are {', '.join(known)}{within}.")
            chosen = selected.split(",") if colon else list(known[name])
            for task in chosen:
                if task not in known[name]:
                    raise PotstillError(f"The suite {name} has no task {task!r}; it has {', '.join(known[name])}.")
            found += [(name, task) for task in chosen]
        if not found:
            raise PotstillError(f"--suite is missing: name one or several of {', '.join(known)}.")
        return list(dict.fromkeys(found))

    def _declared_by(self, task: str) -> str:
        """Return the file that declares a task, or its name if potstill declares it."""
        return next((suite for suite, name in self._chosen() if name == task and is_task_file(suite)), task)

    def plan(self, absent: dict[str, str], sets: Sequence[str] = ()) -> Plan:
        """Return the plan of the runs.

        Args:
            absent: task, or suite that trains nothing → why it has no data.
            sets: names of the sets of the suites that train nothing.
        """
        folders = self.folders()
        models = [(name, paths[0]) for name, paths in folders.items()]
        paths = dict(models)
        models += [(name + ending, paths[name]) for name in self.second_distillation or [] for ending in self._endings]
        trained = self.tasks()
        tasks = [*trained, *sets, *(suite for suite in self.encoder_suites() if suite in absent)]
        seeds = list(range(self.seed, self.seed + self.seeds)) if trained else []
        several = {name: found for name, found in folders.items() if len(found) > 1}
        return Plan(models, tasks, absent, seeds, [*tasks[len(trained) :]] or None, several or None)

    @property
    def _endings(self) -> tuple[str, ...]:
        """The endings of the names of the models of a second distillation."""
        plain = () if self.unlabelled and not self.without_unlabelled_too else (DISTILLED,)
        return (*plain, UNLABELLED) if self.unlabelled else plain

    def folders(self) -> dict[str, list[str]]:
        """Return the folders of each model, by its name.

        Raises:
            PotstillError: a model has several folders although models are to be fine-tuned, or one folder twice.
        """
        folders: dict[str, list[str]] = {}
        for name, path in named_models(self.models):
            folders.setdefault(name, []).append(path)
        for name, found in folders.items():
            if len(found) > 1 and self.tasks():
                raise PotstillError(
                    f"The model {name!r} occurs twice, and several folders of a model are only for suites that train "
                    f"nothing ({', '.join(ENCODER_SUITES)}): give each a name of its own."
                )
            twice = next((path for path in found if found.count(path) > 1), None)
            if twice is not None:
                raise PotstillError(f"The model {name!r} occurs twice with the folder {twice}: leave one out.")
        return folders

    def run_options(self, model: str, task: str, seed: int) -> dict[str, Any]:
        """Return the options of one run, as `FinetuneArguments` takes them.

        Args:
            model: name of a model, as in the plan.
            task: name of the task, which a file may declare.
            seed: the run's seed.
        """
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(FinetuneArguments) if f.init}
        paths = dict(named_models(self.models))
        path, first = paths[untaught(model)], next(iter(paths.values()))
        bilstm = None
        if path == NAME:  # the other models are compared with the first one, whose tokenizer and embeddings it takes
            sources = {} if first == NAME else {"tokenizer": first}
            bilstm = parsed_mapping("bilstm", self.bilstm) or {}
            sources |= {"embeddings": first} if sources and "tokenizer" not in bilstm else {}
            bilstm = sources | bilstm if isinstance(bilstm, dict) else bilstm
        if not model.endswith(UNLABELLED):
            given |= {"unlabelled": None, "unlabelled_ratio": None, "unlabelled_columns": None}
        output = str(Path(self.output_dir or "") / ".runs" / model / task / f"seed-{seed}-{self.learning_rate}")
        return (
            given
            | {
                "model": path,
                "task": self._declared_by(task),
                "seed": seed,
                "output_dir": output,
                "save_strategy": "no",
                "bilstm": bilstm,
            }
            | {
                "rerank_columns": None  # of the suite, which trains nothing
            }
        )
