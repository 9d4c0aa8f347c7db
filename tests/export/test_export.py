"""The verb `export`: folders that are whole models, and nothing if the export does not agree with the model."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_samples import SIZES
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForNextSentencePrediction,
)

from potstill.cli import main
from potstill.errors import PotstillError
from potstill.export.check import compare
from potstill.export.formats import FORMATS
from potstill.export.onnx import FLOAT
from potstill.export.openvino import OpenvinoModel, write_openvino
from potstill.export.runtime import ExportedFolder
from potstill.export.source import Source

for package in ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf"):
    pytest.importorskip(package)

SST2 = "\n".join(["sentence\tlabel", *(f"word number {number}\t{number % 2}" for number in range(20))]) + "\n"


class Shifted:
    """Says something else than its source: every second logit is larger by what is given."""

    def __init__(self, source: Source, by: float) -> None:
        self.source, self.by = source, by

    def run(self, inputs: Any) -> Any:
        found = self.source.run(inputs)
        for logits in found.values():
            logits[..., 1::2] += self.by
        return found


def test_onnx_takes_any_batch_and_length(classifier: Path, as_onnx: Path) -> None:
    source, exported = Source.open(str(classifier)), ExportedFolder.read(as_onnx).open(threads=1)
    generator = np.random.default_rng(np.random.randint(2**31))
    for rows, length in ((1, 2), (1, 48), (5, 7)):
        ids = generator.integers(source.model.config.vocab_size, size=(rows, length))
        mask = np.ones_like(ids)
        mask[0, length - 1 :] = 0
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids % 2}
        np.testing.assert_allclose(exported.run(inputs)["logits"], source.run(inputs)["logits"], atol=1e-4)
    long = {name: np.ones((2, 49), np.int64) for name in source.inputs}
    with pytest.raises(
        PotstillError, match=r"model.onnx cannot run a batch of 2 with 49 tokens: .* longer than the model"
    ):
        exported.run(long)


def test_the_folder_is_a_whole_model(as_onnx: Path) -> None:
    summary = json.loads((as_onnx / "potstill_export.json").read_text())
    assert summary["task"] == "text-classification"
    assert summary["agreement"]["same"] == 1
    assert summary["agreement"]["answers"] > 50
    assert {"config.json", "tokenizer.json", "onnx", "potstill_export.json"} <= {p.name for p in as_onnx.iterdir()}
    assert [path.name for path in (as_onnx / "onnx").iterdir()] == ["model.onnx"]
    assert not (as_onnx / ".scratch").exists()
    assert AutoTokenizer.from_pretrained(as_onnx).model_max_length == summary["max_length"] == 32
    assert "potstill" not in (as_onnx / "config.json").read_text()


def test_openvino(classifier: Path, as_onnx: Path, tmp_path: Path) -> None:
    write_openvino(as_onnx / FLOAT, tmp_path / "openvino_model.xml")
    agreement = compare(Source.open(str(classifier)), OpenvinoModel(tmp_path / "openvino_model.xml", threads=1))
    assert agreement.same == 1
    assert agreement.relative < 1e-4


def test_scores_before_and_after(
    classifier: Path, as_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def write(source: Source, file: Path, *_: object) -> None:
        file.write_bytes((as_onnx / FLOAT).read_bytes())

    monkeypatch.setitem(FORMATS, "onnx", dataclasses.replace(FORMATS["onnx"], write=write))
    (tmp_path / "SST-2").mkdir()
    (tmp_path / "SST-2" / "dev.tsv").write_text(SST2)
    options = ["--task", "sst2", "--check_data", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    assert main(["export", "--model", str(classifier), "--format", "onnx", *options]) == 0
    out, err = capfd.readouterr()
    assert "accuracy " in out
    assert err == ""
    scores = json.loads((tmp_path / "out" / "potstill_export.json").read_text())["scores"]
    assert scores["before"] == scores["after"]
    assert scores["agreement"]["answers"] == 20


def test_what_says_something_else_is_not_written(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Source.open(str(classifier))
    (tmp_path / "data" / "SST-2").mkdir(parents=True)
    (tmp_path / "data" / "SST-2" / "dev.tsv").write_text(SST2)

    def said(by: float, *options: str) -> str:
        for name in ("onnx", "onnx-int8"):
            pretended = {"write": lambda *_: None, "open": lambda *_: Shifted(source, by)}
            monkeypatch.setitem(FORMATS, name, dataclasses.replace(FORMATS[name], **pretended))
        words = ["export", "--model", str(classifier), "--format", "onnx", "--output_dir", str(tmp_path / "out")]
        assert main([*words, *options]) == 1
        assert [path.name for path in tmp_path.iterdir()] == ["data"]
        return capsys.readouterr().err

    message = said(1e-2)
    assert "does not agree with" in message
    assert "over the --tolerance of 0.10%" in message
    assert "--min_agreement" not in message
    message = said(50.0, "--tolerance", "1e3")
    assert "under the --min_agreement of 99.00%" in message
    assert "over the" not in message
    assert "over the --tolerance" in said(float("nan"))
    assert "; nothing was written.\n" in message
    # The last --format counts.
    assert "(--format onnx stays nearer to it)" in said(1e3, "--format", "onnx-int8")
    assert "(--weight_bits 8 stays nearer to it)" in said(1e3, "--format", "onnx-int8", "--weight_bits", "4")
    static = ("--format", "onnx-int8", "--quantization", "static")
    assert "(--quantization dynamic stays nearer to it)" in said(1e3, *static)
    data = ["--task", "sst2", "--check_data", str(tmp_path / "data"), "--tolerance", "1e3", "--min_agreement", "0"]
    always = [logits.argmax() for logits in (source.run(source.tokenise(["word"]))["logits"],)]
    by = -50.0 if always[0] == 1 else 50.0
    labels = SST2.replace(f"\t{1 - always[0]}\n", f"\t{always[0]}\n")
    (tmp_path / "data" / "SST-2" / "dev.tsv").write_text(labels)
    assert "over the --score_tolerance of 0.10%" in said(by, *data)


def test_bad_input(
    classifier: Path, as_onnx: Path, new_model: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def said(model: Path | str, *options: str) -> str:
        words = ["export", "--model", str(model), "--output_dir", str(tmp_path / "out"), *options]
        assert main(words) in (1, 2)
        message = capsys.readouterr().err
        assert "Traceback" not in message
        assert len(message.splitlines()) == 1
        assert not (tmp_path / "out").exists()
        return message

    onnx, int8 = ("--format", "onnx"), ("--format", "onnx-int8")
    mute = tmp_path / "mute"
    shutil.copytree(classifier, mute)
    for file in mute.glob("*token*"):
        file.unlink()
    (mute / "vocab.txt").unlink(missing_ok=True)
    assert "has no tokenizer: put its tokenizer.json" in said(mute, *onnx)
    assert "does not exist" in said(tmp_path / "none", *onnx)
    assert "config.json" in said(tmp_path, *onnx)
    assert "no weights" in said(as_onnx, *onnx)
    config = BertConfig(vocab_size=50, **SIZES)
    other = said(new_model(BertForNextSentencePrediction, config), *onnx)
    assert "is a BertForNextSentencePrediction, which has no head to export: give" in other
    assert "or a sentence encoder." in other
    assert "--tolerance is 0.0: it must be above 0" in said(classifier, *onnx, "--tolerance", "0")
    assert "--min_agreement is 2.0" in said(classifier, *onnx, "--min_agreement", "2")
    assert "--score_tolerance is -1.0" in said(classifier, *onnx, "--score_tolerance", "-1")
    assert "--max_check_samples is 0" in said(classifier, *onnx, "--max_check_samples", "0")
    assert "--max_check_samples is for --check_data, which" in said(classifier, *onnx, "--max_check_samples", "5")
    assert "--score_tolerance is for --check_data, which" in said(classifier, *onnx, "--score_tolerance", "0.1")
    empty = tmp_path / "empty"
    empty.mkdir()
    message = said(classifier, *onnx, "--check_data", str(empty))
    assert f"--check_data {empty} has no dev.tsv, .jsonl or .parquet: name" in message
    assert "--check_data nowhere is not a folder" in said(
        classifier, *onnx, "--task", "sst2", "--check_data", "nowhere"
    )
    assert "--quantization is for onnx-int8" in said(classifier, *onnx, "--quantization", "static")
    assert "--weight_bits is for onnx-int8" in said(classifier, *onnx, "--weight_bits", "8")
    assert "it can be 4 or 8" in said(classifier, *int8, "--weight_bits", "5")
    assert "goes with --quantization dynamic" in said(
        classifier, *int8, "--weight_bits", "4", "--quantization", "static"
    )
    assert "is for --quantization static" in said(classifier, *int8, "--calibration_data", "text")
    static = (*int8, "--quantization", "static", "--calibration_data")
    assert "There is no file or folder" in said(classifier, *static, str(tmp_path / "none.txt"))
    assert "invalid choice" in said(classifier, "--format", "tflite").lower()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for extra in ("onnx", "openvino", "executorch", "coreml"):
        assert f"pip install 'potstill[{extra}]'" in said(classifier, "--format", extra)


def test_nothing_but_an_export_is_replaced(classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The model itself least of all."""
    model = tmp_path / "model"
    shutil.copytree(classifier, model)
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    for folder in (model, tmp_path):
        words = ["export", "--model", str(model), "--format", "onnx", "--output_dir", str(folder)]
        assert main([*words, "--overwrite_output_dir"]) == 1
        assert capsys.readouterr().err.count("holds something other than an export, so it is not replaced") == 1
    assert {path: path.read_bytes() for path in model.rglob("*") if path.is_file()} == before


def test_damaged_exports(as_onnx: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(as_onnx, cut)
    (cut / FLOAT).write_bytes((as_onnx / FLOAT).read_bytes()[:1000])
    with pytest.raises(PotstillError, match="cannot be run by onnxruntime"):
        ExportedFolder.read(cut).open()
    with pytest.raises(PotstillError, match=r"potstill_export.json cannot be read: No such file"):
        ExportedFolder.read(tmp_path)
    summary = json.loads((as_onnx / "potstill_export.json").read_text())
    for content, told in (
        ('{"inputs":' * 100_000, "nested too deeply"),
        ("{}", r"potstill_export.json is damaged \('format'\)"),
        (json.dumps(summary | {"inputs": [1]}), "does not name inputs and outputs"),
        (json.dumps(summary | {"inputs": []}), "does not name inputs and outputs"),
        (json.dumps(summary | {"outputs": "logits"}), "does not name inputs and outputs"),
    ):
        (cut / "potstill_export.json").write_text(content)
        with pytest.raises(PotstillError, match=told) as caught:
            ExportedFolder.read(cut)
        assert "export the model again" in str(caught.value)
    (cut / "potstill_export.json").write_text(json.dumps(summary | {"format": "onnx-int1"}))
    with pytest.raises(PotstillError, match=r"'onnx-int1', and this version .* knows onnx, onnx-int8, .* upgrade"):
        ExportedFolder.read(cut)


@pytest.mark.parametrize("name", ["executorch", "coreml"])
def test_a_file_that_does_not_name_its_outputs_needs_them_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(PotstillError, match=r"potstill_export.json of .* does not name inputs and outputs: export"):
        FORMATS[name].open(tmp_path / FORMATS[name].file, ("input_ids",), (), None)


def test_an_interrupted_export_leaves_nothing(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(source: Source, file: Path, *_: object) -> None:
        file.write_bytes(b"half of it")
        os.kill(os.getpid(), signal.SIGINT)

    out = tmp_path / "out"
    out.mkdir()
    (out / "potstill_export.json").write_text("what was there")
    monkeypatch.setitem(FORMATS, "openvino", dataclasses.replace(FORMATS["openvino"], write=interrupted))
    words = ["export", "--model", str(classifier), "--format", "openvino", "--output_dir", str(out)]
    assert main([*words, "--overwrite_output_dir"]) == 130
    assert capsys.readouterr().err == "potstill export: interrupted.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] == ["potstill_export.json"]
    assert main(words) == 1
    assert "is not empty" in capsys.readouterr().err
