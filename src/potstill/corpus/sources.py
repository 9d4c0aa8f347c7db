"""Find the files, `datasets` folders and hub datasets that the user named, in a fixed order."""

import glob
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from potstill.errors import PotstillError, advice, first_line

logger = logging.getLogger(__name__)

FileKind = Literal["text", "json", "fields", "parquet", "words"]
"""How a file is read; `words` have one word on each line, and only tasks on words read them."""

FORMATS: dict[str, FileKind] = {
    ".txt": "text",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "fields",
    ".tsv": "fields",
    ".parquet": "parquet",
}
COMPRESSIONS = (".gz", ".xz", ".zst")

KINDS_NAMED = 8
"""How many kinds of skipped files the warning names."""


@dataclass(frozen=True)
class Source:
    """One input: a file, a folder that `datasets` saved, or a dataset on the hub, whose `name` is its id."""

    name: str
    kind: FileKind | Literal["dataset", "hub"]


def find_sources(
    names: list[str], output_dir: Path, option: str = "--text", more: Mapping[str, FileKind] | None = None
) -> list[Source]:
    """Return the sources of all names in one list: see `find_sources_of_each`."""
    return [source for sources in find_sources_of_each(names, output_dir, option, more) for source in sources]


def find_sources_of_each(
    names: list[str], output_dir: Path, option: str = "--text", more: Mapping[str, FileKind] | None = None
) -> list[list[Source]]:
    """Expand files, folders, patterns and hub ids. Sources keep the order of the names; those of one name are sorted.

    A folder is searched with all its subfolders and symbolic links, but not links to a folder that holds it. Hidden
    files, files of other kinds and files that a link leads to a second time are skipped; a log line for each name
    counts them, and another one names files outside of the folder that links lead to. `output_dir` is skipped as well.
    A file that is named itself is read as often as it is named. `more` adds endings of files to `FORMATS`, or replaces
    them.

    Raises:
        PotstillError: there is no name, a name leads to no text, or a folder or a link cannot be followed.
    """
    if not names:
        raise PotstillError("There is no text to prepare: name files, folders, patterns or a hub dataset with --text.")
    finder = _Finder(output_dir, option, more or {})
    return [finder.expand(name) for name in names]


def compression_of(path: str) -> str | None:
    """Return the ending of a compressed file's name (`.gz`, `.xz` or `.zst`), or None."""
    suffix = Path(path).suffix.lower()
    return suffix if suffix in COMPRESSIONS else None


class _Finder:
    """Find the sources of one name after another, and remember the files that were found.

    Args:
        output_dir: the resolved path of a folder that is not read.
        option: the option that names the files, for messages.
        more: endings beside those in `FORMATS`.
    """

    def __init__(self, output_dir: Path, option: str, more: Mapping[str, FileKind]) -> None:
        self.output_dir = output_dir
        self.option = option
        self.formats = FORMATS | dict(more)
        self.kinds = ", ".join([*(ending for ending in more if ending not in FORMATS), _KINDS])
        self._found: dict[Path, str] = {}  # resolved path of a file → the path by which it is read
        self._skipped: dict[Path, str] = {}  # path → its kind
        self._outside: list[Path] = []  # files that are read though they do not lie in the folder that was named

    def expand(self, name: str) -> list[Source]:
        """Return the sources of one name, and log the files that were skipped."""
        self._skipped.clear()
        self._outside.clear()
        try:
            sources = self._expand(name)
        except OSError as error:
            reason = error.strerror or first_line(error)
            raise PotstillError(f"{error.filename or name} cannot be read ({reason}): {advice(error)}.") from error
        if self._skipped:
            logger.warning("Skipped in %s: %s.", name, self._counted())
        if self._outside:
            first = self._outside[0]
            others = f", and {len(self._outside) - 1:,} more files" if len(self._outside) > 1 else ""
            logger.warning("Links lead out of %s: %s is %s%s.", name, first, first.resolve(), others)
        return sources

    def _expand(self, name: str) -> list[Source]:
        path = Path(name).expanduser()
        if path.is_dir():
            return self._folder(path)
        if path.exists():
            if source := _file(path, self.formats):
                self._found.setdefault(path.resolve(), source.name)
                return [source]
            raise PotstillError(f"{path} has a kind that cannot be read: give {self.kinds}.")
        if glob.has_magic(name):
            return self._pattern(path)
        if path.is_symlink() or _looks_like_a_path(name, self.formats):
            raise PotstillError(f"There is no file or folder {name}: check the path given to {self.option}.")
        return [Source(name, "hub")]

    def _folder(self, folder: Path) -> list[Source]:
        if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
            return [Source(str(folder), "dataset")]
        paths = []
        for _, files, hidden in self._walk(folder):
            paths += files
            self._skipped |= dict.fromkeys(hidden, _HIDDEN)
        # Links come last, so that a file is read by its own path and not by a link to it.
        found = [source for path in sorted(paths, key=Path.is_symlink) if (source := self._new_file(path))]
        top = folder.resolve()
        self._outside += [path for one in found if top not in (path := Path(one.name)).resolve().parents]
        self._check_found(found, f"The folder {folder} has no file that can be read: give {self.kinds}")
        return sorted(found, key=lambda source: Path(source.name).parts)

    def _pattern(self, pattern: Path) -> list[Source]:
        found: list[Source] = []
        recursive = "**" in pattern.parts
        for match in map(Path, sorted(set(self._matches(pattern)))):
            if not match.is_dir():
                found += [source] if (source := self._new_file(match)) else []
            elif not recursive:  # a recursive pattern matches the files in the folder itself
                found += self._folder(match)
        self._check_found(found, f"The pattern {pattern} matches no file that can be read: give {self.kinds}")
        return found

    def _matches(self, pattern: Path) -> Iterator[str]:
        """Yield the paths that match a pattern. `**` means any depth, as in `glob`, but follows no loop of links."""
        if "**" not in pattern.parts:
            yield from glob.glob(str(pattern))
            return
        depth = pattern.parts.index("**")
        rest = pattern.parts[depth + 1 :] or ("*",)
        for top in glob.glob(str(Path(*pattern.parts[:depth]))):
            for folder, _, _ in self._walk(Path(top)):
                yield from self._matches(Path(glob.escape(str(folder)), *rest))

    def _walk(self, top: Path) -> Iterator[tuple[Path, list[Path], list[Path]]]:
        """Yield `top` and each folder below it, with its files and its hidden entries.

        Symbolic links are followed. Each folder is visited once, by a path without a link if there is one.
        """
        waiting, links, seen = [top], list[Path](), set[Path]()
        above = {*top.resolve().parents}  # a link there would lead to all that lies beside the folder
        while waiting or links:
            folder = waiting.pop() if waiting else links.pop(0)
            if (real := folder.resolve()) in seen or real == self.output_dir:
                continue
            if real in above:
                self._skipped[folder] = _ABOVE
                continue
            seen.add(real)
            files, hidden = [], []
            for path in sorted(folder.iterdir()):
                if path.name.startswith("."):
                    hidden.append(path)
                elif path.is_dir():
                    (links if path.is_symlink() else waiting).append(path)
                else:
                    files.append(path)
            yield folder, files, hidden

    def _new_file(self, path: Path) -> Source | None:
        """Return a file of a folder or a pattern, or None if it is skipped."""
        source = _file(path, self.formats)
        if path.is_symlink() and not path.exists() and (source or not path.suffix):
            raise PotstillError(f"{path} is a symbolic link without a target: repair it or remove it.")
        if source is None:
            self._skipped[path] = _ending(path)
        elif self._found.setdefault(path.resolve(), source.name) != source.name:
            self._skipped[path] = _FOUND
            source = None
        return source

    def _check_found(self, found: list[Source], message: str) -> None:
        if not found and _FOUND not in self._skipped.values():
            raise PotstillError(message + (f" (skipped: {self._counted()})." if self._skipped else "."))

    def _counted(self) -> str:
        counts = sorted(Counter(self._skipped.values()).items(), key=lambda entry: (-entry[1], entry[0]))
        shown = [f"{count:,} {what}" for what, count in counts[:KINDS_NAMED]]
        others = sum(count for _, count in counts[KINDS_NAMED:])
        return ", ".join(shown) + (f" and {others:,} others" if others else "")


def _file(path: Path, formats: Mapping[str, FileKind]) -> Source | None:
    compression = compression_of(str(path))
    kind = formats.get(Path(path.stem).suffix.lower() if compression else path.suffix.lower())
    if kind is None or (kind == "parquet" and compression):
        return None
    return Source(str(path), kind)


def _ending(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes[-2 if compression_of(str(path)) else -1 :]]
    return "".join(suffixes) or "without an ending"


def _looks_like_a_path(name: str, formats: Mapping[str, FileKind]) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or _file(Path(name), formats) is not None


_KINDS = ".txt, .jsonl, .json, .csv or .tsv (plain, .gz, .xz or .zst), or .parquet"
_HIDDEN = "hidden"
_FOUND = "already found by another path"
_ABOVE = "link to a folder that holds this one"
