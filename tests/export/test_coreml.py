"""Core ML: what was converted is computed here by NumPy, for Core ML itself is on macOS only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import erf, softmax

from potstill.errors import PotstillError
from potstill.export.coreml import FORMAT, CoremlModel, check_written
from potstill.export.export import export
from potstill.export.source import Source

coremltools = pytest.importorskip("coremltools")


def compute(folder: Path, inputs: dict[str, Any]) -> Any:
    """Compute the program of a package, operation by operation, in float32."""
    from coremltools.converters.mil.frontend.milproto.load import load

    model = coremltools.models.MLModel(str(folder), skip_model_load=True)
    program = load(model.get_spec(), specification_version=model.get_spec().specificationVersion,
                   file_weights_dir=model.weights_dir)  # fmt: skip
    main = program.functions["main"]
    values: dict[str, Any] = dict(inputs)

    def of(variable: Any) -> Any:
        if isinstance(variable, list | tuple):
            return [of(one) for one in variable]
        return variable.val if variable.val is not None else values[variable.name]

    for operation in main.operations:
        if operation.op_type == "const":
            continue
        read = {name: of(variable) for name, variable in operation.inputs.items() if variable is not None}
        values[operation.outputs[0].name] = _apply(operation.op_type, read)
    return values[main.outputs[0].name]


def _apply(kind: str, a: dict[str, Any]) -> Any:
    match kind:
        case "linear":
            return np.float32(a["x"]) @ np.float32(a["weight"]).T + np.float32(a["bias"])
        case "matmul":
            x, y = (np.swapaxes(a[n], -1, -2) if a[f"transpose_{n}"] else a[n] for n in ("x", "y"))
            return np.float32(x) @ np.float32(y)
        case "add" | "sub" | "mul":
            return {"add": np.add, "sub": np.subtract, "mul": np.multiply}[kind](a["x"], a["y"])
        case "layer_norm":
            x = np.float32(a["x"])
            axes = tuple(a["axes"])
            spread = np.sqrt(x.var(axis=axes, keepdims=True) + a["epsilon"])
            return (x - x.mean(axis=axes, keepdims=True)) / spread * a["gamma"] + a["beta"]
        case "gelu":
            return 0.5 * a["x"] * (1 + erf(a["x"] / np.sqrt(2)))
        case "softmax":
            return softmax(a["x"], axis=int(a["axis"]))
        case "tanh":
            return np.tanh(a["x"])
        case "gather":
            return np.take(a["x"], a["indices"], axis=int(a["axis"]))
        case "reshape":
            shape = [a["x"].shape[n] if size == 0 else int(size) for n, size in enumerate(np.atleast_1d(a["shape"]))]
            return np.reshape(a["x"], shape)
        case "transpose":
            return np.transpose(a["x"], a["perm"])
        case "expand_dims":
            return np.expand_dims(a["x"], tuple(int(axis) for axis in a["axes"]))
        case "squeeze":
            return np.squeeze(a["x"], tuple(int(axis) for axis in a["axes"]))
        case "shape":
            return np.array(a["x"].shape)
        case "concat":
            return np.concatenate([np.atleast_1d(value) for value in a["values"]], axis=int(a["axis"]))
        case "cast":
            return np.asarray(a["x"]).astype({"fp16": np.float32, "fp32": np.float32, "int32": np.int32}.get(
                a["dtype"], np.int32))  # fmt: skip
        case "slice_by_index":
            return a["x"][_slices(a)]
    raise NotImplementedError(kind)


def _slices(a: dict[str, Any]) -> tuple[Any, ...]:
    rank = a["x"].ndim
    masks = {name: a.get(f"{name}_mask") for name in ("begin", "end", "squeeze")}
    masks = {name: [False] * rank if mask is None else list(mask) for name, mask in masks.items()}
    strides = [1] * rank if a.get("stride") is None else [int(step) for step in a["stride"]]
    found: list[Any] = []
    for axis in range(rank):
        begin = None if masks["begin"][axis] else int(a["begin"][axis])
        end = None if masks["end"][axis] else int(a["end"][axis])
        found.append(begin if masks["squeeze"][axis] else slice(begin, end, strides[axis]))
    return tuple(found)


@pytest.fixture(scope="module")
def package(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coreml") / "out"
    exported = export(str(classifier), "coreml", str(folder))
    if not FORMAT.runs_here:
        assert exported.agreement is None
        assert "NOT COMPARED" in str(exported)
        assert "NOT COMPARED" in json.loads((folder / "potstill_export.json").read_text())["agreement"]
    return exported.file


def test_the_program_computes_what_the_model_does(classifier: Path, package: Path) -> None:
    source = Source.open(str(classifier))
    for length in (2, 9, 32):
        ids = np.random.default_rng(np.random.randint(2**31)).integers(source.model.config.vocab_size, size=(1, length))
        mask = np.ones_like(ids)
        mask[:, max(1, length - 3) :] = 0
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids % 2}
        expected = source.run(inputs)["logits"]
        np.testing.assert_allclose(compute(package, inputs), expected, atol=0.02 * np.abs(expected).max())


def test_damaged_packages(classifier: Path, package: Path, tmp_path: Path) -> None:
    source = Source.open(str(classifier))
    check_written(source, package)
    weights = next(package.rglob("weight.bin"))
    whole = weights.read_bytes()
    try:
        weights.write_bytes(whole[: len(whole) // 4])
        with pytest.raises(PotstillError, match="bytes of weights"):
            check_written(source, package)
    finally:
        weights.write_bytes(whole)
    with pytest.raises(PotstillError, match="no Core ML package"):
        check_written(source, tmp_path / "none.mlpackage")


@pytest.mark.skipif(FORMAT.runs_here, reason="a Mac")
def test_where_there_is_no_core_ml(classifier: Path, package: Path, tmp_path: Path) -> None:
    with pytest.raises(PotstillError, match="on macOS only"):
        CoremlModel(package, (), ())
    with pytest.raises(PotstillError, match="--check_data needs a Mac"):
        export(str(classifier), "coreml", str(tmp_path / "out"), task="sst2")
