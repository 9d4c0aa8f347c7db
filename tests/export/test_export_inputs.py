"""An export takes what the tokenizer beside it gives, and nothing else; what it cannot take is told before."""

import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from export_samples import SIZES
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertForSequenceClassification, BertTokenizer

from potstill.bench.inference.models import Form
from potstill.bench.inference.runners import ExportedRunner, TorchRunner
from potstill.cli import main
from potstill.errors import PotstillError
from potstill.export.export import export
from potstill.export.runtime import ExportedFolder
from potstill.export.source import Source

pytestmark = pytest.mark.usefixtures("signals_restored", "no_hub")

NewModel = Callable[..., Path]
PAIR = ("one word", "and another")


ONE_LAYER = SIZES | {"num_hidden_layers": 1}  # half as long to export


@pytest.fixture(scope="module")
def one_type(new_model: NewModel, tiny_tokenizer: BertTokenizer) -> Path:
    """A model with one token type, whose tokenizer numbers two."""
    config = BertConfig(vocab_size=len(tiny_tokenizer), type_vocab_size=1, max_position_embeddings=48, **ONE_LAYER)
    return new_model(BertForSequenceClassification, config)


@pytest.fixture(scope="module")
def untyped_tokenizer(new_model: NewModel, tiny_tokenizer: BertTokenizer) -> Path:
    """A model with two token types, whose tokenizer gives none."""
    config = BertConfig(vocab_size=len(tiny_tokenizer), max_position_embeddings=48, **ONE_LAYER)
    folder = new_model(BertForSequenceClassification, config)
    BertTokenizer.from_pretrained(folder, model_input_names=["input_ids"]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["one_type", "untyped_tokenizer"])
def test_inputs_are_those_that_the_saved_tokenizer_gives(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model: Path = request.getfixturevalue(name)
    export(str(model), "onnx", str(tmp_path / "out"))
    session = onnxruntime.InferenceSession(tmp_path / "out" / "onnx" / "model.onnx")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    given = dict(tokenizer(*PAIR, return_tensors="np"))
    asked = [entry.name for entry in session.get_inputs()]
    assert asked == list(given) == tokenizer.model_input_names == ["input_ids", "attention_mask"]
    assert list(ExportedFolder.read(tmp_path / "out").inputs) == asked
    source = BertForSequenceClassification.from_pretrained(model).eval()
    expected = source(**{name: torch.from_numpy(values) for name, values in given.items()}).logits
    np.testing.assert_allclose(session.run(None, given)[0], expected.detach().numpy(), atol=1e-4)


def test_a_tokenizer_with_types_keeps_them(classifier: Path, as_onnx: Path) -> None:
    assert Source.open(str(classifier)).inputs == ("input_ids", "attention_mask", "token_type_ids")
    tokenizer = AutoTokenizer.from_pretrained(as_onnx)
    assert set(tokenizer(*PAIR)) == set(Source.open(str(classifier)).inputs)
    assert tokenizer.model_input_names == json.loads((as_onnx / "potstill_export.json").read_text())["inputs"]


@pytest.mark.parametrize("task", ["text-classification", "feature-extraction"])
def test_bench_reads_pairs_with_a_model_of_one_type(one_type: Path, task: str) -> None:
    runner = TorchRunner(Form("a", "eager", "eager", str(one_type), task))
    row = runner.encode(PAIR, None)
    assert list(row) == ["input_ids", "attention_mask"]
    runner.run(runner.prepare([row]))


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Export a model, which must fail; return the one line, having made sure that nothing was written."""

    def run(model: Path) -> str:
        capsys.readouterr()
        words = ["export", "--model", str(model), "--format", "onnx", "--output_dir", str(tmp_path / "out")]
        assert main(words) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.count("\n") == 1, printed.err
        assert not [path for path in tmp_path.iterdir() if "out" in path.name]
        return printed.err

    return run


def changed(model: Path, folder: Path, change: Callable[[Any], object]) -> Path:
    shutil.copytree(model, folder)
    tokenizer = BertTokenizer.from_pretrained(model)
    change(tokenizer)
    tokenizer.save_pretrained(folder)
    return folder


def test_tokens_beyond_the_embeddings(
    refused: Callable[..., str], classifier: Path, as_onnx: Path, tmp_path: Path
) -> None:
    def add(tokenizer: Any) -> None:
        tokenizer.add_tokens([f"zq{number}x" for number in range(50)])

    more = changed(classifier, tmp_path / "more", add)
    message = refused(more)
    assert "knows" in message
    assert "'zq49x'" in message
    for task in ("text-classification", "feature-extraction"):
        with pytest.raises(PotstillError, match="'zq49x'"):
            TorchRunner(Form("a", "eager", "eager", str(more), task))
    exported = changed(as_onnx, tmp_path / "exported", add)
    with pytest.raises(PotstillError, match=r"The export in .* knows .*'zq49x'"):
        ExportedRunner(Form("a", "onnx", "exported", str(exported), "text-classification"), 1)


def test_tokens_that_a_task_needs(refused: Callable[..., str], new_model: NewModel, tmp_path: Path) -> None:
    model = new_model(BertForMaskedLM, BertConfig(vocab_size=200, **SIZES))
    assert "has no pad_token" in refused(changed(model, tmp_path / "a", lambda of: setattr(of, "pad_token", None)))
    assert "has no mask_token" in refused(changed(model, tmp_path / "b", lambda of: setattr(of, "mask_token", None)))


def test_weights_and_logits_that_are_no_numbers(refused: Callable[..., str], classifier: Path, tmp_path: Path) -> None:
    for name, value, told in (
        ("bert.encoder.layer.1.output.dense.weight", float("nan"), "has a weight that is not a finite number"),
        ("bert.embeddings.LayerNorm.weight", 3e38, "logits of the model"),
    ):
        folder = tmp_path / name.split(".")[1]
        shutil.copytree(classifier, folder)
        weights = load_file(folder / "model.safetensors")
        if value == value:
            weights[name].fill_(value)
        else:
            weights[name][0, 0] = value
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        assert told in refused(folder)


def test_whoever_may_read_other_files_may_read_an_export(as_onnx: Path) -> None:
    plain = as_onnx.parent / "plain"
    plain.touch()
    for path in as_onnx.rglob("*"):
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
