"""OpenVINO, the format of Intel's runtime, in float32 and with quantised weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from potstill.errors import PotstillError, first_line
from potstill.export.format import Format, Target
from potstill.export.onnx import cannot_run, float_onnx
from potstill.export.quiet import quiet

if TYPE_CHECKING:
    from potstill.export.source import Arrays, Source

FILE = "openvino_model.xml"  # where optimum-intel looks
PACKAGES = ("onnx", "onnxscript", "openvino", "nncf")


def write_openvino(onnx_file: Path, file: Path) -> None:
    """Write an ONNX model in OpenVINO's format, with unchanged weights.

    Raises:
        PotstillError: OpenVINO cannot translate the model.
    """
    import openvino

    try:
        openvino.save_model(openvino.convert_model(onnx_file), file, compress_to_fp16=False)
    except Exception as error:  # of OpenVINO's own types
        raise PotstillError(
            f"The model cannot be translated for OpenVINO ({first_line(error)}): use --format onnx."
        ) from error


def quantise_openvino(onnx_file: Path, file: Path, weight_bits: int, examples: Iterable[Arrays] | None) -> None:
    """Write an ONNX model in OpenVINO's format with quantised weights.

    Args:
        onnx_file: the model in float32.
        file: to be written.
        weight_bits: 8, or 4 in groups of 32 for all matrices and tables.
        examples: inputs on which the ranges of the activations are measured. The activations are then int8 too. None to
            leave the activations to the runtime.

    Raises:
        PotstillError: OpenVINO or NNCF cannot translate or quantise the model.
    """
    try:
        with quiet():
            import nncf
            import openvino

            model = openvino.convert_model(onnx_file)
            if examples is not None:
                rows = list(examples)
                model = nncf.quantize(
                    model, nncf.Dataset(rows), subset_size=len(rows), model_type=nncf.ModelType.TRANSFORMER
                )
            elif weight_bits == 4:
                mode = nncf.CompressWeightsMode.INT4_ASYM
                model = nncf.compress_weights(model, mode=mode, group_size=32, all_layers=True)
            else:
                model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
            openvino.save_model(model, file, compress_to_fp16=False)
    except Exception as error:  # of several libraries
        raise PotstillError(
            f"The model cannot be quantised for OpenVINO ({first_line(error)}): use --format openvino."
        ) from error


class OpenvinoModel:
    """A file as OpenVINO runs it on the CPU.

    Args:
        file: the `.xml` of a model. Its `.bin` lies beside it.
        threads: of one request; OpenVINO's choice if None.

    Raises:
        PotstillError: the file is missing, damaged, or not a model that OpenVINO can run.
    """

    def __init__(self, file: Path, threads: int | None = None) -> None:
        import openvino

        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        # Without this, OpenVINO would compute a float32 model in bfloat16 on CPUs that can.
        options["INFERENCE_PRECISION_HINT"] = "f32"
        try:
            self._model = openvino.compile_model(file, "CPU", options)
        except Exception as error:  # of OpenVINO's own types
            raise PotstillError(
                f"{file} cannot be run by OpenVINO ({first_line(error)}): export the model again."
            ) from error
        self._file = file
        self.inputs = tuple(port.any_name for port in self._model.inputs)
        self.outputs = tuple(port.any_name for port in self._model.outputs)

    def run(self, inputs: Arrays) -> Arrays:
        """Return the logits by name of output.

        Raises:
            PotstillError: the model cannot run the inputs, for example because they are too long.
        """
        try:
            found = self._model({name: inputs[name] for name in self.inputs})
        except Exception as error:  # of OpenVINO's own types
            raise cannot_run(self._file, inputs, error) from error
        return {name: np.asarray(found[name]) for name in self.outputs}


def _write(source: Source, file: Path, target: Target, examples: Iterator[Arrays] | None) -> None:
    with float_onnx(source, file) as float_file:
        write_openvino(float_file, file)


def _write_int8(source: Source, file: Path, target: Target, examples: Iterator[Arrays] | None) -> None:
    with float_onnx(source, file) as float_file:
        quantise_openvino(float_file, file, target.weight_bits, examples)


def _open(file: Path, inputs: tuple[str, ...], outputs: tuple[str, ...], threads: int | None) -> OpenvinoModel:
    return OpenvinoModel(file, threads)


FORMAT = Format("openvino", "OpenVINO", FILE, "openvino", PACKAGES, "openvino", _write, _open, encoders=True)
INT8 = Format(
    "openvino-int8",
    "OpenVINO",
    FILE,
    "openvino",
    PACKAGES,
    "openvino",
    _write_int8,
    _open,
    bits=(8, 4),
    activations={8: ("static", "dynamic"), 4: ("dynamic",)},
    nearer=FORMAT.name,
    encoders=True,
)
