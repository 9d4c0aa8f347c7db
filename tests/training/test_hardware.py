"""What a run says of the processor, and of a GPU that is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import distillation, new_trainer

from potstill import PotstillError
from potstill.training import compatibility, hardware

AMX, NONE = ["model name\t: X", "flags\t\t: fpu avx2 amx_bf16 amx_tile"], ["flags\t\t: fpu avx2", "bugs\t: amx_bf16"]


@pytest.mark.parametrize(
    ("lines", "options", "said"), [(AMX, {}, True), (AMX, {"bf16": True}, False), (NONE, {}, False), ([], {}, False)]
)
def test_a_processor_that_is_faster_in_sixteen_bits_is_told(
    lines: list[str],
    options: dict[str, Any],
    said: bool,
    teacher_folder: Path,
    corpus_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(hardware, "cpu_info", lambda: lines)
    monkeypatch.setattr(compatibility, "multiplies_bfloat16", hardware.multiplies_bfloat16)
    compatibility._say_once.cache_clear()
    for _ in range(2):
        new_trainer(distillation(teacher_folder, corpus_folder, tmp_path / "student", **options))
    assert capsys.readouterr().err.count("--bf16 makes a training faster") == said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_sixteen_bits_without_a_gpu_name_the_options(teacher_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PotstillError, match=r"--bf16 is given, but there is no GPU .*: add --use_cpu .* --bf16 false"):
        distillation(teacher_folder, corpus_folder, tmp_path / "student", bf16=True, use_cpu=False)
