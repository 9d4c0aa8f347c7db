"""`finetune --quantization`: trained as its int8 export computes, saved in float."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from finetuning_samples import finetuned
from transformers import AutoModelForSequenceClassification

from potstill import PotstillError
from potstill.finetuning.finetune_arguments import FinetuneArguments
from potstill.precision.simulated import SimulatedLinear


def test_the_folder_is_an_ordinary_one_and_both_scores_are_told(
    teacher: Path, glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"model": teacher, "teacher": teacher, "task": "sst2", "task_data": glue, "without_teacher_too": False}
    results = finetuned(**options, quantization="int4", output_dir=tmp_path / "out", num_train_epochs=1)
    quantized = results["quantized"]
    assert quantized["quantization"] == "int4"
    assert {"accuracy", "score"} <= quantized.keys()
    assert "float32" in capsys.readouterr().out
    assert "--weight_bits 4" in (tmp_path / "out" / "README.md").read_text()
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert not any(isinstance(module, SimulatedLinear) for module in model.modules())
    before = AutoModelForSequenceClassification.from_pretrained(teacher)
    weights, old = model.bert.encoder.layer[0].intermediate.dense.weight, before.state_dict()
    assert not torch.equal(weights, old["bert.encoder.layer.0.intermediate.dense.weight"])  # it was trained
    assert len(weights[0].unique()) > 16  # and is not one of few numbers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha_cos": 1.0, "teacher": "t"}, "alpha_cos"),
        ({"freeze_encoder": True}, "freeze_encoder"),
        ({"quantization": "int2"}, "int8 or int4"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(PotstillError, match=message):
        FinetuneArguments(output_dir=str(tmp_path), task="sst2", **{"quantization": "int8"} | options)
