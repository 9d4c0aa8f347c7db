"""Compare the loss curves of potstill's step and of the plain step, to check that speed does not cost quality.

    python benchmarks/loss_curves.py --teacher DIR --corpus blocks/ --steps 1000 --output curves.png
    torchrun --nproc_per_node 2 benchmarks/loss_curves.py … --batch_size 32 --against curves.json --output two.png

The second command compares two processes with one, at the same number of blocks per step.

Both runs start from the same student and see the same blocks under the same masks. Without dropout the curves only
differ by rounding. The random numbers of dropout depend on how a layer was compiled.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from matplotlib.figure import Figure

from potstill import DistillationArguments, DistillationTrainer, build_student
from potstill.bench.plain import PlainStep
from potstill.student import load_masked_lm

TERMS = ("loss", "loss_ce", "loss_mlm", "loss_cos")


def curve(options: argparse.Namespace, plain: bool) -> list[dict[str, float]]:
    """Train for some steps and return the losses of each."""
    with TemporaryDirectory() as folder:
        gpu = torch.cuda.is_available()
        args = DistillationArguments(
            output_dir=folder,
            use_cpu=not gpu,
            bf16=gpu,
            torch_compile=gpu and not plain,
            per_device_train_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            max_steps=options.steps,
            logging_steps=1,
            save_strategy="no",
            eval_strategy="no",
            eval_on_start=False,
            soft_targets=options.soft_targets,
        )
        teacher = load_masked_lm(options.teacher)
        student = build_student(teacher, layers=options.layers)
        trainer = DistillationTrainer(student, options.corpus, args, teacher)
        if plain:
            trainer.model = trainer.model_wrapped = PlainStep(student, teacher, trainer.step.objective)
        trainer.train()
        return [{term: entry[term] for term in TERMS} for entry in trainer.state.log_history if "loss" in entry]


def main() -> None:
    """Run both, print the largest difference of each term, and draw both curves in one plot."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--layers", default="0,1,2,3,4,11")
    parser.add_argument("--soft_targets", default="all")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument(
        "--against", type=Path, help="compare with the curve in this file instead of that of the plain step"
    )
    parser.add_argument("--output", type=Path, default=Path("loss-curves.png"))
    options = parser.parse_args()
    fast = curve(options, plain=False)
    if options.against:
        plain, label = json.loads(options.against.read_text())["potstill"], options.against.stem
    else:
        plain, label = curve(options, plain=True), "plain step"
    if os.environ.get("RANK", "0") != "0":
        return
    options.output.with_suffix(".json").write_text(json.dumps({"potstill": fast, "plain": plain}))
    draw(fast, plain, options.output, label)
    for term in TERMS:
        differences = [abs(one[term] - other[term]) / other[term] for one, other in zip(fast, plain, strict=True)]
        print(f"{term}: largest difference {max(differences):.2%}, mean {sum(differences) / len(differences):.3%}")


def draw(fast: list[dict[str, float]], plain: list[dict[str, float]], path: Path, label: str) -> None:
    """Draw both curves, and below them their relative difference."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    steps = range(1, len(fast) + 1)
    above.plot(steps, [entry["loss"] for entry in plain], linewidth=3, alpha=0.4, label=label)
    above.plot(steps, [entry["loss"] for entry in fast], linewidth=0.8, label="potstill's step")
    above.set_ylabel("training loss")
    above.legend()
    below.plot(
        steps,
        [100 * (one["loss"] - other["loss"]) / other["loss"] for one, other in zip(fast, plain, strict=True)],
        linewidth=0.8,
    )
    below.set_ylabel("difference, %")
    below.set_xlabel("step")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
