"""The verb `prune`: removes the attention heads and feed-forward neurons of a task model that matter least."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from potstill.arguments import RECIPE, recipe_text, recipe_values
from potstill.compress.cut import cut, locate_removable
from potstill.compress.journal import Journal
from potstill.compress.prune_arguments import NOT_READ, PruneArguments
from potstill.compress.pruning import Point, Pruning, Step, progress
from potstill.compress.subject import Subject
from potstill.errors import PotstillError
from potstill.finetuning.predict import fingerprint
from potstill.finetuning.result import RESULTS, RunResult
from potstill.finetuning.trainer import result_of
from potstill.json_files import json_text
from potstill.live_line import say
from potstill.report.label_card import PICTURE, is_drawn
from potstill.report.prune_card import PLOT, prune_card
from potstill.student.model_files import model_folder
from potstill.student.pruned import is_pruned
from potstill.training.hub import make_repository, upload
from potstill.training.output import atomic_output, claimed_output_dir
from potstill.training.run_record import model_fingerprint

CURVE = f"{PLOT}.json"
"""The file with the points of the plot."""


@dataclass(frozen=True)
class PrunedModel:
    """What was removed, and the folder of the model.

    Attributes:
        folder: the folder of the model.
        results: the fields of `RunResult`, as in the folder's `results.json`.
    """

    folder: Path
    results: dict[str, Any]

    def __str__(self) -> str:
        pruning = self.results["pruning"]
        first, last = Point(**pruning["curve"][0]), Point(**pruning["curve"][-1])
        removed = [
            f"{number:,} {what} removed ({share:.1%})"
            for number, what, share in (
                (last.heads, "heads", last.heads_share),
                (last.neurons, "neurons", last.neurons_share),
            )
            if number
        ]
        lines = [
            f"{self.results['task']}: {', '.join(removed)} · score {first.score:.1f} → {last.score:.1f}",
            f"parameters {first.parameters:,} → {last.parameters:,}, in the layers {first.layer_parameters:,} → "
            f"{last.layer_parameters:,}",
        ]
        if last.speed is not None:
            lines.append(f"{last.whole_milliseconds:.2f} → {last.milliseconds:.2f} ms a text ({last.speed:.2f} ×)")
        if pruning["needs_potstill"]:
            lines.append("its layers differ, so it loads in transformers after `import potstill.pruned`")
        return "\n".join([*lines, f"wrote {self.folder}/"])


def prune(args: PruneArguments) -> PrunedModel:
    """Remove the attention heads and feed-forward neurons of a fine-tuned model that matter least to its task.

    Importance is the gradient of the loss with respect to the mask of a head (Michel et al. 2019). The folder has a
    smaller model, a card, and a plot of score and latency against the share removed.

    Args:
        args: at least `model`, `task`, `output_dir`, and `heads` or `neurons`.

    Returns:
        The scores before and after, and the folder.

    Raises:
        PotstillError: the input is bad, which is reported before anything is written; or the first step loses more than
            `max_loss`.
    """
    for name in ("model", "task"):
        if not getattr(args, name):
            raise PotstillError(f"--{name} is missing: pruning needs a fine-tuned model and its task.")
    if args.heads is None and args.neurons is None:
        raise PotstillError("--heads and --neurons are missing: say how many to remove, as in --heads 0.3.")
    with claimed_output_dir(args) as folder:
        repository = make_repository(args)
        pruned = _prune(args, folder)
        upload(args, repository, folder)
    return pruned


def _prune(args: PruneArguments, folder: Path) -> PrunedModel:
    started = time.monotonic()
    recipe = recipe_text("prune", args, NOT_READ)
    subject = Subject(args)
    located = locate_removable(subject.model, args.heads is not None, args.neurons is not None)
    pruning = Pruning(subject, located, args)
    data_hash = fingerprint({"train": subject.job.data.train, **subject.job.data.dev})
    model_hash = model_fingerprint(model_folder(args.model or "", "model"))
    journal = Journal(folder, {"recipe": recipe, "data": data_hash, "model": model_hash})
    prepared = time.monotonic()
    steps = [Step.from_record(record, located) for record in journal.read()]
    if steps:
        say(f"continues after step {len(steps) - 1} of {args.steps}")
    else:
        steps.append(pruning.first())
        journal.write([step.record for step in steps])
        progress(0, args.steps, steps[0].point, prepared, 1)
    model: PreTrainedModel | None = None
    begun, stopped = time.monotonic(), None
    for done, number in enumerate(range(len(steps), args.steps + 1), start=1):
        step, found = pruning.next(steps[-1], number)
        progress(number, args.steps, step.point, begun, done)
        if args.max_loss is not None and step.point.score < steps[0].point.score - args.max_loss:
            stopped = step.point.score
            break
        steps.append(step)
        journal.write([step.record for step in steps])
        model = found
    if len(steps) == 1:
        journal.remove()
        raise PotstillError(
            f"The first step lowers the score from {steps[0].point.score:.2f} to {stopped:.2f}, by more than the "
            f"{args.max_loss:g} points of --max_loss: take smaller steps with a larger --steps."
        )
    model = cut(located, steps[-1].heads, steps[-1].neurons) if model is None else model
    result = _result(subject, model, steps, stopped, data_hash, prepared - started, time.monotonic() - prepared)
    _write(subject, model, folder, result, recipe)
    journal.remove()
    return PrunedModel(folder, result.record)


def _result(
    subject: Subject,
    model: PreTrainedModel,
    steps: list[Step],
    stopped: float | None,
    data_hash: str,
    preparing: float,
    pruning: float,
) -> RunResult:
    args, last = subject.args, steps[-1]
    score, metrics, details = subject.score(model)
    measured = {
        "score": score,
        "metrics": metrics,
        **details,
        "seconds": {"preparing": round(preparing, 3), "pruning": round(pruning, 3)},
        "steps": None,
        "hyperparameters": {
            name: getattr(args, name)
            for name in ("heads", "neurons", "steps", "uniform", "normalise", "max_loss", "max_train_samples")
        }
        | {"max_length": args.max_length},
    }
    record = {
        "curve": [asdict(step.point) for step in steps],
        "stopped": stopped,
        "heads_before": last.heads.total,
        "neurons_before": last.neurons.total,
        "heads_of_layers": [len(numbers) for numbers in last.heads.numbers],
        "neurons_of_layers": [len(numbers) for numbers in last.neurons.numbers],
        "kept_heads": [numbers.tolist() for numbers in last.heads.numbers],
        "timed_rows": args.timed_rows,
        "needs_potstill": is_pruned(model.config),
    }
    return result_of(args, subject.job.data, measured, data_hash, pruning=record)


def _write(subject: Subject, model: PreTrainedModel, folder: Path, result: RunResult, recipe: str) -> None:
    # matplotlib takes long to import
    from potstill.report.plots import confusion_plot, trade_off_plot

    args, points = subject.args, [Point(**point) for point in (result.pruning or {})["curve"]]
    of_heads = args.heads is not None
    shares = [100 * (point.heads_share if of_heads else point.neurons_share) for point in points]
    times = [point.milliseconds for point in points if point.milliseconds is not None]
    removed = "heads" if of_heads else "neurons"
    svg, png = trade_off_plot(shares, [point.score for point in points], times or None, removed)
    with atomic_output(folder) as staging:
        model.save_pretrained(staging)
        subject.job.tokenizer.save_pretrained(staging)
        (staging / RECIPE).write_text(recipe, encoding="utf-8")
        (staging / RESULTS).write_text(json_text(result.record, RESULTS) + "\n", encoding="utf-8")
        curve = {"removed": removed, "curve": [asdict(point) | {"speed": point.speed} for point in points]}
        (staging / CURVE).write_text(json.dumps(curve, indent=1) + "\n", encoding="utf-8")
        (staging / f"{PLOT}.svg").write_text(svg, encoding="utf-8")
        (staging / f"{PLOT}.png").write_bytes(png)
        card = prune_card(recipe_values(args, NOT_READ), asdict(result), args.declared_task, is_pruned(model.config))
        (staging / "README.md").write_text(card, encoding="utf-8")
        if result.confusion is not None and is_drawn(result.confusion):
            (staging / PICTURE).write_bytes(confusion_plot(**result.confusion))
