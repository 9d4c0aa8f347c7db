"""ExecuTorch, a runtime for phones that needs no Python. XNNPACK computes its matrix products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from potstill.errors import PotstillError, first_line
from potstill.export.format import SUMMARY, Format, Target
from potstill.export.onnx import cannot_run
from potstill.export.quiet import quiet
from potstill.versions import version

if TYPE_CHECKING:
    import torch

    from potstill.export.source import Arrays, Source

FILE = "model.pte"  # where optimum-executorch looks


def one_row_program(source: Source) -> torch.export.ExportedProgram:
    """Return the model as a graph for one text of any length.

    Phones read one text at a time. ExecuTorch would reserve memory for a larger batch in advance.
    """
    import torch

    inputs = source.tokenise(["A sentence of some length."])
    length = torch.export.Dim("length", min=2, max=source.max_length)
    return torch.export.export(
        source.module(),
        tuple(torch.from_numpy(inputs[name]) for name in source.inputs),
        dynamic_shapes={"tensors": tuple({1: length} for _ in source.inputs)},
    )


def run_rows(inputs: Arrays, names: tuple[str, ...], run: Callable[[Arrays], list[Any]]) -> list[Any]:
    """Run all rows of a batch on a model that takes one row at a time, and return its outputs, stacked."""
    rows = len(inputs["input_ids"])
    outputs = [run({name: inputs[name][row : row + 1] for name in names}) for row in range(rows)]
    return [np.concatenate(of) for of in zip(*outputs, strict=True)]


def check_names(file: Path, outputs: tuple[str, ...]) -> None:
    """Check that the description of an export names its outputs, for a file format that does not name them.

    Raises:
        PotstillError: the description does not name them.
    """
    if not outputs:
        raise PotstillError(f"The {SUMMARY} of {file} does not name inputs and outputs: export the model again.")


def write_executorch(source: Source, file: Path) -> None:
    """Write a model for ExecuTorch, in float32, for one text of any length.

    Raises:
        PotstillError: the model cannot be lowered, XNNPACK can run no part of it, or the installed executorch is for
            another version of torch.
    """
    import torch

    try:
        with quiet():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower
    except Exception as error:  # its compiled parts work with one version of torch only
        raise PotstillError(
            f"executorch {version('executorch')} cannot be used with torch {torch.__version__} ({first_line(error)}): "
            "install versions that go together, such as executorch 1.5 with torch 2.13."
        ) from error
    try:
        with quiet():
            lowered = to_edge_transform_and_lower(one_row_program(source), partitioner=[XnnpackPartitioner()])
            program = lowered.to_executorch()
    except Exception as error:  # of many types
        raise PotstillError(
            f"The model {source.name!r} cannot be lowered by executorch {version('executorch')} with torch "
            f"{torch.__version__} ({first_line(error)}): use another --format."
        ) from error
    delegated = {delegate.id for plan in program.executorch_program.execution_plan for delegate in plan.delegates}
    if "XnnpackBackend" not in delegated:
        raise PotstillError(f"XNNPACK can run no part of the model {source.name!r}: use another --format.")
    with open(file, "wb") as target:
        program.write_to_file(target)


class ExecutorchModel:
    """A file as ExecuTorch runs it.

    Args:
        file: a `.pte`.
        inputs: names of its inputs, in order.
        outputs: names of its logits, in order.
        threads: of one request; ExecuTorch's choice if None.

    Raises:
        PotstillError: the file is missing, damaged, or not a program that this ExecuTorch can run.
    """

    def __init__(
        self, file: Path, inputs: tuple[str, ...], outputs: tuple[str, ...], threads: int | None = None
    ) -> None:
        try:
            with quiet():
                from executorch.runtime import Runtime

                if threads is not None:
                    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool

                    _unsafe_reset_threadpool(threads)
                # ExecuTorch reads the bytes as long as the program lives.
                self._program = Runtime.get().load_program(file.read_bytes())
                self._method = self._program.load_method("forward")
        except Exception as error:  # of its own types, and RuntimeError
            raise PotstillError(
                f"{file} cannot be run by ExecuTorch ({first_line(error)}): export the model again."
            ) from error
        self._file, self.inputs, self.outputs = file, inputs, outputs

    def run(self, inputs: Arrays) -> Arrays:
        """Return the logits by name of output. The rows of a batch are run one after another.

        Raises:
            PotstillError: the model cannot run the inputs, for example because they are too long.
        """
        try:
            found = run_rows(inputs, self.inputs, self._run_row)
        except Exception as error:  # of its own types, and RuntimeError
            raise cannot_run(self._file, inputs, error) from error
        return dict(zip(self.outputs, found, strict=True))

    def _run_row(self, row: Arrays) -> list[Any]:
        import torch

        outputs = self._method.execute([torch.from_numpy(np.ascontiguousarray(row[name])) for name in self.inputs])
        return [output.numpy().copy() for output in outputs]


def _write(source: Source, file: Path, target: Target, examples: Iterator[Arrays] | None) -> None:
    write_executorch(source, file)


def _open(file: Path, inputs: tuple[str, ...], outputs: tuple[str, ...], threads: int | None) -> ExecutorchModel:
    check_names(file, outputs)
    return ExecutorchModel(file, inputs, outputs, threads)


FORMAT = Format(
    "executorch",
    "ExecuTorch",
    FILE,
    "executorch",
    ("executorch",),
    "executorch.runtime",
    _write,
    _open,
)
