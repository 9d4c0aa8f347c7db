"""Is an ONNX file whole? Told from its outermost fields, without onnx, onnxruntime or reading the weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

GRAPH, OPSETS = 7, 8  # fields of ModelProto in onnx.proto that every model has


def is_whole(file: Path) -> bool:
    """Say whether a file is a protobuf message that ends where the file does and has what every ONNX model has."""
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
    except (EOFError, KeyError, OverflowError, OSError):  # no such kind of field, or a length that no file has
        return False
    return {GRAPH, OPSETS} <= fields


def _number(stream: BinaryIO) -> int:
    """Read a varint: seven bits a byte, lowest first, the eighth says whether more follow."""
    value = 0
    for shift in range(0, 70, 7):
        byte = stream.read(1)
        if not byte:
            raise EOFError
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise OverflowError
