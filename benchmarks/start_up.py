"""Where the time until the first training step goes, in a process that begins with empty caches and in later ones.

    python benchmarks/start_up.py --output start-up.json
    python benchmarks/start_up.py --output start-up.json --tiny     # a dry run on a CPU

Each row is one process: `potstill bench train` on BERT-base and its student of 6 layers, for one step. Seconds by
phase overlap where compilation runs in other processes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from potstill.files import write_text

ROWS: dict[str, tuple[str, dict[str, str]]] = {
    "empty caches": ("a", {}),
    "filled caches": ("a", {}),
    "empty caches, compilers started at the first compilation": ("d", {"START_UP_LATE": "1"}),
    "empty caches, compiled in this process alone": ("b", {"TORCHINDUCTOR_COMPILE_THREADS": "1"}),
    "not compiled": ("c", {"START_UP_EAGER": "1"}),
}
"""Row → the name of its folder of caches, and environment variables."""


def main() -> None:
    """Start the processes one after another, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, help="JSON file")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--tiny", action="store_true", help="tiny models on a CPU, to try the script")
    options = parser.parse_args()
    if "START_UP_BEGAN" in os.environ:
        _one(options.tiny)
        return
    found: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        for name in options.rows:
            caches, environment = ROWS[name]
            environment = os.environ | environment | {"START_UP_BEGAN": str(time.time())}
            environment["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}/{caches}/inductor"
            environment["TRITON_CACHE_DIR"] = f"{folder}/{caches}/triton"
            command = [sys.executable, __file__, *(["--tiny"] if options.tiny else [])]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            found[name] = json.loads(done.stdout.splitlines()[-1])
            print(f"{name}: {found[name]}", flush=True)
            if options.output:
                write_text(options.output, json.dumps(found, indent=1) + "\n")
    phases = list(dict.fromkeys(phase for row in found.values() for phase in row))
    print("| seconds | " + " | ".join(found) + " |\n|---|" + "--:|" * len(found))
    for phase in phases:
        print(f"| {phase} | " + " | ".join(f"{row.get(phase, 0):.1f}" for row in found.values()) + " |")


def _one(tiny: bool) -> None:
    began = float(os.environ["START_UP_BEGAN"])
    import torch

    torch_imported = time.time()
    from potstill.bench import train
    from potstill.bench.train_arguments import BenchTrainArguments

    imported = time.time()
    settings: dict[str, Any] = {"bf16": True, "per_device_train_batch_size": 128, "dataloader_num_workers": 2}
    if tiny:
        settings = {"use_cpu": True, "hidden_size": 32, "num_attention_heads": 2, "teacher_layers": 2}
        settings |= {"vocab_size": 300, "block_size": 16, "per_device_train_batch_size": 2}
    if not tiny:
        torch.cuda.init()
    ready = time.time()
    compiled = "START_UP_EAGER" not in os.environ and not tiny
    args = BenchTrainArguments(**settings, torch_compile=compiled, bench_steps=1, bench_warmup=1)
    if "START_UP_LATE" in os.environ:
        train.start_compile_workers = lambda args: None
    parts = _first_step_parts(train)
    result = train.bench_train(args)
    ended = time.time()
    rows = {
        "importing torch": torch_imported - began,
        "importing transformers and potstill": imported - torch_imported,
        "starting CUDA": ready - imported,
        "building models, corpus and the first step": result.seconds_to_first_step,
        **{f"… in it: {part}": seconds for part, seconds in parts.items()},
        "all, to the end of two steps": ended - began,
    }
    from torch._dynamo.utils import compilation_time_metrics

    for name, title in (
        ("_compile.compile_inner", "… in it: compiling, all"),
        ("compile_fx_inner", "… in it: Inductor"),
        ("async_compile.wait", "… in it: waiting for Triton's compiler"),
        ("create_aot_dispatcher_function", "… in it: tracing forward and backward"),
    ):
        if name in compilation_time_metrics:
            rows[title] = sum(compilation_time_metrics[name])
    print(json.dumps({name: round(seconds, 2) for name, seconds in rows.items()}))


def _first_step_parts(train: Any) -> dict[str, float]:
    """Return what the parts of the first step take by the clock of this process, as soon as it has run.

    Compilation blocks this process, so it counts in the part whose code is compiled.
    """
    last, found = time.time(), {}

    class Clock(train.PartClock):  # type: ignore[misc,name-defined]
        def mark(self, part: str) -> None:
            nonlocal last
            now = time.time()
            name = "models and data" if part == "data" else part
            if name not in found:
                found[name] = now - last
            last = now
            super().mark(part)

    train.PartClock = Clock
    return found


if __name__ == "__main__":
    main()
