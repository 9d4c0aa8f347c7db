"""Check that the files of a corpus are as `prepare` wrote them. Without it, training would not notice a changed bit."""

import hashlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.errors import PotstillError, advice, first_line
from potstill.live_line import LiveLine
from potstill.small_files import check_regular

FILES = ("train.arrow", "validation.arrow", "token_counts.npy")
"""The files that training reads."""

PROGRESS_BYTES = 2 * 10**9
"""The check of a corpus of this size or more shows its progress, because it takes seconds."""
CUT_FILES = (*FILES, "kept_tokens.npy")
"""The files that training reads if the vocabulary is cut. The last one says how the teacher is cut."""

_PIECE = 2**22


def checksums(folder: Path, names: Iterable[str] = FILES) -> dict[str, str]:
    """Return the SHA-256 of each file that is trained on, in hexadecimal, as `sha256sum` prints it.

    Raises:
        PotstillError: a file is missing or cannot be read.
    """
    paths = [folder / name for name in names if name in CUT_FILES]  # a manifest could name any file of the machine
    try:
        for path in paths:
            check_regular(path)
        size = sum(path.stat().st_size for path in paths)
    except OSError as error:
        raise unusable(Path(error.filename), error) from error
    what = f"checking {size / 1e9:.1f} GB of the corpus {folder}"
    found, done = {}, 0
    with LiveLine() as progress:
        if size >= PROGRESS_BYTES and not progress.live:
            print(what, file=sys.stderr, flush=True)
        for path in paths:
            digest = hashlib.sha256()
            try:
                with path.open("rb", buffering=0) as file:
                    while piece := file.read(_PIECE):
                        digest.update(piece)
                        done += len(piece)
                        if size >= PROGRESS_BYTES and progress.due:
                            progress.update(done / size, [what, progress.left(done / size)], line="")
            except OSError as error:
                raise unusable(path, error) from error
            found[path.name] = digest.hexdigest()
    return found


def fingerprint_of(checksums: dict[str, str]) -> str:
    """Return one SHA-256, in hexadecimal, for the checksums of all files."""
    return hashlib.sha256(
        "".join(f"{checksums[name]}  {name}\n" for name in CUT_FILES if name in checksums).encode()
    ).hexdigest()


def check_files(folder: Path, recorded: dict[str, str]) -> None:
    """Compare the files with the checksums that were recorded when the corpus was prepared.

    Raises:
        PotstillError: a file is missing, cannot be read, or has changed.
    """
    for name, checksum in checksums(folder, recorded).items():
        if checksum != recorded[name]:
            raise PotstillError(
                f"{folder / name} is damaged (its SHA-256 is no longer the one in the manifest): prepare the corpus "
                "again, or copy it again from an undamaged copy."
            )


def check_ids(path: Path, pieces: Iterable[NDArray[Any]], blocks: int, vocab_size: int, counts: Any = None) -> None:
    """Check the ids of a corpus without checksums against the vocabulary and the token counts.

    Args:
        path: path of the split.
        pieces: all ids of its blocks, in 1-D arrays.
        blocks: number of blocks.
        vocab_size: size of the tokenizer's vocabulary; every id is below it.
        counts: (vocab_size,) int64, the occurrences of each id without those that frame each block; None if not known.

    Raises:
        PotstillError: an id is not in the vocabulary, or the ids do not match the counts.
    """
    found = np.zeros(vocab_size, dtype=np.int64)
    for ids in pieces:
        occurrences = np.bincount(ids, minlength=vocab_size)
        if len(occurrences) > vocab_size:
            raise unusable(path, ValueError(f"it holds the id {len(occurrences) - 1} of a vocabulary of {vocab_size}"))
        found += occurrences
    if counts is not None:
        frame = found - counts
        if (frame < 0).any() or (frame % max(blocks, 1) > 0).any() or np.count_nonzero(frame) > 2:
            raise unusable(path, ValueError("its tokens do not match those of token_counts.npy"))


def unusable(path: Path, error: BaseException) -> PotstillError:
    """Return the error to raise for a file of a corpus, made from the error that reading it raised."""
    if isinstance(error, FileNotFoundError):
        return PotstillError(f"{path} is missing: prepare the corpus again.")
    if isinstance(error, OSError) and error.errno is not None:
        return PotstillError(f"{path} cannot be read ({os.strerror(error.errno)}): {advice(error)}.")
    return PotstillError(f"{path} is damaged ({first_line(error)}): prepare the corpus again.")
