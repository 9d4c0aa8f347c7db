"""The result of a fine-tuning: one schema for what `finetune` and `evaluate` write and what `compare` reads.

`evaluate` writes a file for each run, `MODEL/TASK/seed-SEED.json`; `finetune` writes `results.json` beside the model.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.errors import PotstillError
from potstill.json_files import read_object
from potstill.records import VERSION, checked_fields, read_record, write_record
from potstill.tasks.registry import TASKS, title_of

FORMAT_VERSION = 2
"""1 was what `evaluate` alone wrote; what `finetune` wrote then had no version, and is read as well."""

RESULTS = "results.json"
"""In a folder that `finetune` wrote."""

WHAT = "the result of a run"

NOT_HYPERPARAMETERS = {
    *("model", "task", "task_data", "seed", "teacher", "without_teacher_too"),
    # A score does not depend on these: a run that was interrupted may be taken up with others.
    *("disable_tqdm", "logging_steps", "logging_strategy", "report_to", "per_device_eval_batch_size"),
    "on_bad_rows",  # the fingerprint of the data tells whether they are others
    *("save_strategy", "save_steps", "save_total_limit", "dataloader_num_workers", "dataloader_pin_memory"),
}
OF_TEACHERS = {"alpha_ce", "alpha_task", "alpha_cos", "temperature", "soft_positions"}
OF_QUESTIONS = {"stride", "max_answer_length", "n_best", "null_threshold", "dev_share", "on_bad_answer"}


@dataclass(frozen=True)
class RunResult:
    """One model, fine-tuned on one task with one seed, and scored.

    Attributes:
        model: the name that the user gave it, e.g. "student"; from `finetune` the last part of `model_path`.
        model_path: the folder or hub name it was read from.
        task: as the command line knows it, e.g. "sst2".
        title: as papers print it, e.g. "SST-2".
        suite: that the task belongs to, e.g. "glue"; the task's own name where it belongs to none.
        seed: of the new head, the order of the rows and dropout.
        score: the task's score, in percent.
        metrics: name → value, as the task's own scoring returns it; split → name → value where several are scored.
        teacher: the task model that soft targets came from (second distillation), None for plain fine-tuning.
        hyperparameters: what the run was trained with; the values that won where they were searched.
        versions: package → version.
        hardware: what it ran on, in words.
        seconds: part of the run → time; the parts do not overlap.
        rows: split → examples.
        data_fingerprint: of the task's rows as they were read, before any tokenizer.
        model_fingerprint: of the encoder's weights before fine-tuning; None if it was not recorded.
        date: of its end, ISO 8601; None if it was not recorded.
        searched: hyper-parameter → values tried; None if none was searched.
        bad_rows: split → rows left out because they could not be used; None in results of before they were counted.
        bad_answers: answers left out because their context does not hold them.
        steps: of the optimiser.
        rows_per_second: of the training.
        teacher_on_labels: how the teacher fares on the training labels: figures by name.
        without_teacher: score, metrics, seconds, steps and rows a second of the same run without its teacher.
        changed_on_resume: for each resumption that changed options, its step, and option → its value before and after.
        log_history: of the trainer; None from `evaluate`, which keeps it short.
    """

    model: str
    model_path: str
    task: str
    title: str
    suite: str
    seed: int
    score: float
    metrics: dict[str, float | dict[str, float]]
    teacher: str | None
    hyperparameters: dict[str, Any]
    versions: dict[str, str]
    hardware: str
    seconds: dict[str, float]
    rows: dict[str, int]
    data_fingerprint: str
    model_fingerprint: str | None
    date: str | None
    searched: dict[str, list[Any]] | None = None
    bad_rows: dict[str, int] | None = None
    bad_answers: int | None = None
    steps: int | None = None
    rows_per_second: float | None = None
    teacher_on_labels: dict[str, Any] | None = None
    without_teacher: dict[str, Any] | None = None
    changed_on_resume: list[Any] | None = None
    log_history: list[Any] | None = None

    def save(self, folder: Path) -> Path:
        """Write the run to its place in a folder of `evaluate`, and return the file.

        Raises:
            PotstillError: a field is not what it should be (a score that is no number is no result), or the file
                cannot be written.
        """
        path = run_path(folder, self.model, self.task, self.seed)
        self.save_as(path)
        return path

    def save_as(self, path: Path) -> None:
        """Write the run to a file of any name; see `save`."""
        write_record(path, self, FORMAT_VERSION)

    @property
    def record(self) -> dict[str, Any]:
        """What `finetune` writes: a number that is not finite, which JSON does not have, becomes null.

        A training may log such a number and be sound all the same: the first steps in fp16 have gradients of infinite
        norm. Nobody wants to lose the model for that.
        """
        values: dict[str, Any] = _finite(dataclasses.asdict(self))
        return {VERSION: FORMAT_VERSION} | values

    @classmethod
    def load(cls, path: Path) -> RunResult:
        """Read a run.

        Raises:
            PotstillError: the file cannot be read, is damaged, or is no run.
        """
        return cls(**read_record(path, cls, FORMAT_VERSION, WHAT))

    @classmethod
    def of_folder(cls, folder: Path) -> RunResult:
        """Read the result in a folder that `finetune` wrote, in the present format or as it was before it had one.

        Raises:
            PotstillError: the file cannot be read, is damaged, or is of another verb.
        """
        path = folder / RESULTS
        record = read_object(path, "The result of a run", "fine-tune the model again", finite=False)
        if VERSION not in record and "task" in record:
            record = _of_before(record, folder)
        elif VERSION not in record and "held_out" in record:
            raise PotstillError(
                f"{path} is of a model that was distilled or pre-trained, and has no score of a task: name the folder "
                "of a fine-tuning."
            )
        return cls(**checked_fields(record, path, cls, FORMAT_VERSION, WHAT))


def run_path(folder: Path, model: str, task: str, seed: int) -> Path:
    """Return where the result of a run of `evaluate` is, or will be."""
    return folder / model / task / f"seed-{seed}.json"


def relevant(values: dict[str, Any], taught: bool, questions: bool) -> dict[str, Any]:
    """Return those of the options of a run that its score depends on.

    Args:
        values: options by name.
        taught: whether the run has a task teacher.
        questions: whether its task is to answer questions.
    """
    left_out = NOT_HYPERPARAMETERS | (set() if taught else OF_TEACHERS) | (set() if questions else OF_QUESTIONS)
    return {name: value for name, value in values.items() if name not in left_out}


def _of_before(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the record of a fine-tuning of before it had a version; the recipe beside it says with what it was run."""
    import yaml

    try:
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):  # without it the score stands all the same
        recipe = None
    recipe = recipe if isinstance(recipe, dict) else {}
    task, model = str(record["task"]), str(recipe.get("model", folder.name))
    named = {
        VERSION: 1,
        "model": Path(model).name or model,
        "model_path": model,
        "title": title_of(task),
        "suite": TASKS[task].suite_name if task in TASKS else task,
        "hyperparameters": relevant(recipe, bool(record.get("teacher")), task.startswith("squad")),
        "model_fingerprint": None,
        "date": None,
    }
    values: dict[str, Any] = _finite(record | named)
    return values


def _finite(value: Any) -> Any:
    """Return a value with None for each number in it that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
