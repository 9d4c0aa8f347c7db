"""Quality against time: held-out masked LM of a student over GPU-minutes, by potstill's step and by the plain one.

    python -m reproduce.time_to_quality --minutes 8

It does three runs of the same recipe, each on one GPU: each step for `--minutes`, and potstill's step once more with
its whole schedule in a share of this time. The plain step is eager PyTorch under autocast with the models' own forward
passes (`potstill bench train --baseline`). The clock starts with the first step, so it includes compilation. The time
of the evaluations is excluded, both from this clock and from the clock of the learning rate.
"""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from queue import Queue
from tempfile import TemporaryDirectory
from typing import Any

import torch
from matplotlib.figure import Figure
from transformers import TrainerCallback

from potstill import DistillationArguments, DistillationTrainer, build_student
from potstill.bench.plain import PlainStep
from potstill.errors import PotstillError
from potstill.files import write_text
from potstill.student import load_masked_lm
from potstill.training.control import RunControl
from reproduce.common import new_parser, place_of, read_json, run, write_result
from reproduce.power import visible_gpus
from reproduce.processes import passing_signals
from reproduce.runs import run_script
from reproduce.students import add_recipe, recipe_of
from reproduce.training import model_figures, sessions_of

CURVES = ("plain", "potstill", "potstill-short")
POINTS = 24


def main(argv: list[str]) -> None:
    """Do the three runs. Write their curves, a plot, and the minutes until each reaches the plain step's last loss."""
    parser = new_parser(__doc__, minutes=8)
    add_recipe(parser)
    parser.add_argument("--short", type=float, default=0.45, help="share of the minutes for the third run")
    parser.add_argument("--max_steps", type=int, default=-1, help="end each run after this number of steps")
    parser.add_argument("--max_eval_samples", type=int, default=512)
    parser.add_argument("--one", choices=CURVES, help="do only this run, in this process; for internal use")
    options = parser.parse_args(argv)
    place = place_of(options)
    if options.one:
        write_text(place.work / f"curve-{options.one}.json", json.dumps(_curve(options), indent=1) + "\n")
        return
    recipe = recipe_of(options, place)
    files = {name: place.work / f"curve-{name}.json" for name in CURVES}
    to_do = [name for name, file in files.items() if not _is_done(file, options)]
    gpus = visible_gpus(place.gpus)
    free: Queue[list[str]] = Queue()
    for visible in [[gpu] for gpu in gpus] or [[]]:
        free.put(visible)

    def start(name: str) -> None:
        visible = free.get()  # a GPU on which no other run is timed
        try:
            run_script("time_to_quality", [*argv, "--one", name, "--gpus", str(len(visible))], visible, f"{name} | ")
        finally:
            free.put(visible)

    with passing_signals(), ThreadPoolExecutor(max(1, len(gpus))) as pool:
        runs = [pool.submit(start, name) for name in to_do]
    for one in runs:
        one.result()
    curves = {name: read_json(file) for name, file in files.items()}
    level = curves["plain"]["points"][-1]["loss"]
    write_result(
        place,
        "time_to_quality",
        {
            "teacher": model_figures(recipe["teacher"]),
            "sessions": sessions_of(recipe["teacher"]),
            "curves": curves,
            "level": level,
            "minutes_to_level": {name: minutes_to(curve["points"], level) for name, curve in curves.items()},
        },
    )
    draw({name: curve["points"] for name, curve in curves.items()}, place.results / "time-to-quality.svg")


class _Measuring(TrainerCallback):
    """Evaluates on held-out text at regular intervals of training time, and records the time and the results.

    Args:
        seconds: duration of the whole training.

    Attributes:
        budget: the control of the run. Its clock also excludes the time of evaluations.
    """

    budget: RunControl

    def __init__(self, seconds: float) -> None:
        self.every = seconds / POINTS
        self.points: list[dict[str, float]] = []
        self.trained = 0.0
        self.since: float | None = None
        self.stopped = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.since = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Stop the clock when an evaluation is due, and at the end."""
        now = self.trained + time.monotonic() - (self.since or 0.0)
        due = (
            now >= self.every * len(self.points) or control.should_training_stop or state.global_step == state.max_steps
        )
        control.should_evaluate = due
        if due:
            if args.device.type == "cuda":
                torch.cuda.synchronize(args.device)
            self.stopped = time.monotonic()
            self.trained += self.stopped - (self.since or 0.0)
        return control

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Record the metrics, and continue the clock."""
        point = {"minutes": self.trained / 60, "step": state.global_step}
        prefix = "eval_short_" if "eval_short_loss" in metrics else "eval_"  # the length of most steps
        self.points.append(point | {name: metrics[prefix + name] for name in ("loss", "accuracy", "kl")})
        self.since = time.monotonic()
        self.budget.clock.elapsed_before -= self.since - self.stopped


def _curve(options: Any) -> dict[str, Any]:
    """Train the run of one curve, and return its points."""
    place = place_of(options)
    recipe = recipe_of(options, place)
    minutes = options.minutes * (options.short if options.one == "potstill-short" else 1)
    plain, gpu = options.one == "plain", place.gpus > 0
    teacher = load_masked_lm(recipe.pop("teacher"))
    student = build_student(teacher, layers=recipe["layers"])
    with TemporaryDirectory() as folder:
        if gpu:  # new caches: otherwise a run would reuse the compiled code of an earlier one
            os.environ |= {"TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor", "TRITON_CACHE_DIR": f"{folder}/triton"}
        args = DistillationArguments(
            output_dir=folder,
            use_cpu=not gpu,
            bf16=gpu,
            torch_compile=gpu and not plain,
            dataloader_num_workers=2 if gpu else 0,
            max_train_minutes=None if options.max_steps > 0 else minutes,
            max_steps=options.max_steps,
            num_train_epochs=1000,
            save_strategy="no",
            eval_strategy="no",
            eval_on_start=False,
            max_eval_samples=options.max_eval_samples,
            report_to="none",
            **recipe | {"corpus": str(recipe["corpus"])},
        )
        measuring = _Measuring(60 * minutes)
        trainer = DistillationTrainer(student, recipe["corpus"], args, teacher, callbacks=[measuring])
        measuring.budget = trainer.run_control
        if plain:
            trainer.model = trainer.model_wrapped = PlainStep(student, teacher, trainer.step.objective)
        trainer.train()
    return {"of": _curve_options(options), "minutes": minutes, "points": measuring.points}


def _curve_options(options: Any) -> dict[str, Any]:
    """Return the options that a curve depends on."""
    names = ("minutes", "short", "max_steps", "layers", "masking", "soft_targets", "learning_rate")
    lengths = ("short_block_size", "short_share", "batch_tokens")
    return {name: getattr(options, name) for name in (*names, *lengths)}


def _is_done(file: Path, options: Any) -> bool:
    if not file.is_file():
        return False
    if read_json(file)["of"] != _curve_options(options):
        raise PotstillError(f"{file} was made with other options: name another --work_dir, or delete it.")
    return True


def minutes_to(points: list[dict[str, float]], level: float) -> float | None:
    """Return the minutes until a curve first reaches a loss, interpolated linearly between points; None if never."""
    for before, after in pairwise(points):
        if before["loss"] > level >= after["loss"]:
            share = (before["loss"] - level) / (before["loss"] - after["loss"])
            return before["minutes"] + share * (after["minutes"] - before["minutes"])
    return points[0]["minutes"] if points and points[0]["loss"] <= level else None


def draw(curves: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Draw held-out loss over minutes."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for name, points in curves.items():
        axes.plot(
            [point["minutes"] for point in points],
            [point["loss"] for point in points],
            label=name,
            marker="o",
            markersize=3,
        )
    axes.set_xlabel("GPU-minutes")
    axes.set_ylabel("held-out masked-LM loss, nats")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    sys.exit(run(main))
