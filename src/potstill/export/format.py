"""The declaration of an export format, which the rest of the package uses. This module imports no large library."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from potstill.export.check import Runtime
    from potstill.export.source import Arrays, Source

Quantization = Literal["dynamic", "static"]

SUMMARY = "potstill_export.json"
"""File in an exported folder that describes the export."""


@dataclass(frozen=True)
class Tolerance:
    """How far an export may be from its source.

    Attributes:
        largest: largest difference of a logit, as a share of the range of all logits of the source.
        agreement: least share of answers that are the same.
        score: largest share of the source's score that may be lost.
    """

    largest: float
    agreement: float
    score: float


TOLERANCES = {
    32: Tolerance(0.001, 0.99, 0.001),
    16: Tolerance(0.02, 0.95, 0.005),
    8: Tolerance(0.25, 0.8, 0.01),
    4: Tolerance(0.4, 0.7, 0.02),
}
"""Bits of a weight → tolerance."""

Write = Callable[["Source", Path, "Target", "Iterator[Arrays] | None"], None]
"""Write a model to a file. Takes the source, the file, the target, and inputs on which the ranges of activations are
measured, or None. Raises `PotstillError` if the model cannot be translated."""

Open = Callable[[Path, tuple[str, ...], tuple[str, ...], "int | None"], "Runtime"]
"""Load a file in its runtime. Takes the file, the names of inputs and of outputs, and the threads of one request.
Raises `PotstillError` if the file cannot be run."""


@dataclass(frozen=True)
class Format:
    """The declaration of a format. `export`, `bench inference` and `serve` use no other source about it.

    Attributes:
        name: value of `--format`.
        runtime: name of its runtime, for messages.
        file: path of the model in the folder. Other files may lie beside it.
        extra: the extra of potstill that installs the packages.
        packages: needed to write and to check.
        module: Python module that runs models. Its first part is the package.
        write: see `Write`.
        open: see `Open`.
        bits: of a weight of a matrix on disk, the default first: 32 or 16 in floating point, 8 or 4 of integers.
        activations: bits → how activations may be quantised, the default first; empty in floating point.
        bits_in_memory: bits on disk → bits once the model is loaded, if they differ.
        nearer: name of the cheapest format that stays nearer to the source; None if there is none.
        tolerances: bits → how far an export may be from its source.
        only_on: the only system that runs it, as `platform.system` names it and in words; None if every system does.
        not_compared: message on other systems, in place of a comparison.
        in_browser: whether the page of `serve` can load it.
        encoders: whether sentence encoders can be written in it, which have two outputs of different shapes.
    """

    name: str
    runtime: str
    file: str
    extra: str
    packages: tuple[str, ...]
    module: str
    write: Write
    open: Open
    bits: tuple[int, ...] = (32,)
    activations: Mapping[int, tuple[Quantization, ...]] = field(default_factory=dict)
    bits_in_memory: Mapping[int, int] = field(default_factory=dict)
    nearer: str | None = None
    tolerances: Mapping[int, Tolerance] = field(default_factory=lambda: TOLERANCES)
    only_on: tuple[str, str] | None = None
    not_compared: str = ""
    in_browser: bool = False
    encoders: bool = False

    @property
    def runs_here(self) -> bool:
        """Whether this system can run it."""
        return self.only_on is None or platform.system() == self.only_on[0]

    @property
    def missing(self) -> list[str]:
        """Packages that it needs but that are not installed."""
        return [name for name in self.packages if importlib.util.find_spec(name) is None]

    def precision(self, bits: int) -> str:
        """Return the name of the number type with so many bits."""
        return f"float{bits}" if bits > 8 else f"int{bits}"


@dataclass(frozen=True)
class Target:
    """A format with all its options chosen.

    Attributes:
        format: its declaration.
        quantization: of activations. `dynamic` measures their ranges for each input, `static` measured them before.
            None in floating point.
        weight_bits: bits of a weight, 32 or 16 in floating point.
    """

    format: Format
    quantization: Quantization | None
    weight_bits: int

    @property
    def tolerance(self) -> Tolerance:
        """How far the export may be from its source, if the user gives no limits."""
        return self.format.tolerances[self.weight_bits]

    @property
    def nearer(self) -> str | None:
        """The cheapest options that stay nearer to the source; None if there are none."""
        if self.weight_bits < max(self.format.bits):
            return f"--weight_bits {max(self.format.bits)}"
        if self.quantization == "static" and "dynamic" in self.format.activations[self.weight_bits]:
            return "--quantization dynamic"
        return f"--format {self.format.nearer}" if self.format.nearer else None
