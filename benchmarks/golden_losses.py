"""Print every loss of four short runs on a CPU, bit for bit. It checks that a change of the code changes no number.

    python benchmarks/golden_losses.py > before.txt      # at one commit
    python benchmarks/golden_losses.py > after.txt       # at another, on the same machine
    cmp before.txt after.txt

The runs distil the embedded teacher with soft targets at all tokens, at the masked tokens and without a teacher, and
pre-train a small BERT. They use one thread, fixed seeds, and dropout. Each line has the losses of one micro-batch as
hexadecimal floats. The last line of a run is a hash of the trained weights.
"""

from __future__ import annotations

import argparse
import hashlib
from importlib.resources import as_file, files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from potstill import DistillationArguments, DistillationTrainer, PretrainingArguments, build_student, prepare
from potstill.recipe import Recipe
from potstill.student import load_masked_lm
from potstill.training.pretrain import initial_model

RUNS: dict[str, dict[str, Any]] = {
    "distil-all": {},
    "distil-masked": {"soft_targets": "masked", "temperature": 3.0},
    "distil-without-teacher": {"alpha_ce": 0.0, "alpha_cos": 0.0},
    "pretrain": {},
}


def new_trainer(name: str, teacher_folder: Path, corpus: Path, output_dir: Path, steps: int) -> DistillationTrainer:
    """Return the trainer of one of `RUNS`."""
    options: dict[str, Any] = {
        "output_dir": str(output_dir),
        "corpus": str(corpus),
        "max_steps": steps,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "eval_strategy": "no",
        "eval_on_start": False,
        "save_strategy": "no",
        "logging_steps": steps,
        "report_to": "none",
        "use_cpu": True,
        "seed": 7,
        **RUNS[name],
    }
    if name == "pretrain":
        shape = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "max_position_embeddings": 64}
        args: Recipe = PretrainingArguments(**options, **shape)
        model = initial_model(args, 2, load_masked_lm(str(teacher_folder)).config.vocab_size, 0)
        return DistillationTrainer(model, str(corpus), args)
    teacher = load_masked_lm(str(teacher_folder))
    student = build_student(teacher, num_hidden_layers=3, seed=7)
    # The embedded teacher has no dropout. With dropout, the test also covers the order of random numbers.
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    return DistillationTrainer(student, str(corpus), DistillationArguments(**options), teacher)


def golden(trainer: DistillationTrainer) -> list[str]:
    """Train, and return one line for each micro-batch and one for the weights."""
    lines: list[str] = []

    def record(module: Any, inputs: Any, losses: dict[str, torch.Tensor]) -> None:
        lines.append(" ".join(f"{name} {value.item().hex()}" for name, value in losses.items()))

    trainer.model.register_forward_hook(record)
    trainer.train()
    digest = hashlib.sha256()
    for name, tensor in sorted(trainer.student.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return [*lines, f"weights {digest.hexdigest()}"]


def main() -> None:
    """Prepare a corpus of the demo's text, and print the lines of each run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with as_file(files("potstill.demo") / "assets") as assets, TemporaryDirectory() as folder:
        blocks = Path(folder) / "blocks"
        text = str(assets / "simple-wikipedia.jsonl.gz")
        prepare([text], str(blocks), str(assets / "teacher"), 64, validation_fraction=0.1, num_proc=1)
        for name in RUNS:
            trainer = new_trainer(name, assets / "teacher", blocks, Path(folder) / name, options.steps)
            for number, line in enumerate(golden(trainer)):
                print(f"{name} {number} {line}", flush=True)


if __name__ == "__main__":
    main()
