"""Core ML, the runtime of Apple's devices. Linux can convert models; only macOS can run and compare them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from potstill.errors import PotstillError, first_line
from potstill.export.executorch import check_names, one_row_program, run_rows
from potstill.export.format import Format, Target
from potstill.export.onnx import cannot_run
from potstill.export.quiet import quiet
from potstill.versions import version

if TYPE_CHECKING:
    from potstill.export.source import Arrays, Source

FILE = "model.mlpackage"

NOT_COMPARED = (
    "NOT COMPARED with its source, because Core ML runs on macOS only. The file was read again: its inputs, outputs "
    "and number of weights are those of the model. Export it on a Mac to have it compared."
)


def write_coreml(source: Source, folder: Path) -> None:
    """Write a model for Core ML (iOS 16, macOS 13 and later), in float16, for one text of any length.

    Raises:
        PotstillError: the model cannot be converted, or the written package is incomplete.
    """
    with quiet():
        import coremltools
    try:
        with quiet():
            program = one_row_program(source).run_decompositions({})
            length = coremltools.RangeDim(2, source.max_length, default=16)
            converted = coremltools.convert(
                program,
                inputs=[coremltools.TensorType(name=name, shape=(1, length), dtype=np.int32) for name in source.inputs],
                outputs=[coremltools.TensorType(name=name) for name in source.head.outputs],
                minimum_deployment_target=coremltools.target.iOS16,
                convert_to="mlprogram",
            )
            converted.save(str(folder))
    except Exception as error:  # of many types
        raise PotstillError(
            f"The model {source.name!r} cannot be converted by coremltools {coremltools.__version__} with torch "
            f"{version('torch')} ({first_line(error)}): use another --format."
        ) from error
    for leftover in folder.glob("executorch_debug_handle_mapping.json"):  # only ExecuTorch's debugger reads it
        leftover.unlink()
    check_written(source, folder)


def check_written(source: Source, folder: Path) -> None:
    """Read a package again and check that it has the model's inputs, its outputs and enough bytes for its weights.

    Raises:
        PotstillError: the package cannot be read, or something is missing.
    """
    read = _open(folder, skip_model_load=True)
    description = read.get_spec().description
    names = tuple(entry.name for entry in description.input), tuple(entry.name for entry in description.output)
    if names != (source.inputs, source.head.outputs):
        raise PotstillError(
            f"{folder.name} reads {names[0]} and returns {names[1]}, but the model reads {source.inputs} and returns "
            f"{source.head.outputs}."
        )
    written = sum(path.stat().st_size for path in folder.rglob("weight.bin"))
    large = sum(of.numel() for of in source.module().parameters() if of.dim() > 1)
    if written < 2 * large:
        raise PotstillError(f"{folder.name} has {written:,} bytes of weights; at least {2 * large:,} were expected.")


class CoremlModel:
    """A package as Core ML runs it, on macOS.

    Args:
        folder: a `.mlpackage`.
        inputs: names of its inputs.
        outputs: names of its logits.

    Raises:
        PotstillError: this is no Mac, or the package is not there or damaged.
    """

    def __init__(self, folder: Path, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        if not FORMAT.runs_here:
            raise PotstillError(
                f"{folder} can be run on macOS only, because Core ML is a part of macOS: do this on a Mac."
            )
        self._folder, self.inputs, self.outputs = folder, inputs, outputs
        self._model = _open(folder)

    def run(self, inputs: Arrays) -> Arrays:
        """Return the logits by name of output. The rows of a batch are run one after another.

        Raises:
            PotstillError: the model cannot run the inputs.
        """
        try:
            found = run_rows(inputs, self.inputs, self._run_row)
        except Exception as error:  # of Core ML's own types
            raise cannot_run(self._folder, inputs, error) from error
        return dict(zip(self.outputs, found, strict=True))

    def _run_row(self, row: Arrays) -> list[Any]:
        found = self._model.predict({name: row[name].astype(np.int32) for name in self.inputs})
        return [np.asarray(found[name], np.float32) for name in self.outputs]


def _open(folder: Path, **options: Any) -> Any:
    try:
        with quiet():
            import coremltools

            return coremltools.models.MLModel(str(folder), **options)
    except Exception as error:  # of many types
        raise PotstillError(
            f"{folder} is no Core ML package that can be read ({first_line(error)}): export the model again."
        ) from error


def _write(source: Source, file: Path, target: Target, examples: Iterator[Arrays] | None) -> None:
    write_coreml(source, file)


def _load(file: Path, inputs: tuple[str, ...], outputs: tuple[str, ...], threads: int | None) -> CoremlModel:
    check_names(file, outputs)
    return CoremlModel(file, inputs, outputs)


FORMAT = Format(
    "coreml",
    "Core ML",
    FILE,
    "coreml",
    ("coremltools",),
    "coremltools",
    _write,
    _load,
    bits=(16,),
    only_on=("Darwin", "a Mac"),  # elsewhere coremltools converts, but cannot run what it wrote
    not_compared=NOT_COMPARED,
)
