"""What can be exported to: what each format needs, and how near to its source it must be."""

from __future__ import annotations

import importlib.util
import platform
from dataclasses import dataclass
from typing import Literal, get_args

from potstill.errors import PotstillError

Format = Literal["onnx", "onnx-int8", "openvino", "openvino-int8", "executorch", "coreml"]
Quantization = Literal["dynamic", "static"]

NEEDS = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino", "nncf"),
    "executorch": ("executorch",),
    "coreml": ("coremltools",),
}
"""Extra → packages that it brings."""

HAS_CORE_ML = platform.system() == "Darwin"
"""Where Core ML runs. Elsewhere coremltools converts, but cannot run what it wrote."""


@dataclass(frozen=True)
class Tolerance:
    """How far an export may be from its source.

    Attributes:
        largest: largest difference of a logit, as a share of the range of all logits.
        agreement: least share of answers that are the same.
        score: largest share of the source's score that may be lost.
    """

    largest: float
    agreement: float
    score: float


TOLERANCES = {
    "float32": Tolerance(0.001, 0.99, 0.001),
    "float16": Tolerance(0.02, 0.95, 0.005),
    "int8": Tolerance(0.25, 0.8, 0.01),
    "4-bit": Tolerance(0.4, 0.7, 0.02),
}


@dataclass(frozen=True)
class Target:
    """A format with all that is left to choose.

    Attributes:
        format: as given.
        quantization: of activations: `dynamic` as they come, `static` by ranges that were measured before; None in
            floating point.
        weight_bits: of weights, 32 or 16 in floating point.
    """

    format: Format
    quantization: Quantization | None
    weight_bits: int

    @classmethod
    def of(cls, format: Format, quantization: Quantization | None, weight_bits: int | None) -> Target:
        """Fill in what was not given.

        Raises:
            PotstillError: there is no such format, it cannot be so quantised, or a package is missing.
        """
        if format not in get_args(Format):
            raise PotstillError(f"There is no format {format!r}; the formats are {', '.join(get_args(Format))}.")
        kind, _, precision = format.partition("-")
        if not precision:
            for name, value in (("quantization", quantization), ("weight_bits", weight_bits)):
                if value is not None:
                    raise PotstillError(f"--{name} is for onnx-int8 and openvino-int8, not for {format}.")
        if weight_bits not in (None, 4, 8):
            raise PotstillError(f"--weight_bits is {weight_bits}: it can be 4 or 8.")
        if weight_bits == 4 and quantization == "static":
            raise PotstillError("--weight_bits 4 goes with --quantization dynamic.")
        missing = [name for name in NEEDS[kind] if importlib.util.find_spec(name) is None]
        if missing:
            raise PotstillError(f"--format {format} needs {', '.join(missing)}: pip install 'potstill[{kind}]'.")
        if not precision:
            return cls(format, None, 16 if kind == "coreml" else 32)
        default: Quantization = "static" if kind == "openvino" and weight_bits != 4 else "dynamic"
        return cls(format, quantization or default, weight_bits or 8)

    @property
    def kind(self) -> str:
        """The runtime: first word of the format, and name of the extra."""
        return self.format.partition("-")[0]

    @property
    def tolerance(self) -> Tolerance:
        """How near the export must be, where the user does not say."""
        return TOLERANCES[{32: "float32", 16: "float16", 8: "int8", 4: "4-bit"}[self.weight_bits]]

    @property
    def nearer(self) -> str | None:
        """The options that stay nearer to the source at the least cost; None where there are none."""
        if self.weight_bits == 4:
            return "--weight_bits 8"
        if self.quantization == "static":
            return "--quantization dynamic"
        return f"--format {self.kind}" if self.weight_bits == 8 else None
