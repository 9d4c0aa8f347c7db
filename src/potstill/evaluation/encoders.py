"""Scores sentence encoders and rerankers on the sets of their suites.

Nothing is trained, so a folder has one run of a set. The folders of a model that was trained with several seeds are
runs of one model: see `Plan.folders`.
"""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from potstill.errors import PotstillError
from potstill.evaluation.evaluate_arguments import EvaluateArguments
from potstill.evaluation.pool import EvaluationProgress, failed, interrupted
from potstill.evaluation.results import ONE_RUN, Plan, RunResult, another_run, option_differences, run_path
from potstill.evaluation.scorers import Scorer
from potstill.evaluation.suite import EncoderSet, EncoderSuite
from potstill.evaluation.suites import ENCODER_SUITES
from potstill.json_files import check_finite
from potstill.tasks.load import TaskDataAbsentError
from potstill.training.hardware import hardware
from potstill.versions import versions
from potstill.wording import counted


@dataclass(frozen=True)
class EncoderInputs:
    """What an evaluation of encoders reads.

    Attributes:
        sets: (suite, set), in the order of the tables.
        scorers: name of a model and number of its folder → the model, on the CPU.
        absent: suite → why it has no data.
    """

    sets: list[tuple[EncoderSuite, EncoderSet]]
    scorers: dict[tuple[str, int], Scorer]
    absent: dict[str, str]

    @property
    def names(self) -> list[str]:
        """The names of the sets."""
        return [one.name for _, one in self.sets]


def read_inputs(args: EvaluateArguments) -> EncoderInputs:
    """Read the data of the suites, and load the models, so that bad input is reported before the first run.

    Raises:
        PotstillError: data or a model cannot be read, or a suite does not suit a model.
    """
    inputs = EncoderInputs([], {}, {})
    chosen = [ENCODER_SUITES[name] for name in args.encoder_suites()]
    for suite in chosen:
        try:
            sources = _sources(args, suite)
        except TaskDataAbsentError as error:
            inputs.absent[suite.name] = str(error)
            continue
        columns = getattr(args, f"{suite.name}_columns", None)
        inputs.sets.extend((suite, one) for one in suite.read(sources, columns, args.on_bad_rows))
    folders = args.folders() if inputs.sets else {}
    for name, seed, path in ((name, *item) for name, paths in folders.items() for item in enumerate(paths, ONE_RUN)):
        try:
            scorer = Scorer(path, args.max_length, args.per_device_eval_batch_size)
        except PotstillError as error:
            raise PotstillError(f"{name}: {error}") from error
        wrong = next((suite.name for suite in chosen if suite.embeds and not scorer.embeds), None)
        if wrong is not None:
            raise PotstillError(f"{name}: {path} is a reranker, and the suite {wrong} needs embeddings: leave out one.")
        inputs.scorers[name, seed] = scorer
    return inputs


class EncoderRuns:
    """The runs of all models on all sets.

    Args:
        args: the options of the verb.
        plan: models and tasks.
        folder: the folder of results.
        inputs: data and models.
    """

    def __init__(self, args: EvaluateArguments, plan: Plan, folder: Path, inputs: EncoderInputs) -> None:
        self.args, self.plan, self.folder, self.inputs = args, plan, folder, inputs

    def check_results(self) -> None:
        """Check, before anything is run or written, that existing results belong to the planned runs.

        Raises:
            PotstillError: a result is damaged, or its run had other options, weights or data.
        """
        for (model, seed), scorer in self.inputs.scorers.items():
            for _, one in self.inputs.sets:
                file = run_path(self.folder, model, one.name, seed)
                if not file.is_file():
                    continue
                result = RunResult.load(file)
                differing = option_differences(scorer.settings, result.hyperparameters)
                if result.model_fingerprint != scorer.weights:
                    differing.append(f"the weights of {model} were different")
                if result.data_fingerprint != one.fingerprint:
                    differing.append(f"the data of {one.name} were different")
                if differing:
                    raise another_run(file, differing)

    def run(self) -> None:
        """Do the missing runs, one model after another.

        Raises:
            PotstillError: a model cannot be scored, or the runs were interrupted. Finished runs are kept.
        """
        cells = [(model, seed, self._missing(model, seed)) for model, seed in self.inputs.scorers]
        count = len(cells) * len(self.inputs.sets)
        missing = sum(len(sets) for *_, sets in cells)
        if not missing:
            return
        size = float(sum(_size(one) for *_, sets in cells for _, one in sets))
        progress = EvaluationProgress(size, count, count - missing)
        before = f", {count - missing} of them done before" if missing < count else ""
        print(f"{counted(count, 'run')} without training{before}", file=sys.stderr, flush=True)
        with progress:
            for model, seed, sets in cells:
                if sets:
                    self._run_model(model, seed, sets, progress)

    def _missing(self, model: str, seed: int) -> list[tuple[EncoderSuite, EncoderSet]]:
        return [
            (suite, one)
            for suite, one in self.inputs.sets
            if not run_path(self.folder, model, one.name, seed).is_file()
        ]

    def _run_model(
        self, model: str, seed: int, sets: Sequence[tuple[EncoderSuite, EncoderSet]], progress: EvaluationProgress
    ) -> None:
        scorer = self.inputs.scorers[model, seed].to(self.args.device)
        several = f" · folder {seed + 1}" if model in (self.plan.folders or {}) else ""
        for suite, one in sets:
            run = f"{model}{several} · {one.name}"
            scorer.cut, started = 0, time.monotonic()
            progress.show(run)
            try:
                metrics = one.score(scorer)
                check_finite(metrics, "This run has no result")
            except PotstillError as error:
                raise failed(run, str(error)) from error
            except KeyboardInterrupt as error:
                raise interrupted() from error
            result = RunResult(
                model=model,
                model_path=scorer.path,
                task=one.name,
                title=one.name,
                suite=suite.name,
                seed=seed,
                score=metrics["score"],
                metrics=metrics,
                teacher=None,
                hyperparameters=scorer.settings,
                versions=versions("potstill", "torch", "transformers", "tokenizers")
                | (scorer.exported.versions if scorer.exported else {}),
                hardware=hardware(self.args.device),
                seconds={"scoring": time.monotonic() - started},
                rows=one.rows | ({"texts cut": scorer.cut} if scorer.cut else {}),
                data_fingerprint=one.fingerprint,
                model_fingerprint=scorer.weights,
                date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                bad_rows=one.left_out,
            )
            result.save(self.folder)
            progress.log(run, _size(one), result)
        scorer.to("cpu")


def _sources(args: EvaluateArguments, suite: EncoderSuite) -> list[Path]:
    """Return the files and folders of a suite: those of its own option, or those in the folder of all tasks' data."""
    named: list[str] | None = getattr(args, f"{suite.name}_data")
    if named:
        return [Path(path).expanduser() for path in named]
    if args.task_data is None:
        raise PotstillError(f"--{suite.name}_data is missing: name the data of the suite {suite.name}.")
    folder = Path(args.task_data).expanduser()
    if not folder.is_dir():
        raise PotstillError(f"--task_data {folder} is not a folder: name the one that holds the tasks' data.")
    found = suite.find(folder)
    if not found:
        raise TaskDataAbsentError(f"{folder} has no folder {suite.name}: name its data with --{suite.name}_data.")
    return found


def _size(one: EncoderSet) -> int:
    return sum(one.rows.values())
