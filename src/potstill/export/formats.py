"""All export formats. A new format is a file in this folder that declares it, and one line here."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Literal

from potstill.errors import PotstillError
from potstill.export import coreml, executorch, onnx, onnx_int8, openvino
from potstill.export.format import Format, Quantization, Target

FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        onnx.FORMAT,
        onnx_int8.FORMAT,
        openvino.FORMAT,
        openvino.INT8,
        executorch.FORMAT,
        coreml.FORMAT,
    )
}
"""Name → declaration, in the order of help and messages."""

if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal[tuple(FORMATS)]
    """The choices of `--format`."""


def find_format(name: str) -> Format:
    """Return the declaration of a format.

    Raises:
        PotstillError: there is no such format. The message names the nearest one.
    """
    if name not in FORMATS:
        near = difflib.get_close_matches(name, FORMATS, 1)
        hint = f"; the nearest is {near[0]}" if near else ""
        raise PotstillError(f"There is no format {name!r}; the formats are {', '.join(FORMATS)}{hint}.")
    return FORMATS[name]


def choose_target(name: str, quantization: Quantization | None, weight_bits: int | None) -> Target:
    """Return a format with defaults for the options that were not given.

    Args:
        name: of the format.
        quantization: of activations; None if not given.
        weight_bits: bits of a weight; None if not given.

    Raises:
        PotstillError: there is no such format, it does not have this quantisation, or a package is missing.
    """
    format = find_format(name)
    if not format.activations:
        for option, value in (("quantization", quantization), ("weight_bits", weight_bits)):
            if value is not None:
                quantised = " and ".join(other.name for other in FORMATS.values() if other.activations)
                raise PotstillError(f"--{option} is for {quantised}, not for {name}.")
    bits = format.bits[0] if weight_bits is None else weight_bits
    if bits not in format.bits:
        choices = " or ".join(map(str, sorted(format.bits)))
        raise PotstillError(f"--weight_bits is {bits}: it can be {choices}.")
    activations = format.activations.get(bits, ())
    if quantization is not None and quantization not in activations:
        raise PotstillError(
            f"--weight_bits {bits} goes with --quantization {' or '.join(activations)}, not with {quantization}: "
            "change one of them."
        )
    if format.missing:
        raise PotstillError(
            f"--format {name} needs {', '.join(format.missing)}: pip install 'potstill[{format.extra}]'."
        )
    return Target(format, quantization or next(iter(activations), None), bits)
