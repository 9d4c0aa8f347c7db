"""The verb `evaluate`: runs models × tasks × seeds and returns tables."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from potstill.arguments import named_models
from potstill.bilstm.options import NAME
from potstill.corpus.fingerprint import tokenizer_fingerprint
from potstill.errors import PotstillError
from potstill.evaluation.compare import compare
from potstill.evaluation.encoders import EncoderRuns, read_inputs
from potstill.evaluation.evaluate_arguments import LEARNING_RATES, TAUGHT, UNLABELLED, EvaluateArguments
from potstill.evaluation.pool import EvaluationProgress, RunPool
from potstill.evaluation.results import PLAN, Plan, another_run, load_results, option_differences
from potstill.evaluation.run import PlannedRun, clear_cache, data_fingerprint, task_data
from potstill.files import check_writable
from potstill.finetuning.finetune_arguments import FinetuneArguments
from potstill.finetuning.job import InputReader, unlabelled_texts
from potstill.finetuning.model_source import model_source
from potstill.finetuning.result import RunResult, relevant, run_path
from potstill.finetuning.trainer import hyperparameters
from potstill.locks import locked
from potstill.student.model_files import model_folder
from potstill.tasks.load import TaskDataAbsentError
from potstill.tasks.registry import title_of
from potstill.training.run_record import model_fingerprint
from potstill.wording import counted

SMALL = 50_000_000
"""A run of a model with fewer parameters leaves most of a GPU idle."""


def evaluate(args: EvaluateArguments) -> str:
    """Fine-tune models on tasks with several seeds, save each score, and compare the models.

    Sentence encoders and rerankers are scored as they are on the suites sts, retrieval and rerank, without seeds.

    To continue after an interruption, give the same command again: finished runs are not repeated. If only the models,
    tasks or seeds are changed, finished runs are kept and missing ones are done. On GPUs the runs are done in separate
    processes, so a script must call this under `if __name__ == "__main__":`.

    Args:
        args: at least `models`, `suite` and `output_dir`.

    Returns:
        The text that `compare` prints for the results.

    Raises:
        PotstillError: the input is bad, which is reported before the first run if possible; or a run failed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise PotstillError("evaluate starts a process for each GPU itself: run it without torchrun or accelerate.")
    folder = Path(args.output_dir or "").expanduser()
    _check_folder(folder)
    with locked(folder, break_lock=args.break_lock):
        return _evaluate(args, folder)


def _evaluate(args: EvaluateArguments, folder: Path) -> str:
    clear_cache()
    inputs = _Inputs(resuming=(folder / PLAN).is_file())
    _read_models(args, inputs)
    _read_data(args, inputs)
    encoder_inputs = read_inputs(args)
    absent = inputs.absent | encoder_inputs.absent
    plan = args.plan(absent, encoder_inputs.names)
    if not plan.present:
        raise PotstillError(f"None of the tasks has data: {' '.join(absent.values())}")
    plan.check()
    evaluation = _Evaluation(args, plan, folder, inputs)
    encoder_runs = EncoderRuns(args, plan, folder, encoder_inputs)
    if inputs.resuming:
        evaluation.check_results()
        encoder_runs.check_results()
    plan.save(folder)
    for task, reason in absent.items():
        print(f"{title_of(task)} is absent: {reason}", file=sys.stderr, flush=True)
    try:
        encoder_runs.run()
        evaluation.run()
    finally:
        shutil.rmtree(folder / ".runs", ignore_errors=True)
        clear_cache()
    return compare(str(folder))


@dataclass
class _Inputs:
    """Facts about the models and the data that an evaluation reads.

    Attributes:
        resuming: whether the folder already has results. If so, fingerprints of models and data are compared with them.
        parameters: path of a model → its approximate number of parameters, without the vocabulary.
        weights: path of a model → fingerprint of its weights, if resuming.
        absent: task → why it has no data.
        rows: task → number of rows to train on.
        data: task → fingerprint of its data, if resuming.
        texts: number of unlabelled texts, and their fingerprint; None if there are none.
    """

    resuming: bool
    parameters: dict[str, int] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    texts: tuple[int, str] | None = None


def _check_folder(folder: Path) -> None:
    if os.path.lexists(folder) and not folder.is_dir():
        raise PotstillError(f"--output_dir {folder} is a file: name a folder.")
    check_writable(folder)
    if (folder / PLAN).is_file() or not folder.is_dir():
        return
    unfinished = set(folder.glob(f".{PLAN}.*.partial"))  # of a run that was killed while it wrote the plan
    if set(folder.iterdir()) - unfinished:
        raise PotstillError(f"--output_dir {folder} is not empty and has no {PLAN}: name another folder.")


def _read_models(args: EvaluateArguments, inputs: _Inputs) -> None:
    """Read config and tokenizer of each model in the way in which its fine-tuning runs will read them."""
    if not args.tasks():
        return
    tokenizers = {}
    for name, path in named_models(args.models):
        # The maximum length differs between tasks.
        every_run = [FinetuneArguments(**args.run_options(name, task, args.seed)) for task in args.tasks()]
        for run in {run.max_length: run for run in every_run}.values():
            try:
                reader = InputReader.of(run, model_source(run), "model")
            except PotstillError as error:
                raise PotstillError(f"{name}: {error}") from error
        tokenizers[name] = tokenizer_fingerprint(reader.tokenizer)
        layers = getattr(reader.config, "num_hidden_layers", 12)
        inputs.parameters[path] = 12 * layers * getattr(reader.config, "hidden_size", 768) ** 2
        if inputs.resuming and path != NAME:  # a new BiLSTM is another one for pairs
            inputs.weights[path] = model_fingerprint(model_folder(path, "model"))
    teacher, *_ = tokenizers
    spans = [run.declared_task.title for run in every_run if run.declared_task.by_token]
    for name in args.second_distillation or []:
        if spans and tokenizers[name] != tokenizers[teacher]:
            raise PotstillError(
                f"--second_distillation {name}: the answers of {spans[0]} are token positions, but {teacher} has "
                "another tokenizer: leave out this model or this task."
            )


def _read_data(args: EvaluateArguments, inputs: _Inputs) -> None:
    name = named_models(args.models)[0][0]
    for task in args.tasks():
        try:
            data = task_data(FinetuneArguments(**args.run_options(name, task, args.seed)))
        except TaskDataAbsentError as error:
            inputs.absent[task] = str(error)
            continue
        inputs.rows[task] = len(data.train)
        if inputs.resuming:
            inputs.data[task] = data_fingerprint(data)
        if args.unlabelled:  # a mistake in them must not show only when the models without them are done
            run = FinetuneArguments(**args.run_options(name + UNLABELLED, task, args.seed) | {"teacher": name})
            found = unlabelled_texts(run, data)
            inputs.texts = len(found), found.fingerprint


class _Evaluation:
    """Does the runs of an evaluation in the order of their dependencies.

    Args:
        args: the options of the verb.
        plan: models, tasks and seeds.
        folder: the folder of results.
        inputs: facts about models and data.
    """

    def __init__(self, args: EvaluateArguments, plan: Plan, folder: Path, inputs: _Inputs) -> None:
        self.args, self.plan, self.folder, self.inputs = args, plan, folder, inputs
        self.paths = dict(plan.models)
        self.teacher = plan.models[0][0]
        self.teacher_seeds: dict[str, int] = {}
        self.rates: dict[tuple[str, str], float] = {}
        small = max(inputs.parameters.values(), default=0) < SMALL
        self.pool = RunPool.of(args.use_cpu, args.runs_per_gpu or (4 if small else 1))

    def check_results(self) -> None:
        """Check, before anything is run or written, that existing results belong to the planned runs.

        Raises:
            PotstillError: a result is damaged, or its run had other options, weights or data.
        """
        planned = set(self.plan.runs())
        for result in load_results(self.folder)[1]:
            if (result.model, result.task, result.seed) not in planned or result.task not in self.plan.trained:
                continue
            if self.args.search and result.searched is not None:
                rate = result.hyperparameters.get("learning_rate")
                if rate not in LEARNING_RATES:
                    raise PotstillError(
                        f"{run_path(self.folder, result.model, result.task, result.seed)} is of another run: its "
                        f"learning rate, {rate!r}, is not one that --search tries. Name another --output_dir, or "
                        "delete this file."
                    )
                self.rates.setdefault((result.model, result.task), rate)
            if result.model.endswith(TAUGHT) and result.teacher is not None:
                # With more seeds another seed may be the median, but all runs of a task must have the same teacher.
                name, _, seed = result.teacher.rpartition(", seed ")
                if name == self.teacher and seed.isdecimal():
                    self.teacher_seeds.setdefault(result.task, int(seed))
            self._is_done(self._seed_run(result.model, result.task, result.seed))

    def run(self) -> None:
        """Do all missing runs: first the search, then the seeds; models with the second distillation come last."""
        second = [name for name, _ in self.plan.models if name.endswith(TAUGHT)]
        with self.pool:
            self._run_models([name for name, _ in self.plan.models if name not in second])
            if second:
                for task in self.plan.trained:
                    if task not in self.teacher_seeds:
                        self.teacher_seeds[task] = self._median_seed(task)
                self._run_models(second)
        shutil.rmtree(self.folder / ".teachers", ignore_errors=True)

    def _run_models(self, models: list[str]) -> None:
        # All models of a task follow each other, so that its data are read once.
        cells = [(model, task) for task in self.plan.trained for model in models]
        if self.args.search:
            missing = [cell for cell in cells if cell not in self.rates]
            self._run_missing(
                [self._search_run(*cell, rate) for cell in missing for rate in LEARNING_RATES], "of the search"
            )
            for cell in missing:
                self._choose_rate(*cell)
        self._run_missing([self._seed_run(*cell, seed) for cell in cells for seed in self.plan.seeds])

    def _run_missing(self, planned: list[PlannedRun], purpose: str = "") -> None:
        missing = [run for run in planned if not self._is_done(run)]
        if not missing:
            return
        self._run_teachers(list(dict.fromkeys(run.task for run in missing if run.options["teacher"])))
        done = len(planned) - len(missing)
        before = f", {done} of them done before" if done else ""
        runs = " ".join(part for part in (counted(len(planned), "run"), purpose) if part)
        print(runs + before, file=sys.stderr, flush=True)
        self._run_all(missing, len(planned))

    def _run_teachers(self, tasks: list[str]) -> None:
        """Fine-tune the first model again with its median seed, and keep it until the students are done."""
        planned = []
        for task in tasks:
            kept = self.folder / ".teachers" / task
            run = self._seed_run(self.teacher, task, self.teacher_seeds[task])
            run = dataclasses.replace(run, file=kept.with_name(f"{task}.json"), keep=kept)
            done = run.file.is_file() and kept.is_dir() and not self._differing(run, RunResult.load(run.file))
            planned += [] if done else [run]
        self._run_all(planned, len(planned))

    def _run_all(self, planned: list[PlannedRun], count: int) -> None:
        sized = [(run, self._size(run)) for run in planned]
        with EvaluationProgress(sum(size for _, size in sized), count, count - len(planned)) as progress:
            self.pool.do_all(sized, progress)

    def _choose_rate(self, model: str, task: str) -> None:
        """Choose the learning rate that scored best, and use its run as the planned run of the first seed."""
        results = {}
        for rate in LEARNING_RATES:
            file = self._search_run(model, task, rate).file
            if file.is_file():
                results[rate] = RunResult.load(file)
        if not results:
            raise PotstillError(f"{model} · {title_of(task)}: none of the learning rates could be run; see above.")
        best = max(results, key=lambda rate: results[rate].score)
        self.rates[model, task] = best
        planned = run_path(self.folder, model, task, self.plan.seeds[0])
        if not planned.is_file():
            results[best].save_as(planned)

    def _seed_run(self, model: str, task: str, seed: int) -> PlannedRun:
        file = run_path(self.folder, model, task, seed)
        return self._planned_run(model, task, seed, file, self.rates.get((model, task)))

    def _search_run(self, model: str, task: str, rate: float) -> PlannedRun:
        seed = self.plan.seeds[0]
        file = self.folder / ".search" / model / task / f"seed-{seed}-learning_rate-{rate:g}.json"
        # With a learning rate that is too high, losses may become NaN.
        return dataclasses.replace(self._planned_run(model, task, seed, file, rate), may_fail=True)

    def _planned_run(self, model: str, task: str, seed: int, file: Path, rate: float | None) -> PlannedRun:
        options, searched, teacher_name = self.args.run_options(model, task, seed), None, None
        if rate is not None:
            options |= {"learning_rate": rate, "output_dir": f"{options['output_dir']}-{rate:g}"}
            searched = {"learning_rate": list(LEARNING_RATES)}
        if model.endswith(TAUGHT):
            options["teacher"] = str(self.folder / ".teachers" / task)
            teacher_name = f"{self.teacher}, seed {self.teacher_seeds.get(task)}"
        return PlannedRun(model, options, file, None, searched, teacher_name)

    def _median_seed(self, task: str) -> int:
        """Return the seed of the first model's median score on a task; of two middle scores the lower one counts."""
        results = [RunResult.load(run_path(self.folder, self.teacher, task, seed)) for seed in self.plan.seeds]
        return sorted(results, key=lambda result: result.score)[(len(results) - 1) // 2].seed

    def _is_done(self, run: PlannedRun) -> bool:
        """Return whether a run has a result.

        Raises:
            PotstillError: its result is of a run with other options, weights or data.
        """
        if not run.file.is_file():
            return False
        differing = self._differing(run, RunResult.load(run.file))
        if differing:
            raise another_run(run.file, differing)
        return True

    def _differing(self, run: PlannedRun, result: RunResult) -> list[str]:
        """Return a message for each option, weight or data set of a result that differs from the planned run."""
        args = run.args()
        planned, found = hyperparameters(args), relevant(result.hyperparameters, bool(args.teacher), args.is_question)
        messages = option_differences(planned, found)
        task, path = run.task, self.paths[run.model]
        values = {
            "the model": (result.model, run.model),
            "the task": (result.task, task),
            "the seed": (result.seed, run.options["seed"]),
            "its teacher": (result.teacher, run.teacher_name),
            "--search": (result.searched is not None, run.searched is not None or self.args.search),
        }
        messages += [f"{what} was {before} and is {now}" for what, (before, now) in values.items() if before != now]
        if result.model_fingerprint != self.inputs.weights.get(path, result.model_fingerprint):
            messages.append(f"the weights of {run.model} ({path}) were different")
        if result.data_fingerprint != self.inputs.data.get(task, result.data_fingerprint):
            messages.append(f"the data of {title_of(task)} were different")
        if args.unlabelled and self.inputs.texts is not None:
            before = (result.unlabelled or {}).get("fingerprint")
            messages += ["the unlabelled texts were different"] * (before != self.inputs.texts[1])
        return messages

    def _size(self, run: PlannedRun) -> float:
        """Return an estimate of a run's time, in an arbitrary unit."""
        args = run.args()
        labelled = self.inputs.rows[run.task]
        texts = self.inputs.texts[0] if args.unlabelled and self.inputs.texts is not None else 0
        if texts and args.unlabelled_ratio is not None:
            texts = round(args.unlabelled_ratio * labelled)
        rows = (labelled + texts) * float(args.num_train_epochs or 1)
        # All steps of a small model take the same time. A large model's time grows with its parameters and
        # with the length of its rows.
        parameters = self.inputs.parameters[self.paths[run.model]]
        return rows * (1 + (args.max_length or 128) / 128 * parameters / SMALL)
