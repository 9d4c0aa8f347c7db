"""Computes a task model's predictions for rows."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import torch
from torch import nn

from potstill.finetuning.rows import Array, Rows
from potstill.finetuning.step import run


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


def fingerprint(tables: dict[str, Any]) -> str:
    """Return a SHA-256, in hexadecimal, of the contents of datasets by split."""
    digest = hashlib.sha256()
    for split, dataset in sorted(tables.items()):
        digest.update(json.dumps([split, len(dataset), dataset.column_names]).encode())
        for start in range(0, len(dataset), 10_000):
            digest.update(json.dumps(dataset[start : start + 10_000], ensure_ascii=True).encode())
    return digest.hexdigest()


def scored_fingerprint(dev: dict[str, Any], labels: tuple[str, ...] | None) -> str:
    """Return a SHA-256, in hexadecimal, of the rows to score by split, with their labels by name.

    Two models with equal rows have scores that can be compared, whatever rows they were trained on. The numbers of
    labels are no part of it, because they depend on the labels that the rows to train on have.

    Args:
        dev: split → dataset; labels are in its column `label` or `tags`, if it has one.
        labels: names of the labels by number; None or empty for a task without labels.
    """

    def named(value: Any) -> Any:
        return [named(item) for item in value] if isinstance(value, list) else (labels or ())[value]

    digest = hashlib.sha256()
    for split, dataset in sorted(dev.items()):
        digest.update(json.dumps([split, len(dataset), dataset.column_names]).encode())
        for start in range(0, len(dataset), 10_000):
            rows = dataset[start : start + 10_000]
            for column in ("label", "tags"):
                if labels and column in rows:
                    rows[column] = named(rows[column])
            digest.update(json.dumps(rows, ensure_ascii=True).encode())
    return digest.hexdigest()
