"""A task teacher's logits, computed once for a teacher and rows, and kept for this run and the next ones."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import nn

from potstill.cache import cache_folder, cached, clear_abandoned, one_process
from potstill.errors import PotstillError, first_line
from potstill.finetuning.predict import predict
from potstill.finetuning.rows import Array, Rows
from potstill.live_line import LiveLine, say
from potstill.training.run_record import model_fingerprint

PART = 8192
"""Rows whose logits are saved together. An interruption loses one part at most."""

WHAT = "The teacher's logits"


def soft_targets(
    model: nn.Module,
    source: str | Path,
    rows: Rows,
    batch_size: int,
    dtype: torch.dtype | None = None,
    what: str = "rows",
) -> dict[str, Array]:
    """Return a task teacher's logits for rows, as `predict` does, but compute them only once for a teacher and rows.

    They are cached below `$POTSTILL_CACHE`, or `~/.cache/potstill`, and mapped into memory from there. The folder is
    named after a hash of the teacher's files, of its tokenised rows, and of the precision. After an interruption the
    same call continues with the first part that is missing. Of several processes one computes, and the others wait.

    Args:
        model: the teacher.
        source: folder that it was loaded from.
        rows: the rows, tokenised by the teacher's own tokenizer.
        batch_size: rows at a time.
        dtype: dtype of autocast.
        what: the word for the rows in messages.

    Raises:
        PotstillError: the teacher's logits are not finite, or the cache cannot be written or read.
    """
    key = _key(Path(source), rows, dtype)
    folder = cache_folder() / "soft-targets" / key
    if not folder.is_dir():
        with one_process(folder):  # runs of other seeds often begin at the same time
            if not folder.is_dir():
                parts = folder.with_name(f".parts-{key}")
                _compute_parts(model, source, rows, batch_size, dtype, parts, what)
                clear_abandoned(folder.parent)
                with cached(folder, WHAT) as partial:
                    _join(parts, partial, rows)
                shutil.rmtree(parts, ignore_errors=True)
    try:
        return {file.stem: np.load(file, mmap_mode="r") for file in sorted(folder.glob("*.npy"))}
    except (OSError, EOFError, ValueError) as error:
        raise PotstillError(
            f"The teacher's logits in {folder} cannot be read ({first_line(error)}): remove that folder."
        ) from error


def _compute_parts(
    model: nn.Module,
    source: str | Path,
    rows: Rows,
    batch_size: int,
    dtype: torch.dtype | None,
    parts: Path,
    what: str,
) -> None:
    """Compute the parts that are missing, and print the progress."""
    starts = range(0, len(rows), PART)
    missing = [start for start in starts if not (parts / str(start)).is_dir()]
    whole = sum(min(PART, len(rows) - start) for start in missing)
    before = f" ({len(rows) - whole:,} are there)" if whole < len(rows) else ""
    say(f"computing the teacher's logits of {len(rows):,} {what}{before}")
    done = 0
    with LiveLine() as progress:
        for start in missing:
            stop = min(start + PART, len(rows))
            found = predict(model, rows if len(starts) == 1 else rows.part(start, stop), batch_size, dtype)
            if not all(np.isfinite(array).all() for array in found.values()):
                raise PotstillError(
                    f"The logits of the teacher {source} are not all finite numbers, so its weights are broken: "
                    "give another teacher, or train it again."
                )
            with cached(parts / str(start), WHAT) as partial:
                for name, array in found.items():
                    np.save(partial / f"{name}.npy", array)
            done += stop - start
            progress.update_count(done, whole, what, "teacher's logits: ")


def _join(parts: Path, folder: Path, rows: Rows) -> None:
    """Write the logits of all parts, one after another, to a file for each name."""
    starts = [str(start) for start in range(0, len(rows), PART)]
    for name in sorted(file.name for file in (parts / starts[0]).glob("*.npy")):
        pieces = [np.load(parts / start / name, mmap_mode="r") for start in starts]
        shape = (sum(map(len, pieces)), *pieces[0].shape[1:])
        with open(folder / name, "wb") as file:  # a map would end the process if the disk were full
            header = {"descr": np.lib.format.dtype_to_descr(pieces[0].dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for piece in pieces:
                file.write(np.ascontiguousarray(piece).data)


def _key(source: Path, rows: Rows, dtype: torch.dtype | None) -> str:
    digest = hashlib.sha256(model_fingerprint(source).encode())
    for name, column in sorted(rows.tokens.items()):
        digest.update(json.dumps([name, str(column.dtype), column.shape]).encode())
        digest.update(np.ascontiguousarray(column).data)
    digest.update(np.ascontiguousarray(rows.lengths, np.int64).data)
    digest.update(str(dtype).encode())
    return digest.hexdigest()[:32]
