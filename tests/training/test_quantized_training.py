"""`distill --quantization`: a language model is trained as its int8 export computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runs import distillation
from transformers import AutoModelForMaskedLM

from potstill import PotstillError, distill
from potstill.precision.simulated import SimulatedLinear


def test_both_losses_are_told_and_the_folder_is_an_ordinary_one(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    distill(distillation(teacher_folder, corpus_folder, tmp_path / "out", quantization="int4", num_train_epochs=1))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["quantized"]["quantization"] == "int4"
    in_float, as_export = results["quantized"]["held_out_in_float"], results["held_out"]["final"]
    assert in_float["loss"] != as_export["loss"]
    assert in_float["loss"] == pytest.approx(as_export["loss"], rel=0.1)
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert not any(isinstance(module, SimulatedLinear) for module in model.modules())


@pytest.mark.parametrize("option", ["bf16", "fixed_point"])
def test_what_does_not_go_together_is_refused(option: str, tmp_path: Path) -> None:
    value = {"bf16": True, "fixed_point": "{weights: Q4.12}"}[option]
    with pytest.raises(PotstillError, match=f"{option} is"):
        distillation(tmp_path, tmp_path, tmp_path, quantization="int8", **{option: value})
