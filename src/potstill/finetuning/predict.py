"""Computes a task model's predictions for rows, and a task teacher's, which are cached for the next run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from potstill.cache import cache_folder
from potstill.errors import PotstillError, first_line
from potstill.finetuning.rows import Array, Rows
from potstill.finetuning.step import run
from potstill.training.run_record import model_fingerprint


@torch.inference_mode()
def predict(model: nn.Module, rows: Rows, batch_size: int, dtype: torch.dtype | None = None) -> dict[str, Array]:
    """Run a model on all rows in evaluation mode, and set it back to its previous mode.

    Args:
        model: the model, on the device where it is to run.
        rows: the rows to read.
        batch_size: rows at a time.
        dtype: dtype of autocast; None for no autocast.

    Returns:
        For sentences `logits`, (rows, C). For tags `logits`, (tokens of all rows, C). For spans `start_logits` and
        `end_logits`, (tokens of all rows,) each. Tokens are in the order of the rows. All are float32.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    found: dict[str, Array] = {}
    starts = np.concatenate([[0], np.cumsum(rows.lengths)])
    try:
        for places, batch in rows.batches(batch_size):
            batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                outputs = run(model, batch)
            lengths = rows.lengths[places]
            inside = np.arange(batch["input_ids"].shape[1]) < lengths[:, None]
            where = (starts[places][:, None] + np.arange(inside.shape[1]))[inside]
            if "logits" in outputs:
                logits = outputs.logits.float().cpu().numpy()
                by_token = logits.ndim == 3
                count = starts[-1] if by_token else len(rows)
                every = found.setdefault("logits", np.empty((count, logits.shape[-1]), np.float32))
                every[where if by_token else places] = logits[inside] if by_token else logits
                continue
            for name in ("start_logits", "end_logits"):
                flat = found.setdefault(name, np.empty(starts[-1], np.float32))
                flat[where] = outputs[name].float().cpu().numpy()[inside]
    finally:
        model.train(training)
    return found


def soft_targets(
    model: nn.Module, source: str | Path, rows: Rows, batch_size: int, dtype: torch.dtype | None = None
) -> dict[str, Array]:
    """Return a task teacher's logits for rows, as `predict` does, but compute them only once for a teacher and rows.

    They are cached below `$POTSTILL_CACHE`, or `~/.cache/potstill`, and mapped into memory from there. The folder is
    named after a hash of the teacher's files, of its tokenised rows, and of the precision.

    Args:
        model: the teacher.
        source: folder that it was loaded from.
        rows: the rows, tokenised by the teacher's own tokenizer.
        batch_size: rows at a time.
        dtype: dtype of autocast.

    Raises:
        PotstillError: the teacher's logits are not finite, or the cache cannot be written or read.
    """
    folder = cache_folder() / "soft-targets" / _key(Path(source), rows, dtype)
    if not folder.is_dir():
        print(f"computing the teacher's logits of {len(rows):,} rows", file=sys.stderr, flush=True)
        found = predict(model, rows, batch_size, dtype)
        if not all(np.isfinite(array).all() for array in found.values()):
            raise PotstillError(
                f"The logits of the teacher {source} are not all finite numbers: its weights are broken."
            )
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            _clear_abandoned(folder.parent)
            partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
            try:
                for name, array in found.items():
                    np.save(partial / f"{name}.npy", array)
                os.replace(partial, folder)
            except OSError:
                if not folder.is_dir():  # otherwise another run wrote the same folder meanwhile
                    raise
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        except OSError as error:
            raise PotstillError(
                f"The teacher's logits cannot be saved in {folder.parent} ({first_line(error)}): free some space, or "
                "name another folder in POTSTILL_CACHE."
            ) from error
    try:
        return {file.stem: np.load(file, mmap_mode="r") for file in sorted(folder.glob("*.npy"))}
    except (OSError, EOFError, ValueError) as error:
        raise PotstillError(
            f"The teacher's logits in {folder} cannot be read ({first_line(error)}): remove that folder."
        ) from error


def _clear_abandoned(folder: Path) -> None:
    """Remove partial folders of processes that were killed a day or longer ago."""
    for partial in folder.glob(".partial-*"):
        with suppress(OSError):  # another process may be doing the same
            if time.time() - partial.stat().st_mtime > 86_400:
                shutil.rmtree(partial, ignore_errors=True)


def _key(source: Path, rows: Rows, dtype: torch.dtype | None) -> str:
    digest = hashlib.sha256(model_fingerprint(source).encode())
    for name, column in sorted(rows.tokens.items()):
        digest.update(json.dumps([name, str(column.dtype), column.shape]).encode())
        digest.update(np.ascontiguousarray(column).data)
    digest.update(np.ascontiguousarray(rows.lengths, np.int64).data)
    digest.update(str(dtype).encode())
    return digest.hexdigest()[:32]


def fingerprint(tables: dict[str, Any]) -> str:
    """Return a SHA-256, in hexadecimal, of the contents of datasets by split."""
    digest = hashlib.sha256()
    for split, dataset in sorted(tables.items()):
        digest.update(json.dumps([split, len(dataset), dataset.column_names]).encode())
        for start in range(0, len(dataset), 10_000):
            digest.update(json.dumps(dataset[start : start + 10_000], ensure_ascii=True).encode())
    return digest.hexdigest()
