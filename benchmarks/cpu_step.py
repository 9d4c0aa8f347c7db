"""What a training step takes on a CPU, beside the plain step, in float32 and with --bf16.

    OMP_NUM_THREADS=1 python benchmarks/cpu_step.py --output cpu-step.json
    OMP_NUM_THREADS=1 python benchmarks/cpu_step.py --output cpu-step.json --types float32     # a processor without AMX
    python benchmarks/cpu_step.py --output cpu-step.json --only "BERT-base, 4 × 128 tokens" --steps 2    # one teacher

Each figure comes from a process of its own, because a process that keeps freed memory, as a training of potstill does,
makes the plain step faster too. Seconds are CPU time of a step, so other processes disturb them little. "sampled" is
potstill's step with soft targets and cosine at a sample of the tokens.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from potstill.files import write_text
from potstill.training.hardware import processor

WARM_UP = 4
NARROW = {"hidden_size": 256, "num_attention_heads": 4}
TEACHERS: dict[str, dict[str, Any]] = {
    "BERT-base, 4 × 128 tokens": {"per_device_train_batch_size": 4, "block_size": 128},
    "12 × 256, 4 × 128": {**NARROW, "per_device_train_batch_size": 4, "block_size": 128},
    "12 × 256, 2 × 512": {**NARROW, "per_device_train_batch_size": 2, "block_size": 512},
    "12 × 256, vocabulary 8,192, 16 × 128": {
        **NARROW,
        "vocab_size": 8192,
        "per_device_train_batch_size": 16,
        "block_size": 128,
    },
}
TYPES = ("float32", "bf16")
STEPS: dict[str, dict[str, Any]] = {
    "plain": {},
    "potstill": {},
    "sampled": {"soft_targets": "sampled", "hidden_cosine": "sampled"},
}
"""Name of a step → its options. The plain step is PyTorch's own, without those of potstill."""


def main() -> None:
    """Measure one teacher after the other, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    parser.add_argument("--only", nargs="+", choices=list(TEACHERS), default=list(TEACHERS), help="teachers")
    parser.add_argument("--types", nargs="+", choices=TYPES, default=TYPES, help="types to compute in")
    parser.add_argument("--steps", type=int, default=8, help="measured steps")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(_measured(*options.one, options.steps)))
        return
    found: dict[str, Any] = {"processor": processor(), "steps": options.steps, "teachers": {}}
    for teacher in options.only:
        row = found["teachers"][teacher] = {}
        for step, kind in ((step, kind) for kind in options.types for step in STEPS):
            command = [sys.executable, __file__, "--output", options.output, "--steps", str(options.steps)]
            done = subprocess.run([*command, "--one", teacher, step, kind], stdout=subprocess.PIPE, check=True)
            row[f"{step} {kind}"] = json.loads(done.stdout.splitlines()[-1])
            print(f"{teacher}, {step} in {kind}: {row[f'{step} {kind}']}", flush=True)
        write_text(options.output, json.dumps(found, indent=1) + "\n")
    _print_table(found["teachers"], options.types)


def _measured(teacher: str, step: str, kind: str, steps: int) -> dict[str, float]:
    """Return the CPU seconds of a step in this process, and the largest memory of the process in MB."""
    from potstill.bench import train
    from potstill.bench.plain import PlainTraining
    from potstill.bench.train_arguments import BenchTrainArguments

    args = BenchTrainArguments(
        use_cpu=True, bf16=kind == "bf16", dataloader_num_workers=0, bench_steps=steps, bench_warmup=WARM_UP,
        **TEACHERS[teacher], **STEPS[step],
    )  # fmt: skip
    marks: list[float] = []

    class Marking(train._Rounds):
        def on_step_end(self, *arguments: Any, **options: Any) -> None:
            super().on_step_end(*arguments, **options)
            marks.append(_cpu_seconds())

    if step != "plain":
        train._Rounds = Marking  # type: ignore[misc]
        train.bench_train(args)
    else:
        with TemporaryDirectory() as folder:
            args.output_dir = folder
            corpus = train._corpus(args, Path(folder))
            models = train._models(args, corpus)
            trainer = train._MeasuredTrainer(models[0], corpus, args, models[1])
            objective, labelling = trainer.step.objective, trainer.labelling
            del trainer
            size = args.per_device_train_batch_size
            training = PlainTraining(*models, objective, corpus.train, labelling, args, size)
            for _ in range(WARM_UP + steps):
                training.run(1)
                marks.append(_cpu_seconds())
            training.close()
    seconds = (marks[WARM_UP + steps - 1] - marks[WARM_UP - 1]) / steps
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {"seconds": round(seconds, 4), "peak_MB": round(peak)}


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _print_table(teachers: dict[str, Any], types: list[str]) -> None:
    names = [f"{step} {kind}" for kind in types for step in STEPS]
    ratios = [(f"plain {kind}", f"{step} {kind}") for kind in types for step in STEPS if step != "plain"]
    print("| teacher → 6 layers | " + " | ".join([*names, *(f"{plain} ÷ {ours}" for plain, ours in ratios)]) + " |")
    print("|---|" + "--:|" * (len(names) + len(ratios)))
    for teacher, row in teachers.items():
        seconds = {name: row[name]["seconds"] for name in names}
        figures = [f"{seconds[name]:.2f}" for name in names]
        figures += [f"{seconds[plain] / seconds[ours]:.2f}" for plain, ours in ratios]
        print(f"| {teacher} | " + " | ".join(figures) + " |")


if __name__ == "__main__":
    main()
