"""Exports with quantised weights: what is in the files, and that they say about the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_samples import DISTIL, SIZES
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForMaskedLM,
)

from potstill.export import onnx_int8
from potstill.export.check import real_batches
from potstill.export.export import export
from potstill.export.onnx import OnnxModel
from potstill.export.onnx_int8 import quantise_onnx
from potstill.export.openvino import OpenvinoModel, quantise_openvino
from potstill.export.runtime import ExportedFolder
from potstill.export.source import Source
from potstill.precision.simulated import as_exported, simulate
from potstill.student import family_of

onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
for package in ("onnxscript", "openvino", "nncf"):
    pytest.importorskip(package)

INT8, UINT4, INT4 = 3, 21, 22


@pytest.fixture(scope="module")
def large_table(new_model: Any, tiny_tokenizer: Any) -> Path:
    """A DistilBERT for fill-mask whose table is large enough to be worth quantising."""
    config = DistilBertConfig(vocab_size=4000, max_position_embeddings=40, **(DISTIL | {"hidden_dim": 128}))
    folder: Path = new_model(DistilBertForMaskedLM, config)
    return folder


def initializers(file: Path) -> dict[str, Any]:
    return {weight.name: weight for weight in onnx.load(file).graph.initializer}


def bytes_by_type(file: Path) -> dict[int, int]:
    found: dict[int, int] = {}
    for weight in initializers(file).values():
        found[weight.data_type] = found.get(weight.data_type, 0) + len(weight.raw_data)
    return found


@pytest.fixture(scope="module")
def in_float(large_table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("float")
    export(str(large_table), "onnx", str(folder / "out"))
    return folder / "out" / "onnx" / "model.onnx"


@pytest.mark.parametrize("bits", [8, 4])
def test_dynamic(large_table: Path, in_float: Path, tmp_path: Path, bits: int) -> None:
    file = tmp_path / "model.onnx"
    copy = tmp_path / "float.onnx"
    copy.write_bytes(in_float.read_bytes())
    quantise_onnx(copy, file, bits, None)
    assert sorted(tmp_path.iterdir()) == [copy, file]
    bytes_, table, square, wide = bytes_by_type(file), 4000 * 32, 2 * 4 * 32 * 32, 2 * 2 * 32 * 128
    head = 32 * 32
    if bits == 8:
        assert bytes_[INT8] - table - square - wide - head == pytest.approx(0, abs=3_000)  # zero points
        assert INT4 not in bytes_
    else:
        assert bytes_[INT4] == (table + wide) / 2  # the table once, though it is the head's matrix too
        assert bytes_[UINT4] == (table + wide) / 32 / 2
        assert bytes_[INT8] - square - head == pytest.approx(0, abs=6_000)
    for weight in initializers(file).values():
        if weight.data_type == INT8 and weight.name.endswith("_quantized"):
            assert np.abs(onnx.numpy_helper.to_array(weight)).max() <= 64, weight.name  # seven bits
    source, exported = Source.open(str(large_table)), OnnxModel(file, threads=1)
    inputs = source.tokenise(["bol bom bon", "bol"])
    expected, found = source.run(inputs)["logits"], exported.run(inputs)["logits"]
    error = float(np.sqrt(((found - expected) ** 2).mean()) / expected.std())
    assert 0 < error < (0.05 if bits == 8 else 0.15)


@pytest.mark.parametrize(("bits", "integers"), [(8, "int8"), (4, "int4")])
def test_a_masked_lm_can_be_simulated(
    large_table: Path, in_float: Path, tmp_path: Path, bits: int, integers: str
) -> None:
    """What `distill --quantization` trains says what the file says, whose table is the head's matrix too."""
    copy = tmp_path / "float.onnx"
    copy.write_bytes(in_float.read_bytes())
    quantise_onnx(copy, tmp_path / "model.onnx", bits, None, every_token=True)
    source = Source.open(str(large_table))
    inputs = source.tokenise(["bol bom bon", "bol"])
    expected, found = source.run(inputs)["logits"], OnnxModel(tmp_path / "model.onnx", threads=1).run(inputs)["logits"]
    model = source.model
    simulate(model, integers, every_token=True)
    tensors = {name: torch.from_numpy(inputs[name]) for name in source.inputs}
    with torch.inference_mode():
        simulated = model(**tensors).logits
        hidden = model.distilbert(**tensors).last_hidden_state
        head = as_exported(model, family_of(model).head(model))
        by_parts = torch.nn.functional.linear(head.transform(hidden), head.weight, head.bias)
    moved = np.sqrt(((found - expected) ** 2).mean())
    assert np.sqrt(((simulated.numpy() - found) ** 2).mean()) < 0.15 * moved
    torch.testing.assert_close(by_parts, simulated)
    assert model.vocab_projector.weight is model.distilbert.embeddings.word_embeddings.weight


@pytest.mark.parametrize("every_token", [False, True])
def test_tokens_are_levelled_before_feed_forward_matrices(every_token: bool, in_float: Path, tmp_path: Path) -> None:
    """Each token has a range of its own where it enters the second matrix of a feed-forward layer, or both."""
    file = tmp_path / "model.onnx"
    copy = tmp_path / "float.onnx"
    copy.write_bytes(in_float.read_bytes())
    quantise_onnx(copy, file, 8, None, every_token)
    nodes = onnx.load(file).graph.node
    count = 4 if every_token else 2
    assert sum(node.op_type == "Div" for node in nodes) == count
    by_name = {name: node for node in nodes for name in node.output}
    quantised = [by_name[node.input[0]] for node in nodes if node.op_type == "DynamicQuantizeLinear"]
    assert sum(node.op_type == "Div" for node in quantised) == count


@pytest.mark.parametrize(("kind", "count"), [(BertForSequenceClassification, 2), (BertForQuestionAnswering, 4)])
def test_heads_that_answer_for_every_token_are_levelled_twice(
    kind: type, count: int, new_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    model = new_model(kind, BertConfig(vocab_size=len(tiny_tokenizer), max_position_embeddings=64, **SIZES))
    written = export(str(model), "onnx-int8", str(tmp_path / "out"), tolerance=10, min_agreement=0)
    assert sum(node.op_type == "Div" for node in onnx.load(written.file).graph.node) == count


@pytest.mark.parametrize("activation", ["Gelu", "Relu", "Tanh", "Neg"])
def test_levelled_tokens_keep_their_steps(activation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever comes before the matrix: activations that never are far below zero are levelled by a shorter way."""
    generator = np.random.default_rng(np.random.randint(2**31))
    matrix = generator.normal(size=(128, 32)).astype(np.float32)
    x = generator.normal(size=(1, 5, 128)).astype(np.float32)
    x[0, -1] *= 1000
    x[0, 1] = -abs(x[0, 1]) / 100  # of the first two there is nothing left that is above zero
    helper, single, file = onnx.helper, tmp_path / "single.onnx", tmp_path / "model.onnx"
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, None, size])
        for name, size in (("x", 128), ("h", 128), ("y", 32))
    ]
    nodes = [helper.make_node(activation, ["x"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    graph = helper.make_graph(nodes, "one", ends[:1], ends[1:], [onnx.numpy_helper.from_array(matrix, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), single)

    def errors() -> np.ndarray:
        """Of each token, by rms, as a share of the spread of what comes out."""
        quantise_onnx(single, file, 8, None)
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        hidden, made = session.run(None, {"x": x})
        expected = hidden @ matrix
        return np.sqrt(((made - expected)[0] ** 2).mean(axis=-1)) / np.maximum(expected[0].std(axis=-1), 1e-3)

    assert errors()[[0, 2, 3]].max() < 0.03
    assert errors()[1] < (0.2 if activation in ("Gelu", "Relu") else 0.03)
    if activation == "Tanh":
        return  # which leaves no token above the others
    monkeypatch.setattr("potstill.export.onnx_int8._scale_tokens", lambda *_: None)
    assert errors()[0] > 0.3


def test_static(large_table: Path, in_float: Path, tmp_path: Path) -> None:
    copy, file = tmp_path / "float.onnx", tmp_path / "model.onnx"
    copy.write_bytes(in_float.read_bytes())
    source = Source.open(str(large_table))
    quantise_onnx(copy, file, 8, real_batches(source, ["bol bom bon", "bos bot"]))
    kinds = [node.op_type for node in onnx.load(file).graph.node]
    assert "QuantizeLinear" in kinds
    assert "DynamicQuantizeLinear" not in kinds
    table = 4000 * 32
    assert table < bytes_by_type(file)[INT8] < 1.5 * table
    inputs = source.tokenise(["bol bom bon", "bol"])
    expected, found = source.run(inputs)["logits"], OnnxModel(file, threads=1).run(inputs)["logits"]
    assert 0 < float(np.sqrt(((found - expected) ** 2).mean()) / expected.std()) < 0.2


def test_openvino(new_model: Any, tiny_tokenizer: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = BertConfig(
        vocab_size=len(tiny_tokenizer), max_position_embeddings=64, **(SIZES | {"num_hidden_layers": 1})
    )
    model = str(new_model(BertForQuestionAnswering, config))
    text = tmp_path / "text.txt"
    text.write_text("bol bom bon bos bot bola bole\nbos bot\n")
    capfd.readouterr()
    exported = export(
        model, "openvino-int8", str(tmp_path / "out"), calibration_data=str(text), tolerance=1.0, min_agreement=0.5
    )
    out, err = capfd.readouterr()
    assert out + err == ""  # the bars of its libraries are not ours
    assert exported.task == "question-answering"
    assert {path.name for path in exported.folder.glob("openvino*")} == {"openvino_model.xml", "openvino_model.bin"}
    assert "FakeQuantize" in exported.file.read_text()
    summary = json.loads((exported.folder / "potstill_export.json").read_text())
    assert (summary["quantization"], summary["weight_bits"]) == ("static", 8)
    source = Source.open(model)
    inputs = source.tokenise(["bol bom bon", "bol"])
    expected, found = source.run(inputs), ExportedFolder.read(exported.folder).open(threads=1).run(inputs)
    for name, logits in expected.items():
        assert 0 < float(np.sqrt(((found[name] - logits) ** 2).mean()) / logits.std()) < 0.2


@pytest.mark.parametrize(("bits", "kind"), [(8, "u8"), (4, "u4")])
def test_openvino_leaves_activations_to_the_runtime(
    large_table: Path, in_float: Path, tmp_path: Path, bits: int, kind: str
) -> None:
    quantise_openvino(in_float, tmp_path / "openvino_model.xml", bits, None)
    written = (tmp_path / "openvino_model.xml").read_text()
    assert f'element_type="{kind}"' in written
    assert "FakeQuantize" not in written
    source = Source.open(str(large_table))
    inputs = source.tokenise(["bol bom bon", "bol"])
    expected, found = (
        source.run(inputs)["logits"],
        OpenvinoModel(tmp_path / "openvino_model.xml", threads=1).run(inputs)["logits"],
    )
    assert 0 < float(np.sqrt(((found - expected) ** 2).mean()) / expected.std()) < (0.05 if bits == 8 else 0.2)


def test_a_matrix_that_the_quantiser_transposed_is_written_as_it_is_read(tmp_path: Path) -> None:
    """onnxruntime before 1.32 makes a Gemm a MatMul, and transposes its matrix."""
    random = np.random.default_rng(0)
    matrix = random.normal(size=(32, 80)).astype(np.float32)
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    product = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", kind, ["rows", 32])],
        [helper.make_tensor_value_info("y", kind, ["rows", 80])],
        [onnx.numpy_helper.from_array(matrix, "w")],
    )
    onnx.save(helper.make_model(product, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "float")
    onnx_int8._quantise(tmp_path / "float", tmp_path / "int8", None)
    model = onnx.load(tmp_path / "int8")
    onnx_int8._Editor(model, {"w": matrix.T}).shrink({}, four_bits=True)  # as a Gemm had it
    x = random.normal(size=(7, 32)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (found,) = session.run(None, {"x": x})
    assert np.sqrt(((found - x @ matrix) ** 2).mean()) < 0.15 * (x @ matrix).std()
