"""What a run says of the processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from runs import distillation, new_trainer

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
