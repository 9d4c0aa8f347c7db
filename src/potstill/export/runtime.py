"""An exported folder: reads its description and runs its model."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from potstill.errors import PotstillError, first_line
from potstill.export.check import Runtime
from potstill.export.format import SUMMARY, Format
from potstill.export.formats import FORMATS
from potstill.json_files import read_object
from potstill.student.pruned import as_pruned
from potstill.versions import versions

NO_WEIGHTS = (".json", ".jinja", ".md", ".model", ".txt", ".safetensors")
"""Endings of files beside a model that hold no weights: config, tokenizer, notes. The Dense modules of a sentence
encoder are in the model; their safetensors are for sentence-transformers."""


@dataclass(frozen=True)
class ExportedFolder:
    """A folder that `export` wrote.

    Attributes:
        folder: its path.
        format: declaration of its format.
        file: the model in the folder.
        task: the name that `pipeline` has for it.
        weight_bits: bits of a weight of a matrix on disk: 32 or 16 in floating point, 8 or 4 of integers.
        static: whether activations are quantised by ranges that were measured before, not for each input.
        inputs: names of the model's inputs, in order, each (B, L) int64.
        outputs: names of its logits, in order; empty if the description does not name them.
        max_length: longest input, in tokens.
    """

    folder: Path
    format: Format
    file: Path
    task: str
    weight_bits: int
    static: bool
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    max_length: int

    @classmethod
    def is_one(cls, folder: Path) -> bool:
        """Return whether `export` wrote a folder."""
        return (folder / SUMMARY).is_file()

    @classmethod
    def read(cls, folder: Path) -> ExportedFolder:
        """Read the description of a folder. The model is not loaded.

        Raises:
            PotstillError: the description cannot be read, or the model or its config is missing.
        """
        path = folder / SUMMARY
        summary = read_object(path, "The description of the export", "export the model again")
        try:
            name = str(summary["format"])
            if name not in FORMATS:
                raise PotstillError(
                    f"{folder} was exported as {name!r}, and this version of potstill knows {', '.join(FORMATS)}: "
                    "upgrade potstill."
                )
            file = folder / summary["file"]
            found = cls(
                folder,
                FORMATS[name],
                file,
                str(summary["task"]),
                int(summary.get("weight_bits") or FORMATS[name].bits[0]),
                summary.get("quantization") == "static",
                _names(summary["inputs"]),
                _names(summary["outputs"]) if "outputs" in summary else (),
                int(summary["max_length"]),
            )
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise PotstillError(f"{path} is damaged ({first_line(error)}): export the model again.") from error
        for needed in (file, folder / "config.json"):
            if not needed.exists():
                raise PotstillError(f"The export in {folder} lacks its {needed.name}: export the model again.")
        return found

    @property
    def title(self) -> str:
        """Runtime and precision in words."""
        precision = "" if self.weight_bits == 32 else self.format.precision(self.weight_bits)
        return " ".join(word for word in (self.format.runtime, precision, "static" * self.static) if word)

    @property
    def bits_in_memory(self) -> int:
        """Bits of a weight of a matrix once it is loaded. onnxruntime turns 4 bits into int8."""
        return self.format.bits_in_memory.get(self.weight_bits, self.weight_bits)

    @property
    def bytes(self) -> int:
        """Size of the model's files on disk, without config and tokenizer."""
        files = (path for path in self.folder.rglob("*") if path.is_file() and path.suffix not in NO_WEIGHTS)
        return sum(path.stat().st_size for path in files)

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of its config and its model."""
        digest = hashlib.sha256()
        files = [path for path in self.folder.rglob("*") if path.is_file() and path.suffix not in NO_WEIGHTS]
        for file in sorted([self.folder / "config.json", *files]):
            digest.update(file.relative_to(self.folder).as_posix().encode())
            with open(file, "rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
        return digest.hexdigest()

    @property
    def package(self) -> str:
        """Name of the package of its runtime.

        Raises:
            PotstillError: the package is not installed.
        """
        name = self.format.module.partition(".")[0]
        if importlib.util.find_spec(name) is None:
            raise PotstillError(
                f"{self.folder} is for {self.title}, which needs {name}: pip install 'potstill[{self.format.extra}]'."
            )
        return name

    @property
    def versions(self) -> dict[str, str]:
        """Version of the runtime, by its package."""
        return versions(self.package)

    def config(self) -> PreTrainedConfig:
        """Return the config of the exported model.

        Raises:
            PotstillError: the config cannot be read.
        """
        read_object(self.folder / "config.json", "The config of the export", "export the model again", finite=False)
        try:
            return as_pruned(AutoConfig.from_pretrained(self.folder, trust_remote_code=False, local_files_only=True))
        except Exception as error:  # of several libraries
            raise PotstillError(
                f"The config.json in {self.folder} cannot be used ({first_line(error)}): export the model again."
            ) from error

    def import_runtime(self) -> None:
        """Import the runtime.

        Raises:
            PotstillError: the runtime is not installed, or cannot be imported.
        """
        package = self.package
        try:
            importlib.import_module(self.format.module)
        except Exception as error:  # of many types: its compiled parts may need other versions of other packages
            raise PotstillError(f"{package}, which runs {self.folder}, cannot be used: {first_line(error)}.") from error

    def open(self, threads: int | None = None) -> Runtime:
        """Load the model in its own runtime.

        Args:
            threads: of one request; the runtime's choice if None.

        Raises:
            PotstillError: the runtime cannot be used, or the model is damaged.
        """
        self.import_runtime()
        return self.format.open(self.file, self.inputs, self.outputs, threads)


def _names(names: object) -> tuple[str, ...]:
    """Return names as a tuple.

    Raises:
        TypeError: they are not a list of names.
    """
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise TypeError("it does not name inputs and outputs")
    return tuple(names)
