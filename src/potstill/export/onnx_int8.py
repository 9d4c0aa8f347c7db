"""ONNX in int8. onnxruntime's quantiser does the matrices; this module adds the tables of the embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from potstill.errors import PotstillError, first_line
from potstill.export import onnx as in_float
from potstill.export.format import Format, Target
from potstill.export.quiet import quiet
from potstill.precision.four_bits import in_blocks
from potstill.precision.integers import EIGHT_BITS, LARGE, NEVER_FAR_BELOW_ZERO, SMALLEST, is_feed_forward

if TYPE_CHECKING:
    from potstill.export.source import Arrays, Source

INT8 = "onnx/model_quantized.onnx"  # where transformers.js looks

POSITIVE = ("Gelu", "Relu")
"""Nodes whose output is never far below zero: see `NEVER_FAR_BELOW_ZERO`."""


def quantise_onnx(
    float_file: Path, file: Path, weight_bits: int, examples: Iterable[Arrays] | None, every_token: bool = False
) -> None:
    """Write an ONNX model with int8 weights, a scale for each output of a matrix and for each row of a table.

    Weights use seven of the eight bits. With eight bits, x86 CPUs without VNNI overflow when they add two products,
    and would compute other logits than other CPUs. The input of the second matrix of a feed-forward layer is first
    divided by the largest number of each token. Otherwise one token with large numbers would leave the other tokens
    few of the 256 steps. A table that is also the head's matrix, as in fill-mask, is written once.

    Args:
        float_file: the model in float32.
        file: to be written.
        weight_bits: 8, or 4. With 4, the weights of the embeddings and of the feed-forward layers are written in blocks
            of 4 bits. They become int8 when the model is loaded, so they are as fast.
        examples: inputs on which the ranges of the activations are measured once; None to measure them for each input.
        every_token: whether every token has its own answer. If so, the input of the first feed-forward matrix is
            divided too. That costs a twentieth of the time and reduces the error of such answers by a third.

    Raises:
        PotstillError: onnxruntime cannot quantise it.
    """
    import onnx

    scratch = float_file.with_name("prepared.onnx")
    try:
        model = onnx.load(float_file)
        weights = {weight.name: weight for weight in model.graph.initializer}
        tied = _untie(model, weights)
        if examples is None:
            _scale_tokens(model, weights, every_token)
        del model.graph.value_info[:]  # older quantisers transpose a Gemm's matrix, but keep its old shape here
        onnx.save(model, scratch)
        with quiet():
            _quantise(scratch, file, examples)
        quantised = onnx.load(file)
        editor = _Editor(quantised, {name: onnx.numpy_helper.to_array(of) for name, of in weights.items()})
        editor.shrink(tied, weight_bits == 4)
        onnx.save(quantised, file)
    except Exception as error:  # of many types
        raise PotstillError(
            f"The model cannot be quantised by onnxruntime ({first_line(error)}): use --format onnx."
        ) from error
    finally:
        scratch.unlink(missing_ok=True)


def _untie(model: Any, weights: dict[str, Any]) -> dict[str, str]:
    """Give each matrix that is a transposed table its own copy, and return name of table → name of copy."""
    import onnx

    tied = {}
    for node in list(model.graph.node):
        if node.op_type == "Transpose" and node.input[0] in weights:
            copy = np.ascontiguousarray(onnx.numpy_helper.to_array(weights[node.input[0]]).T)
            model.graph.initializer.append(onnx.numpy_helper.from_array(copy, node.output[0]))
            model.graph.node.remove(node)
            tied[node.input[0]] = node.output[0]
    return tied


def _scale_tokens(model: Any, weights: dict[str, Any], both: bool) -> None:
    """Divide each token of a feed-forward matrix's input by its largest number, and multiply the output by it.

    Args:
        model: an ONNX model; changed.
        weights: its weights by name.
        both: whether to do so for both matrices of a layer, or only for the second. The input of the first matrix comes
            from a LayerNorm, so its tokens differ far less.
    """
    import onnx

    constants = {"last_axis": np.array([-1], np.int64)}
    constants |= {
        name: np.array(of, np.float32) for name, of in (("smallest", SMALLEST), ("lowest", NEVER_FAR_BELOW_ZERO))
    }
    model.graph.initializer.extend(onnx.numpy_helper.from_array(of, name) for name, of in constants.items())
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    nodes = []
    for node in model.graph.node:
        matrix = weights.get(node.input[1]) if node.op_type == "MatMul" else None
        if matrix is None or not is_feed_forward(matrix.dims) or (matrix.dims[0] < matrix.dims[1] and not both):
            nodes.append(node)
            continue
        source, target = node.input[0], node.output[0]
        node.input[0], node.output[0] = f"{target}_levelled_in", f"{target}_levelled"
        positive = makers.get(source) in POSITIVE
        magnitudes = source if positive else f"{target}_absolute"
        steps = [] if positive else [("Abs", [source], magnitudes)]
        steps += [
            ("ReduceMax", [magnitudes, "last_axis"], f"{target}_maximum"),
            ("Max", [f"{target}_maximum", "lowest" if positive else "smallest"], f"{target}_largest"),
            ("Div", [source, f"{target}_largest"], f"{target}_levelled_in"),
        ]
        nodes += [onnx.helper.make_node(kind, inputs, [output]) for kind, inputs, output in steps]
        nodes += [node, onnx.helper.make_node("Mul", [f"{target}_levelled", f"{target}_largest"], [target])]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _quantise(float_file: Path, file: Path, examples: Iterable[Arrays] | None) -> None:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )

    common: dict[str, Any] = {"per_channel": True, "reduce_range": True, "weight_type": QuantType.QInt8}
    if examples is None:
        quantize_dynamic(float_file, file, op_types_to_quantize=["MatMul"], **common)
        return

    class Reader(CalibrationDataReader):
        def __init__(self, batches: Iterator[Arrays]) -> None:
            self.batches = batches

        def get_next(self) -> Arrays | None:
            return next(self.batches, None)

    quantize_static(
        float_file,
        file,
        Reader(iter(examples)),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        op_types_to_quantize=["MatMul"],
        extra_options={"MatMulConstBOnly": True},  # products of two activations are small, and int8 harms them most
        **common,
    )


class _Editor:
    """Changes a quantised model in place.

    Args:
        model: as onnxruntime's quantiser wrote it.
        weights: the float32 weights, by their names before quantisation.
    """

    def __init__(self, model: Any, weights: dict[str, Any]) -> None:
        self.model, self.weights = model, weights
        self.constants = {weight.name: weight for weight in model.graph.initializer}
        self.new: list[Any] = []  # nodes that read only constants; they have to come first

    def shrink(self, tied: dict[str, str], four_bits: bool) -> None:
        """Quantise the tables of embeddings, and with four bits also the matrices of the feed-forward layers."""
        for node in list(self.model.graph.node):
            table = node.input[0] if node.op_type == "Gather" else ""
            values = self.weights.get(table)
            if values is None or values.ndim != 2 or values.size < LARGE:
                continue
            if table in tied and f"{tied[table]}_quantized" in self.constants:
                self._embed_tied(node, tied[table], values, four_bits)
            else:
                self._embed(node, table, values, four_bits)
        if four_bits:
            for name, matrix in self.weights.items():
                quantised = self.constants.get(f"{name}_quantized")
                if is_feed_forward(matrix.shape) and quantised is not None:
                    transposed = tuple(quantised.dims) != matrix.shape  # older quantisers transpose a Gemm's matrix
                    self._in_four_bits(f"{name}_quantized", matrix.T if transposed else matrix, f"{name}_scale")
            opset = next(entry for entry in self.model.opset_import if entry.domain in ("", "ai.onnx"))
            opset.version = max(opset.version, 21)  # the first version that has 4-bit numbers
        used = {name for node in (*self.model.graph.node, *self.new) for name in node.input}
        kept = [weight for weight in self.constants.values() if weight.name in used]
        nodes = [*self.new, *self.model.graph.node]
        del self.model.graph.initializer[:], self.model.graph.node[:]
        self.model.graph.initializer.extend(kept)
        self.model.graph.node.extend(nodes)

    def _embed(self, node: Any, name: str, table: Any, four_bits: bool) -> None:
        """Look up rows of an int8 table. Each row has its own scale."""
        rows = f"{name}_quantized"
        if four_bits:
            self._in_four_bits(f"{rows}_columns", table.T, f"{name}_scale")
            self._node("Transpose", [f"{rows}_columns"], rows, perm=[1, 0])
        elif rows not in self.constants:
            scale = np.abs(table).max(axis=1) / EIGHT_BITS
            scale[scale == 0] = 1
            self._constant(rows, np.round(table / scale[:, None]).astype(np.int8))
            self._constant(f"{name}_scale", scale.astype(np.float32))
        self._look_up(node, rows, f"{name}_scale")

    def _embed_tied(self, node: Any, name: str, table: Any, four_bits: bool) -> None:
        """Look up rows in the head's matrix, whose columns they are."""
        if four_bits:
            self._in_four_bits(f"{name}_quantized", table.T, f"{name}_scale")
        self._node("Transpose", [f"{name}_quantized"], f"{name}_rows", perm=[1, 0])
        self._look_up(node, f"{name}_rows", f"{name}_scale")

    def _look_up(self, node: Any, rows: str, scale: str) -> None:
        import onnx

        ids, output = node.input[1], node.output[0]
        self._constant("last_axis", np.array([-1], np.int64))
        made = [
            onnx.helper.make_node("Gather", [rows, ids], [f"{output}_int8"]),
            onnx.helper.make_node("Cast", [f"{output}_int8"], [f"{output}_float"], to=onnx.TensorProto.FLOAT),
            onnx.helper.make_node("Gather", [scale, ids], [f"{output}_scales"]),
            onnx.helper.make_node("Unsqueeze", [f"{output}_scales", "last_axis"], [f"{output}_scale"]),
            onnx.helper.make_node("Mul", [f"{output}_float", f"{output}_scale"], [output]),
        ]
        place = list(self.model.graph.node).index(node)
        self.model.graph.node.remove(node)
        for offset, new in enumerate(made):
            self.model.graph.node.insert(place + offset, new)

    def _in_four_bits(self, name: str, matrix: Any, scale: str) -> None:
        """Write a matrix, (inputs, outputs), as the product of 4-bit numbers and a factor for each block of them.

        The nodes read only constants, so onnxruntime computes the int8 matrix once, when it loads the model.
        """
        import ml_dtypes
        import onnx
        import torch

        found = in_blocks(torch.from_numpy(matrix.T.copy()))
        numbers, factors = (of.permute(1, 2, 0).numpy() for of in (found.numbers, found.factors))
        self._constant(f"{name}_4", numbers.astype(ml_dtypes.int4))
        self._constant(f"{name}_factors", factors.astype(ml_dtypes.uint4))
        self._constant(f"{name}_shape", np.array([-1, matrix.shape[1]], np.int64))
        self._constant(scale, found.scale.numpy())
        for part in ("4", "factors"):
            self._node("Cast", [f"{name}_{part}"], f"{name}_{part}_wide", to=onnx.TensorProto.INT32)
        self._node("Mul", [f"{name}_4_wide", f"{name}_factors_wide"], f"{name}_product")
        self._node("Reshape", [f"{name}_product", f"{name}_shape"], f"{name}_padded")
        self._constant(f"{name}_first", np.array([0], np.int64))
        self._constant(f"{name}_inputs", np.array([found.inputs], np.int64))
        self._node("Slice", [f"{name}_padded", f"{name}_first", f"{name}_inputs"], f"{name}_matrix")
        self._node("Cast", [f"{name}_matrix"], name, to=onnx.TensorProto.INT8)
        self.constants.pop(name, None)

    def _constant(self, name: str, values: Any) -> None:
        import onnx

        self.constants[name] = onnx.numpy_helper.from_array(np.ascontiguousarray(values), name)

    def _node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> None:
        import onnx

        self.new.append(onnx.helper.make_node(kind, inputs, [output], **attributes))


def _write(source: Source, file: Path, target: Target, examples: Iterator[Arrays] | None) -> None:
    every_token = source.head.task != "text-classification"
    with in_float.float_onnx(source, file) as float_file:
        quantise_onnx(float_file, file, target.weight_bits, examples, every_token)


FORMAT = Format(
    "onnx-int8",
    in_float.RUNTIME,
    INT8,
    in_float.EXTRA,
    in_float.PACKAGES,
    in_float.MODULE,
    _write,
    in_float.open_onnx,
    bits=(8, 4),
    activations={8: ("dynamic", "static"), 4: ("dynamic",)},
    bits_in_memory={4: 8},
    nearer=in_float.FORMAT.name,
    in_browser=True,
    encoders=True,
)
