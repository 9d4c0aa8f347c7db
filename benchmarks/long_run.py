"""Measure whether memory, open files and threads of a long training stay flat, from outside its process.

    python benchmarks/long_run.py --steps 20000 --output docs/long-run.png

The teacher has two layers, 32 wide, and is random; the text is the package's own. The run writes 40 checkpoints,
evaluates 40 times, and logs 1,000 lines. It is on the CPU and takes minutes. `Sample` says what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
import torch
from matplotlib.figure import Figure
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from potstill.corpus import prepare


@dataclass(frozen=True)
class Sample:
    """What the process holds at a moment.

    Attributes:
        step: the step that it has reached, interpolated between the times of its checkpoints.
        megabytes: its memory that is no other process's.
        files: files that it has open.
        threads: threads that it has.
    """

    step: int
    megabytes: float
    files: int
    threads: int


def measure(steps: int, place: Path, pause: float) -> list[Sample]:
    """Train, and return a sample for each pause, in seconds."""
    with as_file(files("potstill.demo") / "assets") as assets:
        corpus = prepare(
            text=[str(assets / "simple-wikipedia.jsonl.gz")],
            output_dir=str(place / "blocks"),
            train_tokenizer=True,
            vocab_size=500,
            block_size=16,
            validation_fraction=0.05,
            num_proc=1,
        )
    tokenizer = AutoTokenizer.from_pretrained(place / "blocks" / "tokenizer")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **sizes))
    model.save_pretrained(place / "teacher")
    tokenizer.save_pretrained(place / "teacher")
    print(corpus, file=sys.stderr)
    options = f"--max_steps {steps} --save_steps {steps // 40} --eval_steps {steps // 40}"
    options += f" --logging_steps {max(1, steps // 1000)} --per_device_train_batch_size 2 --layers alternate --use_cpu"
    command = [sys.executable, "-m", "potstill", "distill", "--teacher", str(place / "teacher")]
    command += ["--corpus", str(place / "blocks"), "--output_dir", str(place / "student"), *options.split()]
    command += ["--max_eval_samples", "32"]
    run = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    process = psutil.Process(run.pid)
    found: list[tuple[float, float, int, int]] = []
    saved: dict[int, float] = {}  # step → when its checkpoint was first seen
    while run.poll() is None:
        now = time.monotonic()
        for folder in (place / "student").glob("checkpoint-*"):
            saved.setdefault(int(folder.name.partition("-")[2]), now)
        try:
            with process.oneshot():
                memory, threads = process.memory_full_info().uss / 1e6, process.num_threads()
                found.append((now, round(memory, 2), process.num_fds(), threads))
        except psutil.Error:  # it has just ended
            break
        time.sleep(pause)
    if run.wait() != 0:
        raise SystemExit(f"the run ended with {run.returncode}")
    # Until the first checkpoint and evaluation, code and buffers are still being loaded.
    known = sorted(saved)
    if len(known) < 2:
        raise SystemExit("fewer than two checkpoints were seen: give more --steps or a shorter --pause")
    reached = np.interp([now for now, *_ in found], [saved[step] for step in known], known)
    samples = [Sample(int(step), *figures) for step, (_, *figures) in zip(reached, found, strict=True)]
    return [sample for sample in samples if steps // 20 <= sample.step < known[-1]]


def growth(found: list[Sample], name: str) -> float:
    """Return how much a figure grows in 1,000 steps: the slope of the line through all samples."""
    return 1000 * statistics.linear_regression([s.step for s in found], [getattr(s, name) for s in found]).slope


def plot(found: list[Sample], file: Path) -> None:
    """Draw the figures over the steps."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True)
    for axis, (name, label) in zip(
        axes, (("megabytes", "MB"), ("files", "open files"), ("threads", "threads")), strict=True
    ):
        axis.plot([sample.step for sample in found], [getattr(sample, name) for sample in found], linewidth=1)
        axis.set_ylabel(label)
        axis.set_ylim(0, 1.25 * max(getattr(sample, name) for sample in found))
    axes[-1].set_xlabel("step")
    figure.savefig(file, dpi=100)


def main() -> None:
    """Measure, print first, last, largest and growth of each figure, and draw them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=20_000, help="at least 40, because it writes 40 checkpoints")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between two samples")
    parser.add_argument("--output", type=Path, required=True, help="picture to write; the samples go beside it in JSON")
    options = parser.parse_args()
    torch.manual_seed(0)
    started = time.monotonic()
    with TemporaryDirectory() as place:
        found = measure(options.steps, Path(place), options.pause)
    print(f"{options.steps:,} steps in {time.monotonic() - started:.0f} s, {len(found)} samples")
    print("| | at the beginning | at the end | largest | growth in 1,000 steps |\n|---|---|---|---|---|")
    for name in ("megabytes", "files", "threads"):
        values = [getattr(sample, name) for sample in found]
        first, last = statistics.median(values[:20]), statistics.median(values[-20:])
        print(f"| {name} | {first:g} | {last:g} | {max(values):g} | {growth(found, name):.4f} |")
    plot(found, options.output)
    options.output.with_suffix(".json").write_text(json.dumps([asdict(sample) for sample in found]) + "\n")


if __name__ == "__main__":
    main()
