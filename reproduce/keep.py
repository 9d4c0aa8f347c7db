"""Take a model to another machine: in half precision, in parts small enough for services that limit file sizes.

    python -m reproduce.keep split reproduce/scratch/teacher parts/ --megabytes 15
    python -m reproduce.keep join parts/ teacher/

The joined folder is an ordinary model folder with weights in float16. Potstill converts them to float32 to compute.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from potstill.errors import PotstillError
from potstill.files import complete_folder
from reproduce.common import run

WEIGHTS = "model.safetensors"
CHECKSUM = "sha256.txt"


def main(argv: list[str]) -> None:
    """Split or join."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("what", choices=("split", "join"))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--megabytes", type=float, default=50.0, help="size of a part")
    options = parser.parse_args(argv)
    if not options.source.is_dir():
        raise PotstillError(f"There is no folder {options.source}.")
    if options.what == "split":
        split(options.source, options.target, round(options.megabytes * 1e6))
    else:
        join(options.source, options.target)


def split(model: Path, parts: Path, size: int) -> None:
    """Write a model's folder with its weights in float16, cut into files of `size` bytes."""
    if not (model / WEIGHTS).is_file():
        raise PotstillError(f"{model} has no {WEIGHTS}.")
    with complete_folder(parts) as partial:
        for file in model.iterdir():
            if file.is_file() and file.name != WEIGHTS:
                shutil.copy2(file, partial / file.name)
        joined = partial / WEIGHTS
        halved = {name: value.to(torch.float16) for name, value in load_file(model / WEIGHTS).items()}
        if not all(torch.isfinite(value).all() for value in halved.values()):
            raise PotstillError(f"{model} has weights that float16 cannot hold.")
        save_file(halved, joined, metadata={"format": "pt"})
        (partial / CHECKSUM).write_text(_checksum(joined) + "\n")
        with joined.open("rb") as weights:
            number = 0
            while part := weights.read(size):
                (partial / f"{WEIGHTS}.{number:03}").write_bytes(part)
                number += 1
        joined.unlink()


def join(parts: Path, model: Path) -> None:
    """Join the parts, and write the folder of the model."""
    pieces = sorted(parts.glob(f"{WEIGHTS}.[0-9]*"))
    with complete_folder(model) as partial:
        for file in parts.iterdir():
            if file.is_file() and file not in pieces and file.name != CHECKSUM:
                shutil.copy2(file, partial / file.name)
        with (partial / WEIGHTS).open("wb") as joined:
            for piece in pieces:
                joined.write(piece.read_bytes())
        wanted = (parts / CHECKSUM).read_text().strip() if (parts / CHECKSUM).is_file() else ""
        if _checksum(partial / WEIGHTS) != wanted:
            raise PotstillError(f"The {len(pieces)} parts in {parts} are incomplete or damaged: copy them again.")


def _checksum(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(run(main))
