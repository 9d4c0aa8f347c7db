"""Checks whether an ONNX file is complete. It reads the outermost fields only, without onnx or onnxruntime."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

GRAPH, OPSETS = 7, 8  # fields of ModelProto in onnx.proto that every model has


def is_complete(file: Path) -> bool:
    """Return whether a file is one protobuf message, up to its end, with the fields that every ONNX model has."""
    size = file.stat().st_size
    fields = set()
    try:
        with file.open("rb") as stream:
            while stream.tell() < size:
                field, kind = divmod(_number(stream), 8)
                fields.add(field)
                if kind == 0:
                    _number(stream)
                else:
                    length = {1: 8, 5: 4}[kind] if kind != 2 else _number(stream)
                    if stream.seek(length, os.SEEK_CUR) > size:
                        return False
    except (EOFError, KeyError, OverflowError, OSError):  # an unknown kind of field, or an impossible length
        return False
    return {GRAPH, OPSETS} <= fields


def _number(stream: BinaryIO) -> int:
    """Read a varint: seven bits in each byte, lowest first. The eighth bit is set if another byte follows."""
    value = 0
    for shift in range(0, 70, 7):
        byte = stream.read(1)
        if not byte:
            raise EOFError
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise OverflowError
