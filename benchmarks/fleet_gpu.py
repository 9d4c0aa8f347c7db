"""DDP and FSDP2 on two GPUs, and a run that continues on one GPU and then on two again.

    python benchmarks/fleet_gpu.py --output fleet.json
    python benchmarks/fleet_gpu.py --output fleet.json --layers 24 --hidden_size 1024 --precision float32 --steps 50

It makes a teacher with random weights and prepares potstill's embedded text. Each run is `torchrun -m potstill distill`
with the same options but for `--fsdp` and the number of processes. The JSON has the losses of every step, the largest
relative difference from the losses of DDP, the peak of the allocated memory of each GPU, and the tokens per second.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

import potstill as potstill_package
from potstill import prepare
from potstill.cli import main as potstill
from potstill.versions import versions

ASSETS = Path(potstill_package.__file__).parent / "demo" / "assets"
PEAKS = "FLEET_PEAKS"
TRANSIENT = 20  # steps at the start whose speed does not count


def worker(arguments: list[str]) -> int:
    """Run one process of `distill`, and note the peak of its memory."""
    status = potstill(["distill", *arguments])
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
        Path(os.environ[PEAKS], os.environ.get("RANK", "0")).write_text(str(peak))
    return status


def make_parts(folder: Path, layers: int, hidden_size: int, block_size: int) -> None:
    """Write a teacher without dropout and a corpus for it."""
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "teacher")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // 64,
        intermediate_size=4 * hidden_size,
        max_position_embeddings=max(512, block_size),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertForMaskedLM(config).save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    prepare([str(ASSETS / "simple-wikipedia.jsonl.gz")], str(folder / "blocks"), str(folder / "teacher"), block_size)


def newest_checkpoint(output: Path) -> int:
    """Return the step of the newest checkpoint; 0 if there is none."""
    steps = [path.name.partition("-")[2] for path in output.glob("checkpoint-*")]
    return max((int(step) for step in steps if step.isdecimal()), default=0)


def train(folder: Path, name: str, fleet: list[int], options: list[str], steps: int) -> dict[str, Any]:
    """Run `distill` on each number of processes in turn, and return what was measured."""
    output, peaks = folder / name, folder / f"{name}-peaks"
    peaks.mkdir()
    seconds = []
    for number, processes in enumerate(fleet):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        job = [f"--teacher={folder / 'teacher'}", f"--corpus={folder / 'blocks'}", f"--output_dir={output}", *options]
        started = time.monotonic()
        with (folder / f"{name}.log").open("ab") as log:
            run = subprocess.Popen(
                [*torchrun, __file__, "worker", *job], stdout=log, stderr=log, env=os.environ | {PEAKS: str(peaks)}
            )
            if number < len(fleet) - 1:
                while run.poll() is None and newest_checkpoint(output) < (number + 1) * steps // len(fleet):
                    time.sleep(0.2)
                run.send_signal(signal.SIGTERM)
            status = run.wait()
        seconds.append(round(time.monotonic() - started, 1))
        if (status == 0) is (number < len(fleet) - 1):
            raise SystemExit(f"{name} ended with {status}:\n{(folder / f'{name}.log').read_text()[-6000:]}")
    results = json.loads((output / "results.json").read_text())
    logs = [entry for entry in results["log_history"] if "loss" in entry]
    return {
        "fleet": fleet,
        "seconds": seconds,
        "losses": [entry["loss"] for entry in logs],
        "steps": [entry["step"] for entry in logs],
        "tokens_per_second": statistics.median(entry["tokens_per_second"] for entry in logs[TRANSIENT:]),
        "peak_bytes": [int(file.read_text()) for file in sorted(peaks.iterdir())],
        "changed_on_resume": results["changed_on_resume"],
        "hardware": results["cost"]["hardware"],
    }


def main() -> None:
    """Make the runs one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden_size", type=int, default=768)
    parser.add_argument("--block_size", type=int, default=512)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--precision", choices=["bf16", "float32"], default="bf16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--use_cpu", action="store_true", help="to try this script without a GPU")
    parser.add_argument("--runs", nargs="+", default=["ddp", "fsdp", "ddp-2-1-2", "fsdp-2-1-2"])
    args = parser.parse_args()
    options = [
        f"--max_steps={args.steps}",
        f"--save_steps={max(1, args.steps // 10)}",
        "--save_total_limit=20",
        f"--per_device_train_batch_size={args.batch_size}",
        "--gradient_accumulation_steps=2",
        "--learning_rate=1e-4",
        "--logging_steps=1",
        "--layers=alternate",
        "--resume_from_checkpoint=auto",
        f"--bf16={args.precision == 'bf16'}",
        f"--torch_compile={args.compile}",
        f"--use_cpu={args.use_cpu}",
    ]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_parts(folder, args.layers, args.hidden_size, args.block_size)
        runs: dict[str, Any] = {}
        for name in args.runs:
            fleet = [2, 1, 2] if name.endswith("2-1-2") else [2]
            sharded = ["--fsdp=true"] if name.startswith("fsdp") else []
            runs[name] = train(folder, name, fleet, [*options, *sharded], args.steps)
            first = next(iter(runs.values()))
            pairs = zip(runs[name]["losses"], first["losses"], strict=True)
            runs[name]["largest_difference"] = max(abs(own - other) / other for own, other in pairs)
            report = {
                "options": vars(args) | {"output": str(args.output)},
                "versions": versions("potstill", "torch", "transformers", "accelerate"),
                "runs": runs,
            }
            args.output.write_text(json.dumps(report, indent=1) + "\n")
            shown = {key: value for key, value in runs[name].items() if key not in ("losses", "steps")}
            print(name, json.dumps(shown), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        sys.exit(worker(sys.argv[2:]))
    main()
