"""The model that `finetune --quantization` trains says what its export says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_samples import DISTIL, SIZES
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForTokenClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from potstill.export.onnx import OnnxModel, write_onnx
from potstill.export.onnx_int8 import quantise_onnx
from potstill.export.source import Source
from potstill.precision.simulated import in_float, simulate

for package in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(package)

OTHERS: dict[str, Any] = {
    "questions": (BertForQuestionAnswering, BertConfig, SIZES | {"hidden_act": "relu"}),
    "distilbert": (DistilBertForSequenceClassification, DistilBertConfig, DISTIL),
    "roberta": (RobertaForSequenceClassification, RobertaConfig, SIZES),
    "electra": (ElectraForTokenClassification, ElectraConfig, SIZES | {"embedding_size": 16, "num_labels": 5}),
    "modernbert": (ModernBertForSequenceClassification, ModernBertConfig, SIZES | {"cls_token_id": 2}),
}


BATCHES = 5


def rms(of: np.ndarray) -> float:
    return float(np.sqrt(np.square(of).mean()))


def check(folder: Path, float_file: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("potstill.export.onnx_int8", "potstill.precision.simulated"):
        monkeypatch.setattr(f"{module}.LARGE", 500)  # so that tiny tables are quantised too
    source = Source.open(str(folder))
    letters = sorted(set(source.tokenizer.get_vocab()) - set(source.tokenizer.all_special_tokens))
    generator = np.random.default_rng(np.random.randint(2**31))
    # Of different lengths, so that padding is among the activations that decide a scale.
    batches = [
        source.tokenise([" ".join(generator.choice(letters, length)) for length in (3, 12, 30)]) for _ in range(BATCHES)
    ]
    every_token = source.head.task != "text-classification"
    for integers, bits in (("int8", 8), ("int4", 4)):
        quantise_onnx(float_file, scratch / "int.onnx", bits, None, every_token)
        exported = OnnxModel(scratch / "int.onnx", threads=1)
        model = Source.open(str(folder)).model
        names = set(model.state_dict())
        simulate(model, integers, every_token)
        assert set(model.state_dict()) == names
        differences: dict[str, list[float]] = {output: [] for output in source.head.outputs}
        for inputs in batches:
            expected, found = source.run(inputs), exported.run(inputs)
            with torch.inference_mode():
                tensors = {key: torch.from_numpy(inputs[key]) for key in source.inputs}
                simulated = model(**tensors)
                with in_float(model):
                    plain = model(**tensors)
            for output, values in differences.items():
                moved = rms(found[output] - expected[output])
                values.append(rms(simulated[output].numpy() - found[output]) / moved)
                np.testing.assert_allclose(plain[output].numpy(), expected[output], atol=1e-5)
        # A number half-way between two integers may be rounded either way, up to the rounding of float32. If it decides
        # a scale, a whole batch differs: one in fifty does.
        for output, values in differences.items():
            assert np.median(values) < 0.15, (integers, output, values)


def test_the_logits_are_those_of_the_export(
    classifier: Path, as_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "float.onnx"
    copy.write_bytes((as_onnx / "onnx" / "model.onnx").read_bytes())
    check(classifier, copy, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_so_are_those_of_other_families_and_heads(
    name: str, new_model: Any, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, config, options = OTHERS[name]
    shape = {"vocab_size": len(tiny_tokenizer), "max_position_embeddings": 64, "pad_token_id": 0}
    folder = new_model(kind, config(**shape, **options))
    write_onnx(Source.open(str(folder)), tmp_path / "float.onnx")
    check(folder, tmp_path / "float.onnx", tmp_path, monkeypatch)
