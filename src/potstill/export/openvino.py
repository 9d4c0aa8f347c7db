"""OpenVINO: what Intel's runtime runs, in float32 and in int8."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from potstill.errors import PotstillError, first_line
from potstill.export.source import Arrays

FILE = "openvino_model.xml"  # where optimum-intel looks


def write_openvino(onnx_file: Path, file: Path) -> None:
    """Write an ONNX model in OpenVINO's format, the weights as they are.

    Raises:
        PotstillError: OpenVINO cannot translate it.
    """
    import openvino

    try:
        openvino.save_model(openvino.convert_model(onnx_file), file, compress_to_fp16=False)
    except Exception as error:  # of OpenVINO's own types
        raise PotstillError(f"The model cannot be translated for OpenVINO: {first_line(error)}.") from error


def quantise_openvino(onnx_file: Path, file: Path, examples: Iterable[Arrays]) -> None:
    """Write an ONNX model in OpenVINO's format with int8 weights and activations.

    Args:
        onnx_file: in float32.
        file: to be written.
        examples: what the model reads, by which the ranges of its activations are measured.

    Raises:
        PotstillError: OpenVINO or NNCF cannot translate or quantise it.
    """
    import logging

    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    try:
        model = openvino.convert_model(onnx_file)
        examples = list(examples)
        quantised = nncf.quantize(
            model, nncf.Dataset(examples), subset_size=len(examples), model_type=nncf.ModelType.TRANSFORMER
        )
        openvino.save_model(quantised, file, compress_to_fp16=False)
    except Exception as error:  # of several libraries
        raise PotstillError(f"The model cannot be quantised for OpenVINO: {first_line(error)}.") from error


class OpenvinoModel:
    """A file as OpenVINO runs it on the CPU.

    Args:
        file: the `.xml` of a model, its `.bin` beside it.
        threads: of one request; OpenVINO's choice if None.

    Raises:
        PotstillError: the file is not there, damaged, or no model that OpenVINO can run.
    """

    def __init__(self, file: Path, threads: int | None = None) -> None:
        import openvino

        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        # OpenVINO would compute in bfloat16 where the CPU can, which is not what a float32 model is for.
        options["INFERENCE_PRECISION_HINT"] = "f32"
        try:
            self._model = openvino.compile_model(file, "CPU", options)
        except Exception as error:  # of OpenVINO's own types
            raise PotstillError(f"{file} cannot be run by OpenVINO: {first_line(error)}.") from error
        self.inputs = tuple(port.any_name for port in self._model.inputs)
        self.outputs = tuple(port.any_name for port in self._model.outputs)

    def run(self, inputs: Arrays) -> Arrays:
        """Return the logits, by name of output."""
        found = self._model({name: inputs[name] for name in self.inputs})
        return {name: np.asarray(found[name]) for name in self.outputs}
