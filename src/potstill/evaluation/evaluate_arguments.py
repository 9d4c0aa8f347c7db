"""What `evaluate` may be told: models, suite, seeds; everything else is an option of `finetune`, for every run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from potstill.arguments import named_models, option
from potstill.errors import PotstillError
from potstill.evaluation.results import Plan
from potstill.finetuning.finetune_arguments import FinetuneArguments
from potstill.tasks.registry import TASKS, suites

LEARNING_RATES = (2e-5, 3e-5, 5e-5, 1e-4, 3e-4)
"""BERT's grid (Devlin et al. 2019), and above it the rates that small models need (Turc et al. 2019)."""

DISTILLED = " (D)"
"""What is put behind a model's name for the same model with the second distillation, as the paper does."""


def _suites_in_words() -> str:
    *most, last = suites()
    return f"{', '.join(most)} or {last}"


@dataclass
class EvaluateArguments(FinetuneArguments):
    """Options of `potstill evaluate`. The options of `finetune` hold for every run of it.

    Raises:
        PotstillError: a value that cannot be, named by its field.
    """

    models: list[str] | None = option(
        None, "Models as NAME=FOLDER, the first being the one that others are measured by.", required=True
    )
    suite: list[str] | None = option(
        None, f"{_suites_in_words()}, or several; some tasks of glue as glue:cola,rte.", required=True
    )
    seeds: int = option(5, "Runs of each model and task, with seeds from --seed on.")
    search: bool = option(
        False, "Try learning rates (2e-5 to 3e-4) with the first seed, and run all seeds with the one that scores best."
    )
    second_distillation: list[str] | None = option(
        None, "Models to fine-tune a second time with the first model, fine-tuned, as their teacher."
    )
    runs_per_gpu: int | None = option(None, "Runs that share a GPU; 4 for models below 50 M parameters, else 1.")

    model: str | None = option(None, "Of `finetune`; here it is --models.")
    task: str | None = option(None, "Of `finetune`; here it is --suite.")

    not_offered: ClassVar[frozenset[str]] = FinetuneArguments.not_offered | {
        *("model", "task", "teacher", "resume_from_checkpoint", "overwrite_output_dir")
    }

    def __post_init__(self) -> None:
        """Check what is of `evaluate` itself; the arguments of each run check the rest."""
        if not self.output_dir:
            raise PotstillError("--output_dir is missing: name the folder to write to.")
        if not self.models:
            raise PotstillError("--models is missing: name models as NAME=FOLDER, the first being the reference.")
        for name, instead in (("model", "--models"), ("task", "--suite"), ("teacher", "--second_distillation")):
            if getattr(self, name) is not None:
                raise PotstillError(f"--{name} is of `finetune`: give {instead}.")
        if self.seeds < 2:
            raise PotstillError(
                f"--seeds is {self.seeds}: a median over seeds and their spread need at least 2, better 5; for a "
                "single run there is `potstill finetune`."
            )
        if self.runs_per_gpu is not None and self.runs_per_gpu < 1:
            raise PotstillError(f"--runs_per_gpu is {self.runs_per_gpu}: it must be above 0.")
        if self.search and self.learning_rate is not None:
            raise PotstillError("--search chooses the learning rate itself: leave --learning_rate out.")
        if self.resume_from_checkpoint:
            raise PotstillError("--resume_from_checkpoint is not needed: give the same --output_dir again.")
        if self.overwrite_output_dir:
            raise PotstillError("--overwrite_output_dir would throw finished runs away: name another --output_dir.")
        names = [name for name, _ in named_models(self.models)]
        for name in names:
            if name.endswith(DISTILLED):
                raise PotstillError(f"The model {name!r} is named as --second_distillation names one: choose another.")
        for name in self.second_distillation or []:
            if name not in names[1:]:
                there = ", ".join(names[1:]) or "there is none"
                raise PotstillError(f"--second_distillation {name!r} is none of the models after the first: {there}.")
        self.plan({}).check()
        # These check the rest.
        options = [self.run_options(names[0], task, self.seed) for task in self.tasks()]
        for some in options:
            FinetuneArguments(**some | ({"teacher": names[0]} if self.second_distillation else {}))

    def tasks(self) -> list[str]:
        """Return the tasks of the suites, in order.

        Raises:
            PotstillError: there is no such suite or task.
        """
        found: list[str] = []
        known = suites()
        for suite in self.suite or []:
            name, colon, some = suite.partition(":")
            if name not in known:
                whole = TASKS[name].suite_name if name in TASKS else ""
                within = f" ({name} is a task of {whole}: give {whole}:{name})" if whole else ""
                raise PotstillError(f"There is no suite {name!r}; the suites are {', '.join(known)}{within}.")
            chosen = some.split(",") if colon else list(known[name])
            for task in chosen:
                if task not in known[name]:
                    raise PotstillError(f"The suite {name} has no task {task!r}; it has {', '.join(known[name])}.")
            found += chosen
        if not found:
            raise PotstillError(f"--suite is missing: name one or several of {', '.join(known)}.")
        return list(dict.fromkeys(found))

    def plan(self, absent: dict[str, str]) -> Plan:
        """Return what is to be run.

        Args:
            absent: task → why there is no data of it.
        """
        models = named_models(self.models)
        paths = dict(models)
        models += [(name + DISTILLED, paths[name]) for name in self.second_distillation or []]
        return Plan(models, self.tasks(), absent, list(range(self.seed, self.seed + self.seeds)))

    def run_options(self, model: str, task: str, seed: int) -> dict[str, Any]:
        """Return the options of one run, as `FinetuneArguments` takes them.

        Args:
            model: name of a model, as in the plan.
            task: name of the task.
            seed: of the run.
        """
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(FinetuneArguments) if f.init}
        path = dict(named_models(self.models))[model.removesuffix(DISTILLED)]
        output = str(Path(self.output_dir or "") / ".runs" / model / task / f"seed-{seed}-{self.learning_rate}")
        return given | {"model": path, "task": task, "seed": seed, "output_dir": output, "save_strategy": "no"}
