"""Measure the training step with each option that could make it faster, in one call on one GPU.

    python benchmarks/training_variants.py --output variants.json --minutes 9
    python benchmarks/training_variants.py --output tiny.json --minutes 3 --tiny      # a dry run on a CPU

It measures, in this order: the kernels that 8-bit products and attention consist of, whole training steps through
`bench train`, and the kernels of a step. A part that fails is printed with its traceback, and the next one follows. The
file is written after each part, and no part begins after `--minutes`.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from potstill.bench.train import bench_train
from potstill.bench.train_arguments import BenchTrainArguments
from potstill.files import write_text
from potstill.student import build_student, fp8
from potstill.training.compatibility import objective_of
from potstill.training.pretrain import initial_model
from potstill.training.step import DistillationStep
from potstill.versions import versions

OFF = {"dropout": 0.0}
SAMPLED = {"soft_targets": "sampled"}
MASKED = {"soft_targets": "masked"}
BOTH = {"fp8": "both"}
FAST = MASKED | OFF | {"tokens": 32768}
PRETRAINED = {"pretrain": True, "tokens": 32768} | OFF
STEPS: dict[str, dict[str, Any]] = {
    "all tokens": {},
    "sampled": SAMPLED,
    "sampled, no dropout": SAMPLED | OFF,
    "sampled, no dropout, FP8": SAMPLED | OFF | BOTH,
    "FP8 in the teacher": {"fp8": "teacher"},
    "FP8 in the student": {"fp8": "student"},
    "FP8 in both": BOTH,
    "FP8 in both, E4M3 gradients": {"fp8": {"models": "both", "gradients": "e4m3"}},
    "FP8 in both, E5M2 gradients": {"fp8": {"models": "both", "gradients": "e5m2"}},
    "FP8 in both, one layer at each end left out": {"fp8": {"models": "both", "ends": 1}},
    "no dropout": OFF,
    "masked": MASKED,
    "masked, cosine too": MASKED | {"hidden_cosine": "masked"},
    "masked, no dropout": MASKED | OFF,
    "masked, no dropout, FP8": MASKED | OFF | BOTH,
    "masked, cosine too, no dropout": MASKED | {"hidden_cosine": "masked"} | OFF,
    "sampled, cosine too, no dropout": SAMPLED | {"hidden_cosine": "sampled"} | OFF,
    "sampled, no dropout, FP8, blocks of 128": SAMPLED | OFF | BOTH | {"block_size": 128},
    "sampled, no dropout, blocks of 128": SAMPLED | OFF | {"block_size": 128},
    "pre-training": {"pretrain": True},
    "pre-training, no dropout": {"pretrain": True} | OFF,
    "all tokens, again": {},
    "fast recipe": FAST,
    "fast recipe, Muon": FAST | {"optim": "muon"},
    "fast recipe, Muon, recorded": FAST | {"optim": "muon", "cuda_graphs": True},
    "fast recipe, recorded": FAST | {"cuda_graphs": True},
    "pre-training with Muon, half the tokens": PRETRAINED | {"optim": "muon"},
    "pre-training with Muon, half the tokens, recorded": PRETRAINED | {"optim": "muon", "cuda_graphs": True},
}
PROFILED = {"all tokens": {}, "sampled, no dropout": SAMPLED | OFF, "sampled, no dropout, FP8": SAMPLED | OFF | BOTH}
KINDS = {  # the first one whose part of a name occurs in that of a kernel
    "attention": ("sdpa", "flash", "fmha", "attention", "cudnn"),
    "products": ("gemm", "nvjet", "cutlass", "xmma", "cublas"),
    "softmax of the vocabulary": ("_softmax_losses_kernel",),
    "quantising": ("_quantise_",),
    "compiled": ("triton_",),
}


LONGEST_TEST = 180
"""Seconds that the tests of one file may take."""


class Results:
    """The results so far, in a file."""

    def __init__(self, path: Path, minutes: float) -> None:
        self.path, self.until = path, time.monotonic() + 60 * minutes
        self.found: dict[str, Any] = {"versions": versions("potstill", "torch", "transformers")}
        if torch.cuda.is_available():
            self.found["device"] = torch.cuda.get_device_name()

    def run(self, part: str, name: str, measure: Callable[[], Any]) -> None:
        """Measure something, print it and write it. A failure is printed."""
        if time.monotonic() > self.until:
            print(f"no time left for {part}: {name}", flush=True)
            return
        started = time.monotonic()
        torch._dynamo.reset()
        try:
            value = measure()
        except Exception:
            traceback.print_exc()
            value = {"failed": traceback.format_exc(limit=-3)}
        self.found.setdefault(part, {})[name] = value
        write_text(self.path, json.dumps(self.found, indent=1) + "\n")
        print(f"[{time.monotonic() - started:.0f} s] {part}: {name}: {_short(value)}", flush=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def main() -> None:
    """Measure all parts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--minutes", type=float, default=9.0, help="no part begins later")
    parser.add_argument("--steps", type=int, default=20, help="measured steps of each variant")
    parser.add_argument("--tiny", action="store_true", help="tiny models on a CPU, to try the script")
    parser.add_argument("--parts", nargs="+", default=["kernels", "steps", "profiles"])
    parser.add_argument("--tests", nargs="*", default=[], help="test files whose tests for GPUs run first")
    parser.add_argument("--only", nargs="+", choices=list(STEPS), default=list(STEPS), help="steps to measure")
    parser.add_argument("--filter", default="", help="measure only kernels whose name contains this")
    options = parser.parse_args()
    torch._dynamo.config.automatic_dynamic_shapes = False  # one size after the other, each with code of its own
    results = Results(options.output, options.minutes)
    for file in options.tests:
        results.run("tests", file, lambda file=file: _tests(file))
    if "kernels" in options.parts and not options.tiny:
        for name, measure in ((name, measure) for name, measure in kernels() if options.filter in name):
            results.run("kernels, ms", name, measure)
    if "steps" in options.parts:
        for name, changes in ((name, STEPS[name]) for name in options.only):
            results.run("steps", name, lambda changes=changes: step_of(changes, options))
    if "profiles" in options.parts:
        for name, changes in ((name, PROFILED[name]) for name in options.only if name in PROFILED):
            results.run("profiles, ms", name, lambda changes=changes: profile_of(changes, options))
    _print_table(results.found.get("steps", {}))


def _tests(file: str) -> dict[str, Any]:
    """Run the tests for GPUs in a file, and return how they ended and which ones took longest."""
    options = ["-q", "-m", "gpu", "-p", "no:xdist", "-p", "no:cacheprovider", "--show-capture=no", "--durations=8"]
    command = [sys.executable, "-m", "pytest", *options, file]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_TEST)
    except subprocess.TimeoutExpired as error:
        print(str(error.stdout)[-4000:], flush=True)
        return {"status": None, "tail": [f"not done after {LONGEST_TEST} s"]}
    print(done.stdout[-6000:], flush=True)
    return {"status": done.returncode, "tail": done.stdout.splitlines()[-1:]}


def arguments(changes: dict[str, Any], options: argparse.Namespace) -> BenchTrainArguments:
    """Return the options of a variant."""
    shape: dict[str, Any] = {"bf16": True, "torch_compile": True, "dataloader_num_workers": 2}
    tokens, block_size = changes.get("tokens", 65536), changes.get("block_size", 512)
    if options.tiny:
        shape = {"use_cpu": True, "hidden_size": 64, "num_attention_heads": 2, "teacher_layers": 2, "vocab_size": 300}
        shape |= {"block_size": 32, "bench_steps": 2, "bench_warmup": 1}
        tokens, block_size = 256, 32
        changes = {name: value for name, value in changes.items() if name not in ("block_size", "cuda_graphs")}
    changes = {name: value for name, value in changes.items() if name != "tokens"}
    shape |= {"per_device_train_batch_size": tokens // block_size}
    return BenchTrainArguments(**{"bench_steps": options.steps} | shape | changes)


def step_of(changes: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Return the speed of whole training steps."""
    found = bench_train(arguments(changes, options))
    return {
        "tokens_per_second": round(found.speed.tokens_per_second),
        "ms": round(found.speed.ms_per_step, 2),
        "parts_ms": {name: round(value, 2) for name, value in found.speed.ms_per_step_by_part.items()},
        "first_step_s": round(found.seconds_to_first_step, 1),
        "peak_GiB": round((found.speed.peak_memory_bytes or 0) / 2**30, 2),
        "product_TFLOPs": round(found.matrix_product_flops_per_second / 1e12),
    }


def profile_of(changes: dict[str, Any], options: argparse.Namespace, steps: int = 3) -> dict[str, Any]:
    """Return the time of the kernels of a step, by kind, and the longest ones by name."""
    args = arguments(changes, options)
    shape = initial_arguments(args)
    teacher = initial_model(shape, args.teacher_layers, args.vocab_size, 0)
    student = build_student(teacher, dropout=args.dropout)
    device = args.device
    objective = objective_of(args)
    step = DistillationStep(student.to(device).train(), teacher.to(device), objective, fp8=fp8.Fp8.of(args.fp8))
    if not options.tiny:
        step.compile_parts(backend="inductor")
    blocks, length = args.per_device_train_batch_size, args.block_size
    masked, sampled = round(0.15 * length), round(0.17 * length)
    ids = torch.randint(10, args.vocab_size, (blocks, length), device=device)
    order = torch.rand(blocks, length, device=device).argsort(1)
    batch = [ids, order[:, :masked].contiguous(), ids[:, :masked].contiguous()]
    if objective.sampled_share:
        batch.append(order[:, masked : masked + sampled].contiguous())

    def run() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=not options.tiny):
            loss = step(*batch)["loss"]
        loss.backward()
        step.zero_grad()

    for _ in range(3):
        run()
    activity = torch.profiler.ProfilerActivity.CPU if options.tiny else torch.profiler.ProfilerActivity.CUDA
    with torch.profiler.profile(activities=[activity]) as profile:
        for _ in range(steps):
            run()
        if not options.tiny:
            torch.cuda.synchronize()
    rows = []
    for event in profile.key_averages():
        microseconds = event.self_cpu_time_total if options.tiny else event.self_device_time_total
        if microseconds:
            rows.append((microseconds / 1e3 / steps, event.count / steps, event.key))
    rows.sort(reverse=True)
    kinds: dict[str, float] = {}
    for ms, _, name in rows:
        kind = next((kind for kind, parts in KINDS.items() if any(part in name.lower() for part in parts)), "other")
        kinds[kind] = kinds.get(kind, 0.0) + ms
    for ms, count, name in rows[:30]:
        print(f"   {ms:8.3f} ms {count:6.1f} × {name[:110]}", flush=True)
    return {
        "kinds": {kind: round(ms, 2) for kind, ms in kinds.items()},
        "longest": [[round(ms, 3), round(count, 1), name[:160]] for ms, count, name in rows[:40]],
    }


def initial_arguments(args: BenchTrainArguments) -> BenchTrainArguments:
    """Return the options with the width that a random teacher has if none is given."""
    args.hidden_size = args.hidden_size or 768
    return args


def kernels() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield what is measured of single kernels: its name, and a function that returns milliseconds."""
    tokens = 65536

    def rows(width: int) -> torch.Tensor:
        return torch.randn(tokens, width, device="cuda", dtype=torch.bfloat16)

    def quantised(values: torch.Tensor, kernel: bool) -> Any:
        if kernel:
            fp8.load_kernel()
            return torch.ops.potstill.quantise_rows(values, fp8.E4M3)
        largest = values.abs().amax(-1, keepdim=True).float().clamp(min=fp8.SMALLEST)
        return (values.float() * (448 / largest)).to(fp8.E4M3), largest / 448

    for width in (768, 3072):
        yield f"GELU, {width} wide", lambda w=width: _bench(torch.compile(F.gelu), rows(w))
        yield f"quantising compiled, {width} wide", lambda w=width: _bench(torch.compile(quantised), rows(w), False)
        yield f"quantising by the kernel, {width} wide", lambda w=width: _bench(quantised, rows(w), True)
        yield (
            f"GELU and quantising compiled, {width} wide",
            lambda w=width: _bench(torch.compile(lambda x: quantised(F.gelu(x), False)), rows(w)),
        )
        yield (
            f"GELU and quantising by one kernel, {width} wide",
            lambda w=width: (fp8.load_kernel(), _bench(fp8.quantise_gelu_rows, rows(w), fp8.E4M3))[1],
        )

    def norm() -> Any:
        module = nn.LayerNorm(768).to("cuda", torch.bfloat16).requires_grad_(False)
        return module, rows(768), rows(768)

    def normalised() -> float:
        module, left, right = norm()
        return _bench(torch.compile(lambda x, y: module(x + y)), left, right)

    def normalised_and_quantised() -> float:
        module, left, right = norm()

        def both(x: torch.Tensor, y: torch.Tensor) -> Any:
            found = module(x + y)
            return found, quantised(found, False)

        return _bench(torch.compile(both), left, right)

    yield "residual and LayerNorm compiled", normalised
    yield "residual, LayerNorm and quantising compiled", normalised_and_quantised

    for inputs, outputs in ((768, 768), (768, 2304), (768, 3072), (3072, 768)):

        def products(inputs: int = inputs, outputs: int = outputs) -> dict[str, float]:
            left, right = rows(inputs), torch.randn(outputs, inputs, device="cuda", dtype=torch.bfloat16)
            bias = torch.randn(outputs, device="cuda", dtype=torch.bfloat16)
            pairs = [fp8.quantise_rows(values, fp8.E4M3) for values in (left, right)]
            wide = fp8.quantise_rows(left, fp8.E5M2)
            one = torch.ones((), device="cuda")

            def plain(values: torch.Tensor) -> torch.Tensor:
                return torch._scaled_mm(pairs[0][0], pairs[1][0].t(), one, one, out_dtype=torch.bfloat16)

            return {
                "bf16": _bench(F.linear, left, right, bias),
                "FP8": _bench(fp8.scaled_product, *pairs, None, torch.bfloat16),
                "FP8 and bias": _bench(fp8.scaled_product, *pairs, bias, torch.bfloat16),
                "FP8, left side E5M2": _bench(fp8.scaled_product, wide, pairs[1], None, torch.bfloat16),
                "FP8, one scale in all": _bench(plain, left),
            }

        yield f"product {tokens} × {inputs} × {outputs}", products
    for length in (512, 128):
        for dropout in (0.0, 0.1):
            for backend in (None, SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
                name = "as PyTorch chooses" if backend is None else backend.name
                yield (
                    f"attention, blocks of {length}, dropout {dropout}, {name}",
                    lambda b=backend, d=dropout, n=length: attention(b, d, n, tokens // n),
                )


def attention(backend: SDPBackend | None, dropout: float, length: int, blocks: int) -> dict[str, Any]:
    """Return the time of attention, forward and backward, the longest kernel's name, and its error to float32."""
    shape = (blocks, length, 12, 64)
    parts = [torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]

    def run(*given: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(*(one.transpose(1, 2) for one in given), dropout_p=dropout)

    def with_backend(function: Callable[[], Any]) -> Any:
        if backend is None:
            return function()
        with sdpa_kernel([backend]):
            return function()

    found = with_backend(lambda: run(*parts))
    grad = torch.randn_like(found)
    forward = with_backend(lambda: _bench(run, *(one.detach() for one in parts)))
    both = with_backend(lambda: _bench(lambda: torch.autograd.grad(run(*parts), parts, grad)))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        with_backend(lambda: run(*parts))
        torch.cuda.synchronize()
    longest = max(profile.key_averages(), key=lambda event: event.self_device_time_total).key
    result = {"forward": forward, "forward and backward": both, "kernel": longest[:100]}
    if dropout == 0:
        few = [one[:2].detach().float() for one in parts]
        with sdpa_kernel([SDPBackend.MATH]):
            exact = run(*few)
        result["error"] = ((found[:2].float() - exact).norm() / exact.norm()).item()
    return result


def _bench(function: Callable[..., Any], *inputs: Any) -> float:
    from triton.testing import do_bench

    return round(do_bench(lambda: function(*inputs), warmup=20, rep=60, return_mode="median"), 4)


def _short(value: Any) -> str:
    if isinstance(value, dict) and "longest" in value:
        value = value["kinds"]
    return str(value)[:600]


def _print_table(steps: dict[str, Any]) -> None:
    measured = {name: found for name, found in steps.items() if "ms" in found}
    for name, found in measured.items():
        parts = " · ".join(f"{part} {ms}" for part, ms in found["parts_ms"].items())
        print(f"{name:45} {found['tokens_per_second']:>10,} tokens/s {found['ms']:8.2f} ms   {parts}")
    if len(measured) > 1:
        print(f"median of the first steps: {statistics.median(found['first_step_s'] for found in measured.values())} s")


if __name__ == "__main__":
    main()
