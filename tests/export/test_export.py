"""Exported models say what their source says, in their own runtime; what does not is not written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForTokenClassification,
    PreTrainedTokenizerFast,
)

from potstill.cli import main
from potstill.errors import PotstillError
from potstill.export.check import Agreement, compare
from potstill.export.export import export, open_exported
from potstill.export.source import Source

onnx = pytest.importorskip("onnx")
for package in ("onnxscript", "onnxruntime", "openvino", "nncf"):
    pytest.importorskip(package)

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture(scope="module")
def new_model(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast
) -> Callable[[type, Any], Path]:
    """Save a random model of a class and config, with its tokenizer."""

    def save(kind: type, config: Any) -> Path:
        folder = tmp_path_factory.mktemp("model")
        model = kind(config)
        for parameter in model.parameters():
            parameter.data.add_(0.05 * np.random.default_rng(0).standard_normal())
        model.save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="module")
def classifier(new_model: Callable[[type, Any], Path], tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    return new_model(
        BertForSequenceClassification,
        BertConfig(vocab_size=len(tiny_tokenizer), num_labels=2, max_position_embeddings=48, **SIZES),
    )


@pytest.fixture(scope="module")
def as_onnx(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    export(str(classifier), "onnx", str(folder))
    return folder


def test_onnx_takes_any_batch_and_length(classifier: Path, as_onnx: Path) -> None:
    source, exported = Source.open(str(classifier)), open_exported(as_onnx, threads=1)
    generator = np.random.default_rng()
    for rows, length in ((1, 2), (1, 48), (5, 7)):
        ids = generator.integers(source.model.config.vocab_size, size=(rows, length))
        mask = np.ones_like(ids)
        mask[0, length - 1 :] = 0
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids % 2}
        np.testing.assert_allclose(exported.run(inputs)["logits"], source.run(inputs)["logits"], atol=1e-4)


def test_the_folder_is_a_whole_model(as_onnx: Path) -> None:
    summary = json.loads((as_onnx / "potstill_export.json").read_text())
    assert summary["task"] == "text-classification"
    assert summary["agreement"]["same"] == 1
    assert {"config.json", "tokenizer.json", "onnx", "potstill_export.json"} <= {p.name for p in as_onnx.iterdir()}
    assert [path.name for path in (as_onnx / "onnx").iterdir()] == ["model.onnx"]
    assert not (as_onnx / ".scratch").exists()


@pytest.mark.parametrize("format", ["onnx-int8", "openvino"])
def test_formats(format: Any, new_model: Callable[[type, Any], Path], teacher_folder: Path, tmp_path: Path) -> None:
    exported = export(str(teacher_folder), format, str(tmp_path / "out"))
    assert exported.task == "fill-mask"
    assert exported.agreement.answers > 100
    if format == "onnx-int8":
        weights = onnx.load(exported.file).graph.initializer
        bytes_by_type = {kind: sum(len(w.raw_data) for w in weights if w.data_type == kind) for kind in (1, 3)}
        assert bytes_by_type[onnx.TensorProto.INT8] > 2 * bytes_by_type[onnx.TensorProto.FLOAT]
        assert not exported.file.with_name("model.onnx").exists()
    assert 0 <= exported.agreement.relative < (0.25 if format == "onnx-int8" else 1e-3)


def test_question_answering_and_openvino_in_int8(
    new_model: Callable[[type, Any], Path], tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    config = BertConfig(vocab_size=len(tiny_tokenizer), max_position_embeddings=64, **SIZES)
    exported = export(str(new_model(BertForQuestionAnswering, config)), "openvino-int8", str(tmp_path / "out"))
    assert exported.task == "question-answering"
    assert exported.file.name == "openvino_model.xml"


def test_token_classification(
    new_model: Callable[[type, Any], Path], tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    config = DistilBertConfig(
        vocab_size=len(tiny_tokenizer), dim=32, n_layers=1, n_heads=2, hidden_dim=64, max_position_embeddings=64
    )
    exported = export(str(new_model(DistilBertForTokenClassification, config)), "onnx", str(tmp_path / "out"))
    assert exported.agreement.same == 1


def test_scores_before_and_after(classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "SST-2").mkdir()
    rows = [f"word number {number}\t{number % 2}" for number in range(20)]
    (tmp_path / "SST-2" / "dev.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    options = ["--task", "sst2", "--check_data", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    assert main(["export", "--model", str(classifier), "--format", "onnx", *options]) == 0
    assert "accuracy " in capsys.readouterr().out
    before, after = json.loads((tmp_path / "out" / "potstill_export.json").read_text())["scores"]
    assert before == after


class Shifted:
    """Says something else than its source."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def run(self, inputs: Any) -> Any:
        return {name: logits + 0.5 for name, logits in self.source.run(inputs).items()}


def test_a_difference_is_measured(classifier: Path) -> None:
    source = Source.open(str(classifier))
    found = compare(source, Shifted(source))
    assert found.largest == pytest.approx(0.5, abs=1e-5)
    assert found.same == 1
    assert compare(source, source) == Agreement(0, found.spread, 1, found.answers)


def test_what_says_something_else_is_not_written(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("potstill.export.export.open_exported", lambda folder: Shifted(Source.open(str(classifier))))
    out = tmp_path / "out"
    assert main(["export", "--model", str(classifier), "--format", "onnx", "--output_dir", str(out)]) == 1
    assert "does not say what" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_bad_input(
    classifier: Path, as_onnx: Path, new_model: Callable[[type, Any], Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def said(model: Path | str, *options: str) -> str:
        words = ["export", "--model", str(model), "--output_dir", str(tmp_path / "out"), *options]
        assert main(words) in (1, 2)
        message = capsys.readouterr().err
        assert "Traceback" not in message
        assert not (tmp_path / "out").exists()
        return message

    assert "does not exist" in said(tmp_path / "none", "--format", "onnx")
    headless = new_model(BertModel, BertConfig(vocab_size=50, **SIZES))
    assert "has no head to export" in said(headless, "--format", "onnx")
    assert "go together" in said(classifier, "--format", "onnx", "--task", "sst2")
    assert "must be above 0" in said(classifier, "--format", "onnx", "--tolerance", "0")
    assert "invalid choice" in said(classifier, "--format", "tflite").lower()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'potstill[openvino]'" in said(classifier, "--format", "openvino")

    cut = tmp_path / "cut"
    (cut / "onnx").mkdir(parents=True)
    (cut / "onnx" / "model.onnx").write_bytes((as_onnx / "onnx" / "model.onnx").read_bytes()[:1000])
    with pytest.raises(PotstillError, match="cannot be run by onnxruntime"):
        open_exported(cut)
    with pytest.raises(PotstillError, match="holds no exported model"):
        open_exported(tmp_path)
