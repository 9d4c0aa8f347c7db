"""The verb `evaluate`: models × tasks × seeds in, tables out."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from potstill.errors import PotstillError
from potstill.evaluation.compare import compare
from potstill.evaluation.options import DISTILLED, LEARNING_RATES, EvaluateArguments
from potstill.evaluation.pool import Progress, do_all
from potstill.evaluation.results import PLAN, Plan, RunResult, run_path
from potstill.evaluation.run import Work, hyperparameters, task_data
from potstill.finetuning.options import FinetuneArguments
from potstill.student.loading import model_folder
from potstill.tasks.load import TaskDataAbsentError

SMALL = 50_000_000
"""Parameters below which one run leaves most of a GPU idle."""


def evaluate(args: EvaluateArguments) -> str:
    """Fine-tune models on tasks with several seeds, keep each score, and compare the models.

    Give the same command again to go on after an interruption: runs that are finished are not done anew.

    Args:
        args: at least `models`, `suite` and `output_dir`.

    Returns:
        What `compare` prints of the results.

    Raises:
        PotstillError: bad input, told before the first run where it can be known then; or a run failed.
    """
    folder = Path(args.output_dir or "").expanduser()
    _check_folder(folder)
    absent, rows = _look_at_data(args)
    plan = args.plan(absent)
    if not plan.present:
        raise PotstillError(f"There is no data of any task: {' '.join(absent.values())}")
    plan.check()
    evaluation = _Evaluation(args, plan, folder, rows)
    plan.save(folder)
    try:
        evaluation.run()
    finally:
        shutil.rmtree(folder / ".runs", ignore_errors=True)
    return compare(str(folder))


def _check_folder(folder: Path) -> None:
    if folder.is_file():
        raise PotstillError(f"--output_dir {folder} is a file: name a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / PLAN).is_file():
        raise PotstillError(f"--output_dir {folder} is not empty and has no {PLAN}: name another folder.")


def _look_at_data(args: EvaluateArguments) -> tuple[dict[str, str], dict[str, int]]:
    """Return why there is no data of some tasks, and how many rows the others have to train on."""
    absent, rows = {}, {}
    name = args.named_models()[0][0]
    for task in args.tasks():
        try:
            rows[task] = len(task_data(FinetuneArguments(**args.run_options(name, task, args.seed))).train)
        except TaskDataAbsentError as error:
            absent[task] = str(error)
    return absent, rows


class _Evaluation:
    """What is to be run, in the order that it depends on each other.

    Args:
        args: of the verb.
        plan: models, tasks and seeds.
        folder: of the results.
        rows: task → rows to train on.
    """

    def __init__(self, args: EvaluateArguments, plan: Plan, folder: Path, rows: dict[str, int]) -> None:
        self.args, self.plan, self.folder, self.rows = args, plan, folder, rows
        self.parameters = {name: _parameters(path) for name, path in plan.models}
        self.medians: dict[str, int] = {}
        self.rates: dict[tuple[str, str], float] = {}

    def run(self) -> None:
        """Do all that is not done yet: the search, then the seeds; models with the second distillation last."""
        second = [name for name, _ in self.plan.models if name.endswith(DISTILLED)]
        self._stage([name for name, _ in self.plan.models if name not in second])
        if second:
            self.medians = {task: self._median(task) for task in self.plan.present}
            self._stage(second)
            shutil.rmtree(self.folder / ".teachers", ignore_errors=True)

    def _stage(self, models: list[str]) -> None:
        if self.args.search:
            grid = [self._searching(m, t, rate) for m in models for t in self.plan.present for rate in LEARNING_RATES]
            self._do(grid)
            for model in models:
                for task in self.plan.present:
                    tried = {rate: self._searching(model, task, rate).file for rate in LEARNING_RATES}
                    self.rates[model, task] = max(tried, key=lambda rate: RunResult.load(tried[rate]).score)
        self._do([self._work(m, t, seed) for m in models for t in self.plan.present for seed in self.plan.seeds])

    def _do(self, works: list[Work]) -> None:
        to_do = [(work, self._size(work)) for work in works if not self._is_done(work)]
        for task in dict.fromkeys(work.options["task"] for work, _ in to_do if work.taught_by is not None):
            self._fine_tune_teacher(task)
        progress = Progress(sum(size for _, size in to_do), len(works), len(works) - len(to_do))
        small = max(self.parameters.values()) < SMALL
        do_all(to_do, self.args.runs_per_gpu or (4 if small else 1), progress)

    def _work(self, model: str, task: str, seed: int) -> Work:
        file = run_path(self.folder, model, task, seed)
        if not self.args.search:
            return self._described(model, task, seed, file)
        return self._described(model, task, seed, file, self.rates[model, task])

    def _searching(self, model: str, task: str, rate: float) -> Work:
        file = self.folder / ".search" / model / task / f"learning_rate-{rate:g}.json"
        return self._described(model, task, self.plan.seeds[0], file, rate)

    def _described(self, model: str, task: str, seed: int, file: Path, rate: float | None = None) -> Work:
        options, searched, taught_by = self.args.run_options(model, task, seed), None, None
        if rate is not None:
            options |= {"learning_rate": rate, "output_dir": f"{options['output_dir']}-{rate:g}"}
            searched = {"learning_rate": list(LEARNING_RATES)}
        if model.endswith(DISTILLED):
            options["teacher"] = str(self.folder / ".teachers" / task)
            taught_by = f"{self.plan.models[0][0]}, seed {self.medians[task]}"
        return Work(model, options, file, None, searched, taught_by)

    def _median(self, task: str) -> int:
        """Return the seed with which the first model's score on a task is the median, the lower one of two."""
        name = self.plan.models[0][0]
        results = [RunResult.load(run_path(self.folder, name, task, seed)) for seed in self.plan.seeds]
        return sorted(results, key=lambda result: result.score)[(len(results) - 1) // 2].seed

    def _fine_tune_teacher(self, task: str) -> None:
        """Fine-tune the first model once more, with the median's seed, and keep it until the students are done."""
        kept = self.folder / ".teachers" / task
        if (kept / "config.json").is_file():
            return
        work = self._work(self.plan.models[0][0], task, self.medians[task])
        teacher = dataclasses.replace(work, file=kept.with_suffix(".json"), keep=kept)
        do_all([(teacher, 1.0)], 1, Progress(1.0, 1, 0))

    def _is_done(self, work: Work) -> bool:
        """Tell whether a run is there, and is what would be run.

        Raises:
            PotstillError: it was run with other options.
        """
        if not work.file.is_file():
            return False
        result = RunResult.load(work.file)
        mine, theirs = hyperparameters(work.args()), result.hyperparameters
        differing = [name for name in sorted({*mine, *theirs}) if _plain(mine.get(name)) != theirs.get(name)]
        if differing:
            name = differing[0]
            raise PotstillError(
                f"{work.file} was run with {name} {theirs.get(name)}, not {mine.get(name)}: name another --output_dir, "
                "or delete it."
            )
        return True

    def _size(self, work: Work) -> float:
        """Return about how long a run takes, in a unit of its own."""
        args = work.args()
        rows = self.rows[args.task or ""] * float(args.num_train_epochs or 1)
        # A small model's steps all take the same time; a large one's grow with what it computes.
        return rows * (1 + (args.max_length or 128) / 128 * self.parameters[work.model] / SMALL)


def _parameters(path: str) -> int:
    """Return about how many parameters a model has, by its config; the vocabulary is not counted."""
    config: Any = AutoConfig.from_pretrained(model_folder(path, "model"), local_files_only=True)
    return 12 * config.num_hidden_layers * config.hidden_size**2


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))
