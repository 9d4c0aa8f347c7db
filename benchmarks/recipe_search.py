"""Compare recipes of equally many tokens on a small teacher, several runs at a time on one GPU.

    python benchmarks/recipe_search.py --corpus blocks-512/ --output_dir search/ --seconds 95
    python benchmarks/recipe_search.py --corpus blocks-64/ --output_dir search/ --use_cpu --workers 1 --steps 100 \
        --blocks 24 --only base "learning rate × 2"

The default teacher is the embedded one. Runs start in the order of `VARIANTS`, first all with the first seed. A run
whose file exists in `--output_dir` is not repeated, and none starts that would end after `--seconds`. All variants read
the same number of tokens, so the time of a step does not count here: measure it with `training_variants.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from potstill.files import write_text

RATE = 1e-3
SHORT_SHARE = 0.9
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "learning rate × 2": {"learning_rate": 2 * RATE},
    "all tokens": {"soft_targets": "all"},
    "half the batch": {"batch": 0.5},
    "cosine schedule": {"lr_scheduler_type": "cosine"},
    "temperature 1": {"temperature": 1.0},
    "no masked LM": {"alpha_mlm": 0},
    "cosine loss × 5": {"alpha_cos": 5},
    "masked LM × 2": {"alpha_mlm": 4},
    "masked LM × 4": {"alpha_mlm": 8},
    "learning rate ÷ 2": {"learning_rate": RATE / 2},
    "masked": {"soft_targets": "masked"},
    "cosine at masked tokens": {"hidden_cosine": "masked"},
    "cosine at sampled tokens": {"hidden_cosine": "sampled"},
    "beta2 0.95": {"adam_beta2": 0.95},
    "FP8 in both models": {"fp8": "both"},
    "Muon": {"optim": "muon"},
    "Muon, learning rate × 2": {"optim": "muon", "learning_rate": 2 * RATE},
    "Muon, learning rate ÷ 2": {"optim": "muon", "learning_rate": RATE / 2},
    "Muon, learning rate ÷ 4": {"optim": "muon", "learning_rate": RATE / 4},
    "a tenth of the others": {"soft_targets_share": 0.1},
    "frequency masks": {"masking": "frequency"},
    "constant": {"lr_scheduler_type": "constant_with_warmup"},
    "constant, mean of the last fifth": {"lr_scheduler_type": "constant_with_warmup", "average_weights": 0.2},
    "constant, mean of the last half": {"lr_scheduler_type": "constant_with_warmup", "average_weights": 0.5},
    "mean of the last fifth": {"average_weights": 0.2},
    "short first, then spread": {"short_first": 0.5},
    "short first, then long": {"short_first": SHORT_SHARE},
}
NEED_SHORT_BLOCKS = [name for name, changes in VARIANTS.items() if "short_first" in changes]


def main() -> None:
    """Run the variants, and print a table that is sorted by held-out loss."""
    options = _parsed()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    if options.until:
        _work(options)
        return
    until = time.time() + options.seconds
    command = [sys.executable, __file__, *sys.argv[1:], "--until", str(until)]
    workers = [subprocess.Popen(command) for _ in range(options.workers)]
    failed = sum(worker.wait() != 0 for worker in workers)
    _print_table(options.output_dir)
    sys.exit(1 if failed else 0)


def _parsed() -> Any:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--teacher", default=str(files("potstill") / "demo/assets/teacher"))
    parser.add_argument("--corpus", required=True, help="folder of blocks")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of the results, one file for each run")
    parser.add_argument("--layers", default="0,1,2,3,4,11")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(VARIANTS),
        help="by default all; those of short blocks need --short_block_size",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--blocks", type=int, default=64, help="blocks of a step")
    parser.add_argument("--learning_rate", type=float, help=f"in place of {RATE:g}, to which variants refer")
    parser.add_argument("--base", type=yaml.safe_load, default={}, help="options of all runs, as in '{alpha_mlm: 4}'")
    parser.add_argument("--short_block_size", type=int, help="cut the blocks of nine steps of ten to this")
    parser.add_argument("--workers", type=int, default=6, help="runs at a time")
    parser.add_argument("--seconds", type=float, default=95.0)
    parser.add_argument("--max_eval_samples", type=int, default=256)
    parser.add_argument("--use_cpu", action="store_true")
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    possible = [name for name in VARIANTS if options.short_block_size or name not in NEED_SHORT_BLOCKS]
    options.only = options.only or possible
    if missing := [name for name in options.only if name not in possible]:
        parser.error(f"{missing[0]!r} needs --short_block_size")
    return options


def _work(options: Any) -> None:
    """Do runs that nobody has begun, as long as there is time for one more."""
    longest = 0.0
    for seed in options.seeds:
        for name in options.only:
            if time.time() + longest > options.until:
                return
            stem = f"{name.replace(' ', '-').replace(',', '')}-{seed}"
            claim = (
                options.output_dir / f"{stem}.{options.until}.begun"
            )  # of this call: one before may have been killed
            try:
                claim.touch(exist_ok=False)
            except FileExistsError:
                continue
            file = options.output_dir / f"{stem}.json"
            if not file.is_file():
                started = time.monotonic()
                found = _run(name, seed, options)
                longest = max(longest, time.monotonic() - started)
                write_text(file, json.dumps({"name": name, "seed": seed, **found}) + "\n")
                print(f"{found['seconds']:6.1f} s  {name}, seed {seed}: {_figures(found)}", flush=True)


def _run(name: str, seed: int, options: Any) -> dict[str, Any]:
    from tempfile import TemporaryDirectory

    from potstill import DistillationArguments, distill

    changes = dict(VARIANTS[name])
    share = changes.pop("batch", 1)
    if options.learning_rate:
        factor = options.learning_rate / RATE
        changes["learning_rate"] = changes.get("learning_rate", RATE) * factor
    settings = {
        "layers": options.layers,
        "masking": "uniform",
        "soft_targets": "sampled",
        "dropout": 0.0,
        "learning_rate": RATE,
        "bf16": not options.use_cpu,
        "cuda_graphs": not options.use_cpu,
        "use_cpu": options.use_cpu,
    }
    if options.short_block_size:
        settings |= {"short_block_size": options.short_block_size, "short_share": SHORT_SHARE}
    with TemporaryDirectory() as folder, _quiet():
        args = DistillationArguments(
            teacher=options.teacher,
            corpus=options.corpus,
            output_dir=f"{folder}/student",
            per_device_train_batch_size=round(options.blocks * share),
            max_steps=round(options.steps / share),
            num_train_epochs=1000,
            seed=seed,
            eval_strategy="no",
            eval_on_start=False,
            max_eval_samples=options.max_eval_samples,
            save_strategy="no",
            logging_steps=100,
            report_to="none",
            **settings | options.base | changes,
        )
        results = json.loads((distill(args) / "results.json").read_text())
    final = results["held_out"]["final"]
    kept = {key: final[key] for key in ("loss", "kl", "accuracy", "teacher_loss")}
    kept |= {key: final[key] for key in ("short_loss", "short_kl") if key in final}
    return kept | {"seconds": results["cost"]["seconds"], "tokens": results["cost"]["tokens"]}


@contextlib.contextmanager
def _quiet() -> Any:
    """Leave out the lines of single runs."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


def _figures(found: dict[str, Any]) -> str:
    return f"loss {found['loss']:.4f}, KL {found['kl']:.4f}, accuracy {found['accuracy']:.2%}"


def _print_table(folder: Path) -> None:
    runs: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(folder.glob("*.json")):
        one = json.loads(file.read_text())
        runs.setdefault(one["name"], []).append(one)
    print("\n| | held-out loss | KL | accuracy | seeds |\n|---|--:|--:|--:|--:|")
    for name, found in sorted(runs.items(), key=lambda item: mean(one["loss"] for one in item[1])):
        means = {key: mean(one[key] for one in found) for key in ("loss", "kl", "accuracy")}
        each = " ".join(f"{one['loss']:.4f}" for one in found)
        loss = f"{means['loss']:.4f} ({each})" if len(found) > 1 else f"{means['loss']:.4f}"
        print(f"| {name} | {loss} | {means['kl']:.4f} | {means['accuracy']:.2%} | {len(found)} |")


if __name__ == "__main__":
    main()
