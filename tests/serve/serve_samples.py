"""Folders that look like exports, without the half minute that an export takes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

# The shortest file with all that every ONNX model has: its version, a graph, a set of operators.
SMALLEST_ONNX = bytes([8, 10, 58, 5]) + b"\x12\x03abc" + bytes([66, 2, 16, 20])


def write_export(folder: Path, file: str = "onnx/model.onnx", **config: Any) -> Path:
    """Write a folder such as `export` does, with a config of these values."""
    values = {"model_type": "bert", "architectures": ["BertForMaskedLM"], "num_hidden_layers": 3}
    (folder / "onnx").mkdir(parents=True)
    (folder / file).write_bytes(SMALLEST_ONNX)
    (folder / "config.json").write_text(json.dumps(values | config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 128}')
    (folder / "private.txt").write_text("not to be served")
    return folder


def cached(folder: Path, repository: Path) -> Path:
    """Copy the files of a model as the hub's cache keeps them, and return the folder of links."""
    snapshot = repository / "snapshots" / "8b3fe0a1c2d4"
    (repository / "blobs").mkdir(parents=True)
    for number, file in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        blob, link = repository / "blobs" / f"b{number}", snapshot / file.relative_to(folder)
        blob.write_bytes(file.read_bytes())
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot
