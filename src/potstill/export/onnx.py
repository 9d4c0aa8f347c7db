"""ONNX: what onnxruntime runs, on servers and in the browser, in float32 and in int8."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from potstill.errors import PotstillError, first_line
from potstill.export.source import Arrays, Source

OPSET = 20
"""What onnxruntime 1.17 and onnxruntime-web of the same age read already."""

FLOAT, INT8 = "onnx/model.onnx", "onnx/model_quantized.onnx"  # where transformers.js and sentence-transformers look


def write_onnx(source: Source, file: Path) -> None:
    """Write a model as ONNX, for batches of any size and length.

    Args:
        source: the model.
        file: to be written; its folder is there.

    Raises:
        PotstillError: the exporter cannot translate the model.
    """
    texts = ["One sentence.", "Another one, which is somewhat longer than that."]
    inputs = source.tokenise(texts)
    batch, length = torch.export.Dim("batch", min=1, max=4096), torch.export.Dim("length", min=2, max=source.max_length)
    try:
        with _quiet():
            torch.onnx.export(
                source.module(),
                tuple(torch.from_numpy(inputs[name]) for name in source.inputs),
                str(file),
                input_names=list(source.inputs),
                output_names=list(source.head.outputs),
                dynamic_shapes={"tensors": tuple({0: batch, 1: length} for _ in source.inputs)},
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        _strip(file)
    except Exception as error:  # of many types, from dynamo, the exporter and onnx
        raise PotstillError(f"The model {source.name!r} cannot be translated to ONNX: {first_line(error)}.") from error


def _strip(file: Path) -> None:
    """Remove what the exporter notes of each node: the lines of Python it came from, some half a megabyte in all."""
    import onnx

    model = onnx.load(file)
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.save(model, file)


def quantise_onnx(float_file: Path, file: Path) -> None:
    """Write an ONNX model with int8 weights, a scale for each channel; activations are quantised as they come.

    Raises:
        PotstillError: onnxruntime cannot quantise it.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    try:
        with _quiet():
            quantize_dynamic(float_file, file, per_channel=True, weight_type=QuantType.QInt8)
    except Exception as error:  # of many types
        raise PotstillError(f"{float_file} cannot be quantised: {first_line(error)}.") from error


class OnnxModel:
    """A file as onnxruntime runs it.

    Args:
        file: an ONNX model.
        threads: of one request; onnxruntime's choice if None.

    Raises:
        PotstillError: the file is not there, damaged, or no model that onnxruntime can run.
    """

    def __init__(self, file: Path, threads: int | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        try:
            self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # of onnxruntime's own many types
            raise PotstillError(f"{file} cannot be run by onnxruntime: {first_line(error)}.") from error
        self.inputs = tuple(entry.name for entry in self._session.get_inputs())
        self.outputs = tuple(entry.name for entry in self._session.get_outputs())

    def run(self, inputs: Arrays) -> Arrays:
        """Return the logits, by name of output."""
        found = self._session.run(None, {name: inputs[name] for name in self.inputs})
        return dict(zip(self.outputs, found, strict=True))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's report of its own progress off the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "root", "")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
