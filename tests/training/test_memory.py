"""A batch that does not fit into memory says how much it needed, how much was free, and what to lower."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from runs import checkpoints, distillation, new_trainer

from potstill import PotstillError, distill
from potstill.recipe import Recipe
from potstill.training import trainer as training
from potstill.training.memory import fitting_memory
from potstill.training.step import DistillationStep

# As torch 2.11 says it.
OUT_OF_CUDA_MEMORY = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 139.80 GiB of which 4.10 GiB is "
    "free. Including non-PyTorch memory, this process has 135.70 GiB memory in use. Of the allocated memory 126.80 GiB "
    "is allocated by PyTorch, and 8.10 GiB is reserved by PyTorch but unallocated. If reserved but unallocated memory "
    "is large try setting PYTORCH_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
)


@pytest.fixture
def h200(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """The arguments of a run on an H200, which is simulated."""
    for name, value in {
        "get_device_name": "NVIDIA H200",
        "mem_get_info": (int(4.1 * 2**30), int(139.8 * 2**30)),
        "max_memory_allocated": int(126.8 * 2**30),
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    return SimpleNamespace(
        device=torch.device("cuda"),
        output_dir=str(tmp_path),
        per_device_train_batch_size=512,
        per_device_eval_batch_size=64,
        gradient_accumulation_steps=2,
        smallest_batch=Recipe.smallest_batch,
    )


def told(args: Any, error: Exception, **options: bool) -> str:
    with pytest.raises(PotstillError) as stopped, fitting_memory(args, **options):
        raise error
    assert "\n" not in str(stopped.value)
    return str(stopped.value)


def test_a_step_on_cuda(h200: SimpleNamespace) -> None:
    assert told(h200, torch.OutOfMemoryError(OUT_OF_CUDA_MEMORY)) == (
        "A training step does not fit into the memory of NVIDIA H200: it asked for 20.0 GiB more and had used up to "
        "126.8 GiB, with 4.1 GiB free of 139.8 GiB; lower --per_device_train_batch_size (now 512) and raise "
        "--gradient_accumulation_steps (now 2) by the same factor, which keeps the batch of the "
        "optimiser; no earlier checkpoint exists."
    )


def test_an_evaluation_on_cuda(h200: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "checkpoint-500").mkdir()
    message = told(h200, torch.OutOfMemoryError(OUT_OF_CUDA_MEMORY.replace("20.00 GiB", "96.00 MiB")), evaluation=True)
    assert message.startswith("A batch of the evaluation does not fit into the memory of NVIDIA H200: it asked for 96")
    assert "; lower --per_device_eval_batch_size (now 64); " in message
    assert message.endswith(f"the last good checkpoint is {tmp_path / 'checkpoint-500'}.")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("no figures here"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported."),
    ],
)
def test_without_the_size_asked_for(h200: SimpleNamespace, error: Exception) -> None:
    assert "NVIDIA H200: it had used up to 126.8 GiB, with 4.1 GiB free of 139.8 GiB; lower" in told(h200, error)


def test_without_any_figure(h200: SimpleNamespace) -> None:
    h200.device = torch.device("mps")
    error = RuntimeError("MPS backend out of memory (MPS allocated: 8.9 GB, max allowed: 9.07 GB).")
    assert told(h200, error).startswith("A training step does not fit into memory; lower --per_device_train_batch_size")


def test_one_block_cannot_be_halved(h200: SimpleNamespace) -> None:
    h200.per_device_train_batch_size = h200.per_device_eval_batch_size = 1
    for evaluation in (False, True):
        message = told(h200, torch.OutOfMemoryError(OUT_OF_CUDA_MEMORY), evaluation=evaluation)
        assert "smaller --block_size" in message
        assert "lower" not in message


def test_other_errors_stay_what_they_are(h200: SimpleNamespace) -> None:
    with pytest.raises(RuntimeError, match="expected scalar type"), fitting_memory(h200):
        raise RuntimeError("expected scalar type Float but found Half")


def test_a_step_that_the_cpu_has_no_room_for(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls = DistillationStep.forward, 0

    def greedy(self: DistillationStep, *batch: torch.Tensor) -> dict[str, torch.Tensor]:
        nonlocal calls
        calls += 1
        if calls == 14:
            torch.empty(2**58)
        return forward(self, *batch)

    monkeypatch.setattr(DistillationStep, "forward", greedy)
    folder = tmp_path / "student"
    with pytest.raises(PotstillError) as stopped:
        distill(distillation(teacher_folder, corpus_folder, folder, save_steps=3))
    assert re.fullmatch(
        r"A training step does not fit into memory: it asked for 1,073,741,824\.0 GiB more, with [\d.,]+ GiB free of "
        r"[\d.,]+ GiB; lower --per_device_train_batch_size \(now 2\) and raise --gradient_accumulation_steps \(now 4\) "
        r"by the same factor, which keeps the batch of the optimiser; "
        r"the last good checkpoint is .*/student/checkpoint-3\.",
        str(stopped.value),
    )
    assert checkpoints(folder) == ["checkpoint-3"]


def test_an_evaluation_that_the_cpu_has_no_room_for(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "held_out_metrics", lambda *args, **options: torch.empty(2**58))
    args = distillation(teacher_folder, corpus_folder, tmp_path / "student", eval_on_start=True)
    with pytest.raises(PotstillError, match=r"A batch of the evaluation .* lower --per_device_eval_batch_size"):
        new_trainer(args).train()


def test_the_batch_is_not_changed_unasked(teacher_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PotstillError, match=r"--auto_find_batch_size is True: .* lower --per_device_train_batch_size"):
        distillation(teacher_folder, corpus_folder, tmp_path / "student", auto_find_batch_size=True)
