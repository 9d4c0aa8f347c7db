"""The verb `evaluate`: models × tasks × seeds in, tables out."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from potstill.arguments import named_models
from potstill.corpus.fingerprint import tokenizer_fingerprint
from potstill.errors import PotstillError
from potstill.evaluation.compare import compare
from potstill.evaluation.evaluate_arguments import DISTILLED, LEARNING_RATES, EvaluateArguments
from potstill.evaluation.pool import EvaluationProgress, do_all
from potstill.evaluation.results import PLAN, Plan, load_results
from potstill.evaluation.run import PlannedRun, data_fingerprint, forget, task_data
from potstill.files import check_writable
from potstill.finetuning.finetune_arguments import FinetuneArguments
from potstill.finetuning.job import InputReader
from potstill.finetuning.predict import model_fingerprint
from potstill.finetuning.result import RunResult, relevant, run_path
from potstill.finetuning.trainer import hyperparameters
from potstill.student.loading import model_folder
from potstill.tasks.load import TaskDataAbsentError
from potstill.tasks.registry import title_of

SMALL = 50_000_000
"""Parameters below which one run leaves most of a GPU idle."""


def evaluate(args: EvaluateArguments) -> str:
    """Fine-tune models on tasks with several seeds, keep each score, and compare the models.

    Give the same command again to go on after an interruption: runs that are finished are not done anew. With other
    models, tasks or seeds, and all else the same, what is there is kept and the rest is done. On GPUs the runs are
    done in processes of their own, so a script calls this under `if __name__ == "__main__":`.

    Args:
        args: at least `models`, `suite` and `output_dir`.

    Returns:
        What `compare` prints of the results.

    Raises:
        PotstillError: bad input, told before the first run where it can be known then; or a run failed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise PotstillError("evaluate starts a process for each GPU itself: run it without torchrun or accelerate.")
    folder = Path(args.output_dir or "").expanduser()
    _check_folder(folder)
    forget()
    found = _Found(resuming=(folder / PLAN).is_file())
    _look_at_models(args, found)
    _look_at_data(args, found)
    plan = args.plan(found.absent)
    if not plan.present:
        raise PotstillError(f"There is no data of any task: {' '.join(found.absent.values())}")
    evaluation = _Evaluation(args, plan, folder, found)
    if found.resuming:
        evaluation.take_up()
    plan.save(folder)
    for task, why in found.absent.items():
        print(f"{title_of(task)} is absent: {why}", file=sys.stderr, flush=True)
    try:
        evaluation.run()
    finally:
        shutil.rmtree(folder / ".runs", ignore_errors=True)
        forget()
    return compare(str(folder))


@dataclass
class _Found:
    """What models and data are there.

    Attributes:
        resuming: whether there are results, which fingerprints are to be compared with.
        parameters: path of a model → about how many it has; the vocabulary is not counted.
        weights: path of a model → its fingerprint, if resuming.
        absent: task → why there is no data of it.
        rows: task → how many there are to train on.
        data: task → its fingerprint, if resuming.
    """

    resuming: bool
    parameters: dict[str, int] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)


def _check_folder(folder: Path) -> None:
    if os.path.lexists(folder) and not folder.is_dir():
        raise PotstillError(f"--output_dir {folder} is a file: name a folder.")
    check_writable(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / PLAN).is_file():
        raise PotstillError(f"--output_dir {folder} is not empty and has no {PLAN}: name another folder.")


def _look_at_models(args: EvaluateArguments, found: _Found) -> None:
    """Read config and tokenizer of each model, as each of its runs will."""
    tokenizers = {}
    for name, path in named_models(args.models):
        # Tasks differ in the length that a model is to read.
        every = [FinetuneArguments(**args.run_options(name, task, args.seed)) for task in args.tasks()]
        for run in {run.max_length: run for run in every}.values():
            try:
                reader = InputReader.of(run, path, "model")
            except PotstillError as error:
                raise PotstillError(f"{name}: {error}") from error
        tokenizers[name] = tokenizer_fingerprint(reader.tokenizer)
        layers = getattr(reader.config, "num_hidden_layers", 12)
        found.parameters[path] = 12 * layers * getattr(reader.config, "hidden_size", 768) ** 2
        if found.resuming:
            found.weights[path] = model_fingerprint(model_folder(path, "model"))
    teacher, *_ = tokenizers
    spans = [run.declared_task.title for run in every if run.declared_task.by_token]
    for name in args.second_distillation or []:
        if spans and tokenizers[name] != tokenizers[teacher]:
            raise PotstillError(
                f"--second_distillation {name}: the answers of {spans[0]} are places among tokens, but {teacher} has "
                "another tokenizer: leave out this model or this task."
            )


def _look_at_data(args: EvaluateArguments, found: _Found) -> None:
    name = named_models(args.models)[0][0]
    for task in args.tasks():
        try:
            data = task_data(FinetuneArguments(**args.run_options(name, task, args.seed)))
        except TaskDataAbsentError as error:
            found.absent[task] = str(error)
            continue
        found.rows[task] = len(data.train)
        if found.resuming:
            found.data[task] = data_fingerprint(data)


class _Evaluation:
    """What is to be run, in the order that it depends on each other.

    Args:
        args: of the verb.
        plan: models, tasks and seeds.
        folder: of the results.
        found: models and data.
    """

    def __init__(self, args: EvaluateArguments, plan: Plan, folder: Path, found: _Found) -> None:
        self.args, self.plan, self.folder, self.found = args, plan, folder, found
        self.paths = dict(plan.models)
        self.teacher = plan.models[0][0]
        self.teacher_seeds: dict[str, int] = {}
        self.rates: dict[tuple[str, str], float] = {}

    def take_up(self) -> None:
        """Make sure, before anything is run or written, that what is there is what would be run.

        Raises:
            PotstillError: a result is damaged, or of a run with other options, weights or data.
        """
        planned = set(self.plan.runs())
        for result in load_results(self.folder)[1]:
            if (result.model, result.task, result.seed) not in planned:
                continue
            if self.args.search and result.searched is not None:
                rate = result.hyperparameters.get("learning_rate")
                if rate not in LEARNING_RATES:
                    raise PotstillError(
                        f"{run_path(self.folder, result.model, result.task, result.seed)} is of another run: its "
                        f"learning rate, {rate!r}, is none of those that --search tries. Name another --output_dir, "
                        "or delete it."
                    )
                self.rates.setdefault((result.model, result.task), rate)
            if result.model.endswith(DISTILLED) and result.teacher is not None:
                # More seeds may have another median, but all of a row have one teacher.
                name, _, seed = result.teacher.rpartition(", seed ")
                if name == self.teacher and seed.isdecimal():
                    self.teacher_seeds.setdefault(result.task, int(seed))
            self._is_done(self._work(result.model, result.task, result.seed))

    def run(self) -> None:
        """Do all that is not done yet: the search, then the seeds; models with the second distillation last."""
        second = [name for name, _ in self.plan.models if name.endswith(DISTILLED)]
        self._stage([name for name, _ in self.plan.models if name not in second])
        if second:
            for task in self.plan.present:
                if task not in self.teacher_seeds:
                    self.teacher_seeds[task] = self._median(task)
            self._stage(second)
        shutil.rmtree(self.folder / ".teachers", ignore_errors=True)

    def _stage(self, models: list[str]) -> None:
        # By task first, whose data are then read once for all models.
        cells = [(model, task) for task in self.plan.present for model in models]
        if self.args.search:
            missing = [cell for cell in cells if cell not in self.rates]
            self._do([self._searching(*cell, rate) for cell in missing for rate in LEARNING_RATES], "of the search")
            for cell in missing:
                self._choose(*cell)
        self._do([self._work(*cell, seed) for cell in cells for seed in self.plan.seeds])

    def _do(self, planned: list[PlannedRun], what: str = "") -> None:
        to_do = [work for work in planned if not self._is_done(work)]
        if not to_do:
            return
        self._do_teachers(list(dict.fromkeys(work.options["task"] for work in to_do if work.options["teacher"])))
        done = len(planned) - len(to_do)
        there = f", {done} of them done before" if done else ""
        print(" ".join(part for part in (f"{len(planned)} runs", what) if part) + there, file=sys.stderr, flush=True)
        self._start(to_do, len(planned))

    def _do_teachers(self, tasks: list[str]) -> None:
        """Fine-tune the first model once more, with the median's seed, and keep it until the students are done."""
        planned = []
        for task in tasks:
            kept = self.folder / ".teachers" / task
            work = self._work(self.teacher, task, self.teacher_seeds[task])
            work = dataclasses.replace(work, file=kept.with_name(f"{task}.json"), keep=kept)
            there = work.file.is_file() and kept.is_dir() and not self._differing(work, RunResult.load(work.file))
            planned += [] if there else [work]
        self._start(planned, len(planned))

    def _start(self, planned: list[PlannedRun], count: int) -> None:
        sized = [(work, self._size(work)) for work in planned]
        progress = EvaluationProgress(sum(size for _, size in sized), count, count - len(planned))
        small = max(self.found.parameters.values()) < SMALL
        do_all(sized, self.args.runs_per_gpu or (4 if small else 1), progress)

    def _choose(self, model: str, task: str) -> None:
        """Take the learning rate that scored best; its run is one of those planned."""
        found = {}
        for rate in LEARNING_RATES:
            file = self._searching(model, task, rate).file
            if file.is_file():
                found[rate] = RunResult.load(file)
        if not found:
            raise PotstillError(f"{model} · {title_of(task)}: none of the learning rates could be run; see above.")
        best = max(found, key=lambda rate: found[rate].score)
        self.rates[model, task] = best
        planned = run_path(self.folder, model, task, self.plan.seeds[0])
        if not planned.is_file():
            found[best].save_as(planned)

    def _work(self, model: str, task: str, seed: int) -> PlannedRun:
        file = run_path(self.folder, model, task, seed)
        return self._described(model, task, seed, file, self.rates.get((model, task)))

    def _searching(self, model: str, task: str, rate: float) -> PlannedRun:
        seed = self.plan.seeds[0]
        file = self.folder / ".search" / model / task / f"seed-{seed}-learning_rate-{rate:g}.json"
        # A rate that is too high may end in losses that are no numbers.
        return dataclasses.replace(self._described(model, task, seed, file, rate), may_fail=True)

    def _described(self, model: str, task: str, seed: int, file: Path, rate: float | None) -> PlannedRun:
        options, searched, taught_by = self.args.run_options(model, task, seed), None, None
        if rate is not None:
            options |= {"learning_rate": rate, "output_dir": f"{options['output_dir']}-{rate:g}"}
            searched = {"learning_rate": list(LEARNING_RATES)}
        if model.endswith(DISTILLED):
            options["teacher"] = str(self.folder / ".teachers" / task)
            taught_by = f"{self.teacher}, seed {self.teacher_seeds.get(task)}"
        return PlannedRun(model, options, file, None, searched, taught_by)

    def _median(self, task: str) -> int:
        """Return the seed with which the first model's score on a task is the median, the lower one of two."""
        results = [RunResult.load(run_path(self.folder, self.teacher, task, seed)) for seed in self.plan.seeds]
        return sorted(results, key=lambda result: result.score)[(len(results) - 1) // 2].seed

    def _is_done(self, work: PlannedRun) -> bool:
        """Tell whether a run is there, and is what would be run.

        Raises:
            PotstillError: it was run with other options.
        """
        if not work.file.is_file():
            return False
        differing = self._differing(work, RunResult.load(work.file))
        if differing:
            raise PotstillError(
                f"{work.file} is of another run: {'; '.join(differing)}. Name another --output_dir, give what it was "
                "run with, or delete it."
            )
        return True

    def _differing(self, work: PlannedRun, result: RunResult) -> list[str]:
        """Return what a result was run with that differs from what would be run, in words."""
        args = work.args()
        mine, theirs = hyperparameters(args), relevant(result.hyperparameters, bool(args.teacher), args.is_question)
        messages = [
            f"{name} was {theirs.get(name, 'not given')} and is {mine.get(name, 'not given')}"
            for name in sorted({*mine, *theirs})
            if _plain(mine.get(name)) != theirs.get(name)
        ]
        task, path = work.options["task"], self.paths[work.model]
        values = {
            "the model": (result.model, work.model),
            "the task": (result.task, task),
            "the seed": (result.seed, work.options["seed"]),
            "its teacher": (result.teacher, work.taught_by),
            "--search": (result.searched is not None, work.searched is not None or self.args.search),
        }
        messages += [f"{what} was {theirs} and is {mine}" for what, (theirs, mine) in values.items() if theirs != mine]
        if result.model_fingerprint != self.found.weights.get(path, result.model_fingerprint):
            messages.append(f"the weights of {work.model} ({path}) were others")
        if result.data_fingerprint != self.found.data.get(task, result.data_fingerprint):
            messages.append(f"the data of {title_of(task)} were others")
        return messages

    def _size(self, work: PlannedRun) -> float:
        """Return about how long a run takes, in a unit of its own."""
        args = work.args()
        rows = self.found.rows[args.task or ""] * float(args.num_train_epochs or 1)
        # A small model's steps all take the same time; a large one's grow with what it computes.
        parameters = self.found.parameters[self.paths[work.model]]
        return rows * (1 + (args.max_length or 128) / 128 * parameters / SMALL)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))
