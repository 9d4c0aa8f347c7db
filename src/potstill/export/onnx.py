"""ONNX, the format of onnxruntime, which runs on servers and in the browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from potstill.errors import PotstillError, first_line
from potstill.export.format import Format, Target
from potstill.export.quiet import quiet

if TYPE_CHECKING:
    from potstill.export.source import Arrays, Source

OPSET = 20
"""onnxruntime 1.17, onnxruntime-web of the same age, and all later versions read it."""

FLOAT = "onnx/model.onnx"  # where transformers.js and sentence-transformers look
EXTRA, PACKAGES = "onnx", ("onnx", "onnxscript", "onnxruntime")
RUNTIME, MODULE = "ONNX Runtime", "onnxruntime"


def write_onnx(source: Source, file: Path) -> None:
    """Write a model as ONNX, for batches of any size and length.

    Args:
        source: the model.
        file: to be written. Its folder exists.

    Raises:
        PotstillError: the exporter cannot translate the model.
    """
    import torch

    inputs = source.tokenise(["One sentence.", "Another one, which is somewhat longer than that."])
    batch, length = torch.export.Dim("batch", min=1, max=4096), torch.export.Dim("length", min=2, max=source.max_length)
    try:
        with quiet():
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
        raise PotstillError(
            f"The model {source.name!r} cannot be translated to ONNX ({first_line(error)}): use --format executorch."
        ) from error


@contextmanager
def float_onnx(source: Source, file: Path) -> Iterator[Path]:
    """Write a model as ONNX in float32 for the body, which converts it to another format.

    Args:
        source: the model.
        file: the body writes it. The ONNX model lies in a folder beside it, which is removed after the body.

    Raises:
        PotstillError: the exporter cannot translate the model.
    """
    scratch = file.parent / ".scratch"
    scratch.mkdir()
    try:
        write_onnx(source, scratch / "model.onnx")
        yield scratch / "model.onnx"
    finally:
        shutil.rmtree(scratch)


def _strip(file: Path) -> None:
    """Remove the notes of the exporter: the lines of Python of each node, about half a megabyte in all."""
    import onnx

    model = onnx.load(file)
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.save(model, file)


class OnnxModel:
    """A file as onnxruntime runs it.

    Args:
        file: an ONNX model.
        threads: of one request; onnxruntime's choice if None.

    Raises:
        PotstillError: the file is missing, damaged, or not a model that onnxruntime can run.
    """

    def __init__(self, file: Path, threads: int | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if threads is not None:
            options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        try:
            self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # of onnxruntime's own many types
            raise PotstillError(
                f"{file} cannot be run by onnxruntime ({first_line(error)}): export the model again."
            ) from error
        self._file = file
        self.inputs = tuple(entry.name for entry in self._session.get_inputs())
        self.outputs = tuple(entry.name for entry in self._session.get_outputs())

    def run(self, inputs: Arrays) -> Arrays:
        """Return the logits by name of output.

        Raises:
            PotstillError: the model cannot run the inputs, for example because they are too long.
        """
        try:
            found = self._session.run(None, {name: inputs[name] for name in self.inputs})
        except Exception as error:  # of onnxruntime's own many types
            raise cannot_run(self._file, inputs, error) from error
        return dict(zip(self.outputs, found, strict=True))


def cannot_run(file: Path, inputs: Arrays, error: Exception) -> PotstillError:
    """Return the error for inputs that a runtime refuses."""
    rows, length = inputs["input_ids"].shape
    return PotstillError(
        f"{file.name} cannot run a batch of {rows} with {length} tokens: {first_line(error)}; is it longer than the "
        "model can read?"
    )


def open_onnx(file: Path, inputs: tuple[str, ...], outputs: tuple[str, ...], threads: int | None) -> OnnxModel:
    """Load a file. The names of inputs and outputs are not needed: the file has them."""
    return OnnxModel(file, threads)


def _write(source: Source, file: Path, target: Target, examples: Iterator[Arrays] | None) -> None:
    write_onnx(source, file)


FORMAT = Format("onnx", RUNTIME, FLOAT, EXTRA, PACKAGES, MODULE, _write, open_onnx, in_browser=True, encoders=True)
