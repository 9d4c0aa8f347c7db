"""The result of a fine-tuning: the schema of the files that `finetune` and `evaluate` write and `compare` reads.

`evaluate` writes a file for each run, `MODEL/TASK/seed-SEED.json`; `finetune` writes `results.json` into its folder.
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
from potstill.yaml_files import parse_yaml, read_yaml_text

FORMAT_VERSION = 2
"""Only `evaluate` wrote format 1. Files that `finetune` wrote at that time have no version; they can be read too."""

RESULTS = "results.json"
"""The file in a folder of `finetune`."""

WHAT = "the result of a run"

NOT_HYPERPARAMETERS = {
    *("model", "task", "task_data", "train_data", "eval_data", "seed", "teacher", "without_teacher_too"),
    *("unlabelled", "unlabelled_columns", "without_unlabelled_too", "stages", "shape", "corpus"),
    # A score does not depend on these, so an interrupted run may continue with other values.
    *("disable_tqdm", "logging_steps", "logging_strategy", "report_to", "per_device_eval_batch_size"),
    *("text_column", "pair_column", "label_column", "columns", "label_names", "label_separator"),
    *("on_bad_rows", "rerank_columns"),  # they change the data, and so their fingerprint, which is compared
    *("break_lock", "on_nan", "max_skipped_steps"),  # what was skipped is recorded
    *("save_strategy", "save_steps", "save_total_limit", "dataloader_num_workers", "dataloader_pin_memory"),
}
OF_TEACHERS = {"alpha_ce", "alpha_task", "alpha_cos", "temperature", "soft_positions", "soft_loss"}
OF_TEACHERS |= {"augment", "unlabelled_ratio", "teacher_heads", "teacher_weights"}
OF_QUESTIONS = {"stride", "max_answer_length", "n_best", "null_threshold", "dev_share", "on_bad_answer"}


@dataclass(frozen=True)
class RunResult:
    """One model, fine-tuned on one task with one seed, and scored.

    Attributes:
        model: the model's name from the user, e.g. "student"; with `finetune` the last part of `model_path`.
        model_path: folder or hub name that it was read from.
        task: its name on the command line, e.g. "sst2".
        title: the task's name in papers, e.g. "SST-2".
        suite: the suite of the task, e.g. "glue"; the task's own name if it belongs to none.
        seed: of the new head, the order of the rows and dropout.
        score: the task's score, in percent.
        metrics: name → value, as the task's scoring returns it; split → name → value if several splits are scored.
        teacher: the task model that gave the soft targets (second distillation), or several with commas between; None
            without a teacher.
        hyperparameters: name → value in training; for searched ones the best value.
        versions: package → version.
        hardware: the hardware of the run, in words.
        seconds: part of the run → its time; the parts do not overlap.
        rows: split → number of examples.
        data_fingerprint: hash of the task's rows as they were read, before tokenisation.
        model_fingerprint: hash of the encoder's weights before fine-tuning; None if it was not recorded.
        date: date and time of the run's end, ISO 8601; None if it was not recorded.
        searched: hyper-parameter → values tried; None if none was searched.
        bad_rows: split → number of rows left out because they could not be used; None in older results. For suites that
            train nothing it is reason → number.
        bad_answers: number of answers left out because their context does not contain them.
        steps: number of steps of the optimiser.
        rows_per_second: rows that training read per second.
        teacher_on_labels: name → figure on how well the teacher predicts the training labels, or those of the scored
            rows if no training row has a label; of several teachers the folder of each → these.
        without_teacher: score, metrics, seconds, steps and rows per second of the same run without its teacher.
        unlabelled: about the texts without labels that the teacher taught: the number of `texts`, of those that were
            left out, and of those that an epoch read, and their fingerprint; None without such texts.
        without_unlabelled: the measurements of the same run with the teacher but without these texts.
        changed_on_resume: for each resumption that changed options, its step, and option → its value before and after.
        layers: the layers of the model that were kept, from 0; None for all.
        per_label: label, or kind of entity, → `precision`, `recall` and `f1` in percent, and `support`, over all scored
            rows; None for tasks without labels and in older results.
        confusion: `labels`, and `counts` with a row for each correct label and a column for each predicted one; None if
            a row may have several labels, or none.
        stages: of a model that was trained in stages: for each the `stage`, its `folder`, `steps`, `seconds`, and its
            `score` or the `held_out` figures; None for a single run.
        quantized: `quantization`, `score` and metrics of the model as its int8 export computes, simulated; None without
            `--quantization`.
        pruning: what `prune` removed, and the scores on the way; None for a run of another verb.
        fixed_point: the formats of `--fixed_point`, and the share of values out of their range; None without it.
        scored_fingerprint: hash of the scored rows alone, with their labels by name; None in older results and for
            suites that train nothing.
        emissions: grams of CO₂ equivalents of the training and what measured them; None if nothing did.
        skipped_steps: steps that `--on_nan skip` left out; None in older results and for suites that train nothing.
        loss_spikes: steps with a loss far above those before: see `Spike`; None as above.
        log_history: the log of the trainer; None in files of `evaluate`, which are kept short.
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
    unlabelled: dict[str, Any] | None = None
    without_unlabelled: dict[str, Any] | None = None
    changed_on_resume: list[Any] | None = None
    layers: list[int] | None = None
    per_label: dict[str, dict[str, float]] | None = None
    confusion: dict[str, list[Any]] | None = None
    stages: list[Any] | None = None
    quantized: dict[str, Any] | None = None
    pruning: dict[str, Any] | None = None
    fixed_point: dict[str, Any] | None = None
    scored_fingerprint: str | None = None
    emissions: dict[str, Any] | None = None
    skipped_steps: list[int] | None = None
    loss_spikes: list[Any] | None = None
    log_history: list[Any] | None = None

    def save(self, folder: Path) -> Path:
        """Write the result to its file in a folder of `evaluate`, and return the path.

        Raises:
            PotstillError: a field is not valid (for example, a score that is not finite), or the file cannot be
                written.
        """
        path = run_path(folder, self.model, self.task, self.seed)
        self.save_as(path)
        return path

    def save_as(self, path: Path) -> None:
        """Write the result to a file of any name; see `save`."""
        write_record(path, self, FORMAT_VERSION)

    @property
    def record(self) -> dict[str, Any]:
        """The record that `finetune` writes. Numbers that are not finite, which JSON does not have, become null.

        A good training may log such numbers: in fp16 the first steps have gradients of infinite norm. The model must
        not be lost because of them.
        """
        values: dict[str, Any] = _finite(dataclasses.asdict(self))
        return {VERSION: FORMAT_VERSION} | values

    @classmethod
    def load(cls, path: Path) -> RunResult:
        """Read a result.

        Raises:
            PotstillError: the file cannot be read, is damaged, or is not the result of a run.
        """
        return cls(**read_record(path, cls, FORMAT_VERSION, WHAT))

    @classmethod
    def of_folder(cls, folder: Path) -> RunResult:
        """Read the result in a folder of `finetune`, in the present format or in that without a version.

        Raises:
            PotstillError: the file cannot be read, is damaged, or was written by another verb.
        """
        path = folder / RESULTS
        record = read_object(path, "The result of a run", "fine-tune the model again", finite=False)
        if VERSION not in record and "task" in record:
            record = _from_unversioned(record, folder)
        elif VERSION not in record and "held_out" in record:
            raise PotstillError(
                f"{path} is of a model that was distilled or pre-trained, and has no score of a task: name the folder "
                "of a fine-tuning."
            )
        return cls(**checked_fields(record, path, cls, FORMAT_VERSION, WHAT))


def run_path(folder: Path, model: str, task: str, seed: int) -> Path:
    """Return the path of the result of a run of `evaluate`, which need not exist."""
    return folder / model / task / f"seed-{seed}.json"


def relevant(values: dict[str, Any], taught: bool, questions: bool) -> dict[str, Any]:
    """Return the options of a run that its score depends on.

    Args:
        values: options by name.
        taught: whether the run has a task teacher.
        questions: whether its task is to answer questions.
    """
    left_out = NOT_HYPERPARAMETERS | (set() if taught else OF_TEACHERS) | (set() if questions else OF_QUESTIONS)
    return {name: value for name, value in values.items() if name not in left_out}


def _from_unversioned(record: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a record without a version in the present format; its options are read from the folder's recipe."""
    import yaml

    try:
        recipe = parse_yaml(read_yaml_text(folder / "recipe.yaml"))
    except (PotstillError, OSError, ValueError, yaml.YAMLError):  # the score is valid without the recipe
        recipe = None
    recipe = recipe if isinstance(recipe, dict) else {}
    task, model = str(record["task"]), str(recipe.get("model", folder.name))
    added = {
        VERSION: 1,
        "model": Path(model).name or model,
        "model_path": model,
        "title": title_of(task),
        "suite": TASKS[task].suite_name if task in TASKS else task,
        "hyperparameters": relevant(recipe, bool(record.get("teacher")), task.startswith("squad")),
        "model_fingerprint": None,
        "date": None,
    }
    values: dict[str, Any] = _finite(record | added)
    return values


def _finite(value: Any) -> Any:
    """Return a value in which each number that is not finite is replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
