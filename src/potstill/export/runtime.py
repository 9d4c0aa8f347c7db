"""An exported folder as others use it: what it says of itself, and how its model is run."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from potstill.errors import PotstillError, first_line
from potstill.export.check import Runtime
from potstill.export.export import SUMMARY, open_exported
from potstill.json_files import read_object
from potstill.versions import versions

RUNTIMES = {
    "onnx": ("ONNX Runtime", "onnxruntime", "onnxruntime"),
    "openvino": ("OpenVINO", "openvino", "openvino"),
    "executorch": ("ExecuTorch", "executorch", "executorch.runtime"),
    "coreml": ("Core ML", "coremltools", "coremltools"),
}
"""First word of a format → what its runtime is called, the package that it is in, and the module that runs models."""

BITS = {"coreml": 16, "onnx-int8": 8, "openvino-int8": 8}
"""Bits of a weight by format, where an export does not say; in others 32."""

NO_WEIGHTS = (".json", ".jinja", ".md", ".model", ".txt")
"""Endings of what lies beside a model: its config, its tokenizer, notes."""


@dataclass(frozen=True)
class ExportedFolder:
    """A folder that `export` wrote.

    Attributes:
        folder: where it is.
        format: as `--format` names it.
        task: as `pipeline` calls it.
        weight_bits: of a weight of a matrix on disk: 32 or 16 in floating point, 8 or 4 of integers.
        static: whether activations are quantised by ranges that were measured before, rather than as they come.
        inputs: names of what the model reads, in order, each (B, L) int64.
        max_length: longest input, in tokens.
    """

    folder: Path
    format: str
    task: str
    weight_bits: int
    static: bool
    inputs: tuple[str, ...]
    max_length: int

    @classmethod
    def is_one(cls, folder: Path) -> bool:
        """Return whether `export` wrote a folder."""
        return (folder / SUMMARY).is_file()

    @classmethod
    def read(cls, folder: Path) -> ExportedFolder:
        """Read what a folder says of itself; the model is not loaded.

        Raises:
            PotstillError: it cannot be read, or its model or config is missing.
        """
        path = folder / SUMMARY
        summary = read_object(path, "The description of the export", "export the model again")
        try:
            found = cls(
                folder,
                str(summary["format"]),
                str(summary["task"]),
                int(summary.get("weight_bits") or BITS.get(summary["format"], 32)),
                summary.get("quantization") == "static",
                tuple(map(str, summary["inputs"])),
                int(summary["max_length"]),
            )
            file = folder / summary["file"]
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise PotstillError(f"{path} is damaged ({first_line(error)}): export the model again.") from error
        for needed in (file, folder / "config.json"):
            if not needed.exists():
                raise PotstillError(f"The export in {folder} lacks its {needed.name}: export the model again.")
        return found

    @property
    def kind(self) -> str:
        """First word of the format."""
        return self.format.partition("-")[0]

    @property
    def title(self) -> str:
        """Runtime and precision in words."""
        name = RUNTIMES.get(self.kind, (self.kind,))[0]
        precision = {32: "", 16: "float16"}.get(self.weight_bits, f"int{self.weight_bits}")
        return " ".join(word for word in (name, precision, "static" * self.static) if word)

    @property
    def bits_in_memory(self) -> int:
        """Of a weight of a matrix once it is loaded: onnxruntime makes int8 of 4 bits."""
        return max(self.weight_bits, 8) if self.kind == "onnx" else self.weight_bits

    @property
    def bytes(self) -> int:
        """Of the model's files on disk, without config and tokenizer."""
        files = (path for path in self.folder.rglob("*") if path.is_file() and path.suffix not in NO_WEIGHTS)
        return sum(path.stat().st_size for path in files)

    @property
    def package(self) -> str:
        """What its runtime is imported from.

        Raises:
            PotstillError: it is not installed.
        """
        name = RUNTIMES.get(self.kind, ("", self.kind))[1]
        if importlib.util.find_spec(name) is None:
            raise PotstillError(
                f"{self.folder} is for {self.title}, which needs {name}: pip install 'potstill[{self.kind}]'."
            )
        return name

    @property
    def versions(self) -> dict[str, str]:
        """Version of the runtime, by its package."""
        return versions(self.package)

    def config(self) -> PreTrainedConfig:
        """Return the config of the model that it was made from.

        Raises:
            PotstillError: it cannot be read.
        """
        read_object(self.folder / "config.json", "The config of the export", "export the model again", finite=False)
        try:
            return AutoConfig.from_pretrained(self.folder, trust_remote_code=False, local_files_only=True)
        except Exception as error:  # of several libraries
            raise PotstillError(
                f"The config.json in {self.folder} cannot be used ({first_line(error)}): export the model again."
            ) from error

    def import_runtime(self) -> None:
        """Import what runs the model.

        Raises:
            PotstillError: it is not installed, or cannot be imported.
        """
        package = self.package
        try:
            importlib.import_module(RUNTIMES.get(self.kind, ("", "", package))[2])
        except Exception as error:  # of many types: compiled parts are bound to versions of other packages
            raise PotstillError(f"{package}, which runs {self.folder}, cannot be used: {first_line(error)}.") from error

    def open(self, threads: int | None = None) -> Runtime:
        """Load the model in its own runtime.

        Args:
            threads: of one request; the runtime's choice if None.

        Raises:
            PotstillError: the runtime cannot be used, or the model is damaged.
        """
        self.import_runtime()
        return open_exported(self.folder, threads)
