"""A BiLSTM in the other verbs: exported, measured, served; and refused where layers of a transformer are needed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from potstill.bench.inference.bench import _counted
from potstill.bench.inference.models import read_models
from potstill.bilstm.config import BiLSTMConfig
from potstill.bilstm.model import BiLSTMForSequenceClassification
from potstill.cli import main
from potstill.errors import PotstillError
from potstill.export.runtime import ExportedFolder
from potstill.export.source import Source
from potstill.serve.models import ServedModel
from potstill.student.family import family_of_type
from potstill.student.loading import load_headless, load_masked_lm

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)


@pytest.fixture(scope="module", params=[False, True], ids=["texts", "pairs"])
def bilstm(
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    folder = tmp_path_factory.mktemp("bilstm")
    sizes = {"vocab_size": len(tiny_tokenizer), "embedding_size": 24, "hidden_size": 10, "intermediate_size": 8}
    sizes["sep_token_id"] = tiny_tokenizer.sep_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        types = 2 if request.param else 1
        model = BiLSTMForSequenceClassification(BiLSTMConfig(pairs=request.param, type_vocab_size=types, **sizes))
        for parameter in model.parameters():
            parameter.data.mul_(3)
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def test_export(bilstm: Path, tmp_path: Path) -> None:
    source = Source.open(str(bilstm))
    assert ("token_type_ids" in source.inputs) == source.model.config.pairs
    assert main(["export", "--model", str(bilstm), "--format=onnx", f"--output_dir={tmp_path / 'onnx'}"]) == 0
    exported = ExportedFolder.read(tmp_path / "onnx").open(threads=1)
    generator = np.random.default_rng(np.random.randint(2**31))
    for rows, length in ((1, 2), (1, 40), (6, 9)):
        ids = generator.integers(source.model.config.vocab_size, size=(rows, length))
        lengths = generator.integers(1, length + 1, size=(rows, 1))
        mask = (np.arange(length) < lengths).astype(np.int64)
        types = (np.arange(length) >= generator.integers(1, length + 1, size=(rows, 1))).astype(np.int64)
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        np.testing.assert_allclose(exported.run(inputs)["logits"], source.run(inputs)["logits"], atol=1e-5)
    served = ServedModel.open(str(tmp_path / "onnx"), "--model")
    assert (served.task, served.layers) == ("text-classification", None)


def test_bench_inference_counts_it(bilstm: Path) -> None:
    (model,) = read_models([("lstm", str(bilstm))], None)
    found = _counted(model, [7])
    source = Source.open(str(bilstm)).model
    assert found.parameters == sum(parameter.numel() for parameter in source.parameters())
    tables = 2 * source.encoder.static.weight.numel()
    assert found.matrix_weights + found.vector_weights == found.parameters - tables
    texts = 2 if source.config.pairs else 1
    token = 2 * 2 * 4 * 10 * (2 * 24 + 10)  # two directions of four gates, each a product with the input and the state
    head = 2 * sum(layer.weight.numel() for layer in (source.dense, source.classifier))
    assert found.flops == {7: texts * 7 * token + head}


def test_where_layers_are_needed_it_is_refused(bilstm: Path) -> None:
    ways = (
        lambda: load_masked_lm(str(bilstm)),
        lambda: load_headless(bilstm, "the teacher 'a'"),
        lambda: family_of_type(BiLSTMConfig.model_type),
    )
    for load in ways:
        with pytest.raises(PotstillError, match="is a BiLSTM, which has no layers of a transformer; it can be the"):
            load()


def test_its_config_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import potstill.bilstm.config"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
