"""Bad input to `bench inference`: one sentence, a status that is not 0, and no process where it shows before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from inference_samples import SIZES, Local
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification, BertTokenizer

from potstill.bench.inference import energy
from potstill.cli import main
from potstill.export.runtime import ExportedFolder

pytestmark = pytest.mark.usefixtures("signals_restored", "no_hub", "local")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the verb, which must fail; return its one line."""

    def run(*options: object, status: int = 1) -> str:
        capsys.readouterr()
        assert main(["bench", "inference", *map(str, options), "--compiled", "false"]) == status
        printed = capsys.readouterr()
        assert printed.out == ""
        lines = [line for line in printed.err.splitlines() if line.startswith("potstill ")]
        assert printed.err.endswith(f"{lines[0]}\n")
        assert len(lines) == 1
        assert "Traceback" not in printed.err
        return lines[0]

    return run


@pytest.fixture(scope="module")
def classifier(make_classifier: Callable[..., Path]) -> Path:
    return make_classifier()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "--models is missing"),
        (["--models", "student"], "--models 'student' is not NAME=FOLDER"),
        (["--models", "a=x", "a=y"], "two models with the name 'a'"),
        (["--models", "a=x", "--threads", 0], "--threads is 0: it must be above 0"),
        (["--models", "a=x", "--threads", 4096], "--threads is 4096, but this process may use"),
        (["--models", "a=x", "--batch_size", 0], "--batch_size is 0"),
        (["--models", "a=x", "--max_requests", -1], "--max_requests is -1"),
        (["--models", "a=x", "--warmup", -1], "--warmup is -1"),
        (["--models", "a=x", "--task_data", "glue"], "--task_data is the folder of --data stsb"),
        (["--models", "a=x", "--country", "FRA"], "--country is for --energy, which is missing"),
        (["--models", "a=x", "--output", "/"], "--output / cannot be written, because it is a folder: name a file"),
        (["--models", "a=x", "--output", "/nowhere/at/all.json"], "--output /nowhere/at/all.json cannot be written"),
        (["--models", "ELMo-shaped=x", "--elmo"], "which --elmo uses"),
        (["--models", "a=/nowhere/model"], "'/nowhere/model' does not exist"),
    ],
)
def test_impossible_values(refused: Callable[..., str], options: list[object], told: str) -> None:
    assert told in refused(*options, status=1 if options else 2)
    assert Local.calls == []


def test_a_folder_that_is_no_model(refused: Callable[..., str], classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("ten years of work")
    message = refused("--models", f"a={classifier}", f"b={tmp_path}")
    assert f"--models b={tmp_path}: the folder holds no model" in message
    shutil.copy(classifier / "config.json", tmp_path)
    assert "has no weights" in refused("--models", f"a={classifier}", f"b={tmp_path}")
    assert Local.calls == []


def test_different_tasks(
    refused: Callable[..., str],
    classifier: Path,
    make_classifier: Callable[..., Path],
    teacher_folder: Path,
    tiny_tokenizer: BertTokenizer,
    tmp_path: Path,
) -> None:
    mlm = f"mlm={teacher_folder}"
    assert "'own' (text-classification) and 'mlm' (fill-mask) do different" in refused(
        "--models", f"own={classifier}", mlm
    )
    three = make_classifier(num_labels=3)
    assert "do different tasks" in refused("--models", f"a={classifier}", f"b={three}")
    named = [
        make_classifier(id2label={0: one, 1: other}, label2id={one: 0, other: 1})
        for one, other in (("negative", "positive"), ("unacceptable", "acceptable"))
    ]
    message = refused("--models", f"any={classifier}", f"a={named[0]}", f"b={named[1]}")
    assert "'a' (labels negative, positive) and 'b' (labels unacceptable, acceptable) do different tasks" in message
    BertForQuestionAnswering(BertConfig(vocab_size=len(tiny_tokenizer), num_hidden_layers=1, **SIZES)).save_pretrained(
        tmp_path / "qa"
    )
    message = refused("--models", mlm, f"qa={tmp_path / 'qa'}", "--data", "stsb", "--task_data", tmp_path)
    assert "it is for question-answering, and --data stsb asks for models that score texts" in message
    assert Local.calls == []


def test_an_export_that_is_damaged(refused: Callable[..., str], classifier: Path, tmp_path: Path) -> None:
    summary = tmp_path / "potstill_export.json"
    summary.write_text("{")
    assert "potstill_export.json is damaged" in refused("--models", f"a={tmp_path}")
    described = {"format": "onnx", "task": "fill-mask", "inputs": ["input_ids"], "max_length": 8}
    summary.write_text(json.dumps(described | {"file": "onnx/model.onnx"}))
    assert "lacks its model.onnx: export the model again" in refused("--models", f"a={tmp_path}")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"half of it")
    assert "lacks its config.json" in refused("--models", f"a={tmp_path}")
    shutil.copy(classifier / "config.json", tmp_path)
    assert "do different tasks" in refused("--models", f"a={classifier}", f"b={tmp_path}")


def test_a_model_cut_short(refused: Callable[..., str], make_classifier: Callable[..., Path]) -> None:
    folder = make_classifier()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    message = refused("--models", f"a={folder}")
    assert (
        f"the model {str(folder)!r} cannot be loaded, because its weights in model.safetensors are damaged" in message
    )
    assert "copy or download it again" in message


@pytest.mark.parametrize(
    ("described", "title", "bits"),
    [
        ({"format": "onnx"}, "ONNX Runtime", 32),
        ({"format": "onnx-int8"}, "ONNX Runtime int8", 8),
        ({"format": "onnx-int8", "weight_bits": 4, "quantization": "dynamic"}, "ONNX Runtime int4", 4),
        ({"format": "openvino-int8", "weight_bits": 8, "quantization": "static"}, "OpenVINO int8 static", 8),
        ({"format": "coreml"}, "Core ML float16", 16),
        ({"format": "executorch", "weight_bits": 32, "quantization": None}, "ExecuTorch", 32),
    ],
)
def test_forms_are_named_by_runtime_and_precision(
    classifier: Path, tmp_path: Path, described: dict[str, object], title: str, bits: int
) -> None:
    rest = {"task": "text-classification", "inputs": ["input_ids"], "max_length": 8, "file": "model"}
    (tmp_path / "potstill_export.json").write_text(json.dumps(described | rest))
    (tmp_path / "model").write_bytes(b"12345")
    shutil.copy(classifier / "config.json", tmp_path)
    found = ExportedFolder.read(tmp_path)
    assert (found.title, found.weight_bits, found.bytes) == (title, bits, 5)
    assert found.bits_in_memory == (8 if title.endswith("int4") else bits)


def test_a_runtime_that_is_not_there(
    refused: Callable[..., str], classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = {"format": "onnx-int8", "task": "text-classification", "inputs": ["input_ids"], "max_length": 8}
    (tmp_path / "potstill_export.json").write_text(json.dumps(described | {"file": "model.onnx"}))
    (tmp_path / "model.onnx").touch()
    shutil.copy(classifier / "config.json", tmp_path)
    monkeypatch.setattr("potstill.export.runtime.importlib.util.find_spec", lambda name: None)
    message = refused("--models", f"a={tmp_path}")
    assert "is for ONNX Runtime int8, which needs onnxruntime: pip install 'potstill[onnx]'" in message
    monkeypatch.setattr(energy.importlib.util, "find_spec", lambda name: None)
    assert "--energy needs codecarbon: pip install 'potstill[energy]'" in refused(
        "--models", f"a={classifier}", "--energy"
    )


def test_flops_that_cannot_be_counted(
    refused: Callable[..., str], classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(self: BertForSequenceClassification, input_ids: torch.Tensor) -> None:
        raise ValueError(f"no {input_ids.device}")

    monkeypatch.setattr(BertForSequenceClassification, "forward", forward)
    assert "The FLOPs of the model 'a' cannot be counted (no cpu): leave this model out." in refused(
        "--models", f"a={classifier}"
    )
    assert Local.calls == []


def test_data(refused: Callable[..., str], classifier: Path, tmp_path: Path) -> None:
    model = ["--models", f"a={classifier}"]
    assert "--data / is a folder: name a file of text" in refused(*model, "--data", "/")
    assert "There is no data 'sstb': give stsb, or a file of text" in refused(*model, "--data", "sstb")
    (tmp_path / "empty").write_text("\n \n")
    assert "has no requests" in refused(*model, "--data", tmp_path / "empty")
    assert "has no data of STS-B" in refused(*model, "--data", "stsb", "--task_data", tmp_path)
    assert Local.calls == []


def test_a_text_longer_than_the_model(refused: Callable[..., str], classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("short\n" + "bola " * 60 + "\n")
    model = ["--models", f"a={classifier}", "--data", tmp_path / "text"]
    message = refused(*model)
    assert "The text of line 2 has 62 tokens, and the model 'a' reads 32 at most" in message
    assert "--max_length 32" in message
    assert "--max_length is 40, but the model 'a' reads at most 32 tokens: lower it" in refused(
        *model, "--max_length", 40
    )
