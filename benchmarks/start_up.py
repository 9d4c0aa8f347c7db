"""Where the time until the first training step goes, in a process that begins with empty caches and in later ones.

    python benchmarks/start_up.py --output start-up.json
    python benchmarks/start_up.py --output start-up.json --tiny     # a dry run on a CPU

Each row is one process: `potstill bench train` with a saved BERT-base and its student of 6 layers, for one step. As in
a distillation, the teacher is read from its folder. Seconds by phase overlap where compilation runs in other processes.
`--profile FILE` starts one more process with empty caches, and writes which functions take its time.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from potstill.files import write_text
from potstill.imports import quick_imports

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
    parser.add_argument("--profile", type=Path, help="text file for the functions that take the time")
    parser.add_argument("--tiny", action="store_true", help="tiny models on a CPU, to try the script")
    options = parser.parse_args()
    if "START_UP_BEGAN" in os.environ:
        _one(options.tiny)
        return
    found: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        teacher = Path(folder) / "teacher"
        _save_teacher(teacher, options.tiny)
        for name in options.rows:
            found[name] = _run(Path(folder), teacher, *ROWS[name], options.tiny)
            print(f"{name}: {found[name]}", flush=True)
            if options.output:
                write_text(options.output, json.dumps(found, indent=1) + "\n")
        if options.profile:
            _run(Path(folder), teacher, "profile", {"START_UP_PROFILE": str(options.profile)}, options.tiny)
            print(f"wrote {options.profile}")
    phases = list(dict.fromkeys(phase for row in found.values() for phase in row))
    print("| seconds | " + " | ".join(found) + " |\n|---|" + "--:|" * len(found))
    for phase in phases:
        print(f"| {phase} | " + " | ".join(f"{row.get(phase, 0):.1f}" for row in found.values()) + " |")


def _save_teacher(folder: Path, tiny: bool) -> None:
    from transformers import BertConfig, BertForMaskedLM

    from potstill.student.family import new_tokenizer_kind

    words = 300 if tiny else 30522
    small = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 64}
    BertForMaskedLM(BertConfig(vocab_size=words, **(small if tiny else {}))).save_pretrained(folder)
    new_tokenizer_kind("bert").meaningless(words, 512).save_pretrained(folder)


def _run(folder: Path, teacher: Path, caches: str, environment: dict[str, str], tiny: bool) -> dict[str, float]:
    """Run one process, and return its seconds by phase."""
    environment = os.environ | environment | {"START_UP_TEACHER": str(teacher), "START_UP_BEGAN": str(time.time())}
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(folder / caches / "inductor")
    environment["TRITON_CACHE_DIR"] = str(folder / caches / "triton")
    command = [sys.executable, __file__, *(["--tiny"] if tiny else [])]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    seconds: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def _one(tiny: bool) -> None:
    began = float(os.environ["START_UP_BEGAN"])
    with quick_imports():  # as the command line does
        import torch

        torch_imported = time.time()
        from potstill.bench import train
        from potstill.bench.train_arguments import BenchTrainArguments

    imported = time.time()
    settings: dict[str, Any] = {"bf16": True, "per_device_train_batch_size": 128, "dataloader_num_workers": 2}
    if tiny:
        settings = {"use_cpu": True, "block_size": 16, "per_device_train_batch_size": 2}
    if not tiny:
        torch.cuda.init()
    ready = time.time()
    compiled = "START_UP_EAGER" not in os.environ and not tiny
    settings |= {"teacher": os.environ["START_UP_TEACHER"], "torch_compile": compiled}
    args = BenchTrainArguments(**settings, bench_steps=1, bench_warmup=1)
    if "START_UP_LATE" in os.environ:
        train.start_compile_workers = lambda args: None
    parts = _first_step_parts(train)
    profile = cProfile.Profile()
    if "START_UP_PROFILE" in os.environ:
        profile.enable()
    result = train.bench_train(args)
    ended = time.time()
    if "START_UP_PROFILE" in os.environ:
        profile.disable()
        with open(os.environ["START_UP_PROFILE"], "w", encoding="utf-8") as file:
            pstats.Stats(profile, stream=file).sort_stats("cumulative").print_stats(150)
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
