"""What the user named → the files, `datasets` folders and hub datasets to read, in a fixed order."""

import glob
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from potstill.errors import PotstillError

FORMATS: dict[str, Literal["text", "json", "parquet"]] = {
    ".txt": "text",
    ".jsonl": "json",
    ".json": "json",
    ".parquet": "parquet",
}
COMPRESSIONS = (".gz", ".xz", ".zst")


@dataclass(frozen=True)
class Source:
    """One input: a file, a folder that `datasets` saved, or a dataset on the hub (`name` is then its id)."""

    name: str
    kind: Literal["text", "json", "parquet", "dataset", "hub"]


def find_sources(names: list[str], output_dir: Path) -> list[Source]:
    """Expand files, folders, patterns and hub ids, each in sorted order and all in the order in which they were named.

    A folder is walked to the bottom; hidden files, files of other kinds and `output_dir` itself are passed over.

    Raises:
        PotstillError: nothing was named, or a name leads to no text.
    """
    if not names:
        raise PotstillError("There is no text to prepare: name files, folders, patterns or a hub dataset with --text.")
    return [source for name in names for source in _expand(name, output_dir)]


def compression_of(path: str) -> str | None:
    """The compression that a file's name ends in (`.gz`, `.xz` or `.zst`), or None."""
    suffix = Path(path).suffix.lower()
    return suffix if suffix in COMPRESSIONS else None


def _expand(name: str, output_dir: Path) -> list[Source]:
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder(path, output_dir)
    if path.exists():
        if source := _file(path):
            return [source]
        raise PotstillError(f"{path} is of no kind that can be read: give {_KINDS}.")
    if glob.has_magic(name):
        found: list[Source] = []
        for match in sorted(glob.glob(str(path), recursive=True)):
            if Path(match).is_dir():
                found += [] if "**" in name else _folder(Path(match), output_dir)
            elif source := _file(Path(match)):
                found.append(source)
        if not found:
            raise PotstillError(f"The pattern {name} matches no file that can be read: give {_KINDS}.")
        return found
    if _looks_like_a_path(name):
        raise PotstillError(f"There is no file or folder {name}: check the path given to --text.")
    return [Source(name, "hub")]


def _folder(folder: Path, output_dir: Path) -> list[Source]:
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        return [Source(str(folder), "dataset")]
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and Path(parent, name).resolve() != output_dir
        )
        paths = [Path(parent, name) for name in files if not name.startswith(".")]
        found += [source for path in paths if (source := _file(path))]
    if not found:
        raise PotstillError(f"The folder {folder} has no file that can be read: it wants {_KINDS}.")
    return sorted(found, key=lambda source: Path(source.name).parts)


def _file(path: Path) -> Source | None:
    compression = compression_of(str(path))
    kind = FORMATS.get(Path(path.stem).suffix.lower() if compression else path.suffix.lower())
    if kind is None or (kind == "parquet" and compression):
        return None
    return Source(str(path), kind)


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or _file(Path(name)) is not None


_KINDS = ".txt, .jsonl or .json (plain, .gz, .xz or .zst), or .parquet"
