"""The verb `finetune`: trains a model on a task and scores it."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from potstill.arguments import RECIPE, recipe_values
from potstill.bilstm.config import BiLSTMConfig
from potstill.errors import PotstillError
from potstill.finetuning.finetune_arguments import FinetuneArguments
from potstill.finetuning.frozen import FrozenEncoder
from potstill.finetuning.job import Job
from potstill.finetuning.result import RESULTS, RunResult
from potstill.finetuning.trainer import FinetuneTrainer, flat, result_of, train_once
from potstill.json_files import json_text
from potstill.report.label_card import PICTURE, is_drawn
from potstill.report.task_card import task_card
from potstill.student.pruned import is_pruned
from potstill.tasks.metrics import shown
from potstill.training.compatibility import check_launch
from potstill.training.control import TrainingInterrupted
from potstill.training.emissions import measured_emissions
from potstill.training.hub import upload
from potstill.training.output import atomic_output, claimed_output_dir
from potstill.wording import agreeing, counted


@dataclass(frozen=True)
class Finetuned:
    """The results of a fine-tuning and the folder of the model.

    Attributes:
        folder: the folder of the model.
        results: the fields of `RunResult`, as in the folder's `results.json`.
    """

    folder: Path
    results: dict[str, Any]

    def __str__(self) -> str:
        results = self.results
        lines = [f"{results['task']}: {_metrics(results)} ({_rows(results)})"]
        if results["stages"] is not None:
            lines.append(f"stages: {' → '.join(map(_stage, results['stages']))}")
        if results["without_teacher"] is not None:
            lines.append(f"the same run without the teacher: {_metrics(results['without_teacher'])}")
        if results["quantized"] is not None:
            kind, score = results["quantized"]["quantization"], results["quantized"]["score"]
            lines.append(f"score {results['score']:.2f} in float32, {score:.2f} as the export in {kind} computes")
        if results["without_unlabelled"] is not None:
            lines.append(f"the same run without the unlabelled texts: {_metrics(results['without_unlabelled'])}")
        left_out = [f"{count:,} of {split}" for split, count in results["bad_rows"].items() if count]
        if left_out:
            lines.append(f"bad rows left out: {', '.join(left_out)}")
        if results["bad_answers"]:
            count = results["bad_answers"]
            its, it = agreeing(count, "its", "their"), agreeing(count, "it", "them")
            lines.append(f"{counted(count, 'answer')} left out because {its} context does not contain {it}")
        return "\n".join([*lines, f"wrote {self.folder}/"])


def finetune(args: FinetuneArguments) -> Finetuned:
    """Fine-tune a model on a task, with a task teacher's soft targets if there is one, and score it.

    The written folder can be loaded with `AutoModelForQuestionAnswering`, or with `AutoModelForSequenceClassification`
    and `pipeline("text-classification")`, or with `AutoModelForTokenClassification` and
    `pipeline("token-classification")`. It also contains a card, the recipe as YAML, and the results.

    Args:
        args: at least `model`, `task` and `output_dir`.

    Returns:
        The scores; with a teacher also the scores of the same run without it.

    Raises:
        PotstillError: the input is bad, which is reported before anything is written if possible.
        TrainingInterrupted: a signal ended training; a checkpoint to resume from is saved.
    """
    if args.stages is not None:
        from potstill.finetuning.staged import finetune_in_stages  # here, because it imports this module

        return finetune_in_stages(args)
    for name in ("model", "task"):
        if not getattr(args, name):
            raise PotstillError(f"--{name} is missing: fine-tuning needs a model and a task.")
    args.check_effects()
    with claimed_output_dir(args) as folder:
        return _finetune(args, folder)


def _finetune(args: FinetuneArguments, folder: Path) -> Finetuned:
    check_launch(args)
    plain = Job.prepare(args)
    job = plain.with_teacher() if args.teacher else plain
    trainer, measured = train_once(job)
    more: dict[str, Any] = {
        "teacher_on_labels": job.teacher_on_labels,
        "changed_on_resume": trainer.changes or None,
        "layers": job.layers,
        "unlabelled": None if job.unlabelled is None else job.unlabelled.record(job.drawn),
        "log_history": trainer.state.log_history,
        "emissions": measured_emissions(trainer),
    }
    result = result_of(args, job.data, measured, **more)
    _write(trainer, folder, result)
    labelled = (
        getattr(job.data, "labelled", True) and len(job.data.train) > 0
    )  # without labels nothing is left without the teacher or its texts
    if job.unlabelled is not None and args.without_unlabelled_too and labelled:
        result = dataclasses.replace(result, without_unlabelled=_without("unlabelled texts", plain, folder))
        _write(trainer, folder, result)
    if args.teacher and args.without_teacher_too and labelled:
        result = dataclasses.replace(result, without_teacher=_without("teacher", plain, folder))
        _write(trainer, folder, result)
    upload(args, trainer.hub_model_id, folder)
    return Finetuned(folder, result.record)


def _without(what: Literal["teacher", "unlabelled texts"], job: Job, folder: Path) -> dict[str, Any]:
    """Return the measurements of the same run without its teacher or without unlabelled texts.

    The model is not kept.

    Args:
        what: what the run lacks; without a teacher it lacks unlabelled texts too.
        job: the job, before `with_teacher`.
        folder: the folder of the complete run.
    """
    temporary = folder / f".without_{what.split()[0]}"
    # The settings stay the same, although the defaults without a teacher may be different.
    changed: dict[str, Any] = {"output_dir": str(temporary), "save_strategy": "no", "resume_from_checkpoint": None}
    changed |= {"losses": None, "teacher_heads": None, "teacher_weights": None} if what == "teacher" else {}
    changed |= {"unlabelled": None, "unlabelled_ratio": None, "unlabelled_columns": None}
    changed |= {"augment": None}
    args = dataclasses.replace(job.args, **changed | ({"teacher": None} if what == "teacher" else {}))
    job = dataclasses.replace(job, args=args, unlabelled=None)
    try:
        return train_once(job.with_teacher() if args.teacher else job)[1]
    except TrainingInterrupted as interruption:
        error = PotstillError(
            f"Interrupted in the same run without the {what}; the run with the teacher is complete in {folder}."
        )
        error.exit_status = interruption.exit_status
        raise error from interruption
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(trainer: FinetuneTrainer, folder: Path, result: RunResult) -> None:
    if not trainer.args.should_save:
        return
    with atomic_output(folder) as staging:
        trainer.trained.save_pretrained(staging)
        trainer.processing_class.save_pretrained(staging)
        (staging / RECIPE).write_text(trainer.recipe, encoding="utf-8")
        (staging / RESULTS).write_text(json_text(result.record, RESULTS) + "\n", encoding="utf-8")
        frozen, task = isinstance(trainer.trained, FrozenEncoder), trainer.args.declared_task
        config = getattr(trainer.trained, "encoder", trainer.trained).config if frozen else trainer.trained.config
        bilstm = config if isinstance(config, BiLSTMConfig) else None
        recipe = recipe_values(trainer.args)
        card = task_card(recipe, dataclasses.asdict(result), task, frozen, is_pruned(config), bilstm)
        (staging / "README.md").write_text(card, encoding="utf-8")
        if is_drawn(result.confusion):
            (staging / PICTURE).write_bytes(_picture(json.dumps(result.confusion)))


@functools.lru_cache(maxsize=1)
def _picture(confusion: str) -> bytes:
    """Return the picture of a confusion matrix, which is given as JSON. A run may write its folder several times."""
    from potstill.report.plots import confusion_plot  # matplotlib takes long to import

    return confusion_plot(**json.loads(confusion))


def _metrics(results: dict[str, Any]) -> str:
    by_file = {name: metrics["score"] for name, metrics in results["metrics"].items() if isinstance(metrics, dict)}
    if len(by_file) > 2:
        files = ", ".join(f"{name} {shown(name, score)}" for name, score in by_file.items())
        return f"score {shown('score', results['score'])}, the mean of {files}"
    metrics = flat(results["metrics"])
    names = [name for name in metrics if not name.endswith(("total", "missing", "_score"))]
    return ", ".join(f"{name} {shown(name, metrics[name])}" for name in names)


def _stage(stage: dict[str, Any]) -> str:
    figure = f"score {stage['score']:.1f}" if "score" in stage else counted(stage["steps"], "step")
    return f"{stage['stage']} ({figure})"


def _rows(results: dict[str, Any]) -> str:
    rows, unlabelled = results["rows"], results["unlabelled"]
    taught = counted(unlabelled["texts"], "unlabelled text") if unlabelled else ""
    train = taught if taught and not rows["train"] else counted(rows["train"], "training row")
    return f"{train}, {sum(rows.values()) - rows['train']:,} scored"
