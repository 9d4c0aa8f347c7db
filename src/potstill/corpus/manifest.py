"""The record of a prepared corpus: `manifest.json`."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_type_hints

from potstill.corpus.integrity import CUT_FILES, FILES, fingerprint_of, unusable
from potstill.errors import PotstillError
from potstill.small_files import read_small

FILE_NAME = "manifest.json"
FORMAT_VERSION = 3
"""Format 2 added the checksums, format 3 the cut vocabularies. Corpora of earlier formats can still be read."""

UNCUT_FORMAT = 2
"""The format of a corpus whose vocabulary is not cut. Earlier versions of potstill can read it."""

_CHECKSUMS = "checksums"
_WORDS = {"unit": ("blocks", "texts", "sentences"), "framing": ("", "cls_sep", "none")}


@dataclass(frozen=True)
class TokenizerRecord:
    """The tokenizer that made the ids: its source, its Python class, its size, and a hash of its behaviour."""

    name: str
    class_name: str
    vocab_size: int
    fingerprint: str


@dataclass(frozen=True)
class SplitRecord:
    """One split. `tokens` is the length of its stream with separators; `dropped_tokens` of them are in no block."""

    documents: int
    tokens: int
    blocks: int
    dropped_tokens: int


@dataclass(frozen=True)
class SourceRecord:
    """One input: its path or hub id, the size and the SHA-256 of its bytes as stored, and its number of documents."""

    name: str
    bytes: int
    sha256: str
    documents: int


@dataclass(frozen=True)
class LanguageRecord:
    """One language: the name given for its text, its size as UTF-8, its number of documents, and how it was sampled.

    `share` is its intended share of the text. `passes` says how often it was read: 0.25 means a quarter of its
    documents, and 2.5 means all of them twice and half of them once more.
    """

    text: str
    bytes: int
    documents: int
    share: float
    passes: float


@dataclass(frozen=True)
class Manifest:
    """The sources and the options that a corpus was made with.

    `skipped` counts documents left out: `bad_text` (not UTF-8) and `empty` (null, blank, or without any token).
    `created` is the time in UTC, ISO 8601. `checksums` are the SHA-256 of the files that training reads; a corpus of
    format 1 has none. `framing` says what stands around each block: `cls_sep` or `none`. It is empty in a corpus of an
    earlier version, which framed blocks whenever the tokenizer had both tokens. `tokenizer` made the ids of the blocks.
    If the vocabulary is cut, `whole_tokenizer` is the tokenizer before the cut. `unit` is `blocks` for running text,
    and `texts` or `sentences` for blocks of whole texts. If languages were sampled by size, `language_exponent` is the
    exponent, and `languages` says how often each was read.
    """

    potstill_version: str
    tokenizer: TokenizerRecord
    block_size: int
    dtype: str
    seed: int
    validation_fraction: float
    splits: dict[str, SplitRecord]
    skipped: dict[str, int]
    sources: list[SourceRecord]
    created: str
    checksums: dict[str, str] = field(default_factory=dict)
    framing: str = ""
    unit: str = "blocks"
    format_version: int = UNCUT_FORMAT
    whole_tokenizer: TokenizerRecord | None = None
    language_exponent: float | None = None
    languages: list[LanguageRecord] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write `manifest.json`."""
        record = {"format_version": self.format_version} | asdict(self)
        for name in ("tokenizer", "whole_tokenizer"):
            if record[name] is None:
                del record[name]
            else:
                record[name]["class"] = record[name].pop("class_name")
        if self.language_exponent is None:
            del record["language_exponent"], record["languages"]
        if self.checksums:
            record["fingerprint"] = fingerprint_of(self.checksums)
            # It stands among the checksums of the files, because there earlier versions of potstill pass over it. They
            # refuse any other field that they do not know.
            record[_CHECKSUMS][FILE_NAME] = own_checksum(record)
        (folder / FILE_NAME).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read `manifest.json`.

        Raises:
            PotstillError: the file is missing, cannot be read, is damaged or was changed, or a newer version of
                potstill wrote it.
        """
        path = folder / FILE_NAME
        try:
            record: dict[str, Any] = json.loads(read_small(path))
            _check_unchanged(record, path)
            version = record["format_version"]
            if version <= FORMAT_VERSION:
                return _parsed(record)
            written_by = record["potstill_version"]
        except (FileNotFoundError, NotADirectoryError) as error:
            raise PotstillError(
                f"{folder} is not a prepared corpus: it has no {FILE_NAME}; make one with potstill prepare."
            ) from error
        except PotstillError:
            raise
        except (KeyError, TypeError, AttributeError) as error:
            raise PotstillError(
                f"{path} is not the manifest of a corpus ({error}): prepare the corpus again."
            ) from error
        except Exception as error:  # the parser raises many types for a damaged file
            raise unusable(path, error) from error
        raise PotstillError(
            f"{folder} was written in corpus format {version} by potstill {written_by}, and this version knows formats "
            f"up to {FORMAT_VERSION}: upgrade potstill."
        )


def own_checksum(record: dict[str, Any]) -> str:
    """Return the checksum that a manifest holds of itself.

    Args:
        record: the object in the file. The checksum itself does not count.

    Returns:
        SHA-256, in hexadecimal, of the object as JSON with sorted keys and without spaces. How the file is laid out
        does not change it.
    """
    checksums = {name: value for name, value in record[_CHECKSUMS].items() if name != FILE_NAME}
    text = json.dumps(record | {_CHECKSUMS: checksums}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _check_unchanged(record: dict[str, Any], path: Path) -> None:
    """Compare a manifest with the checksum that it holds of itself. A manifest of an earlier version holds none.

    Raises:
        PotstillError: they differ.
        TypeError, AttributeError: it is no manifest.
    """
    recorded = record.get(_CHECKSUMS)
    if recorded is not None and FILE_NAME in recorded and recorded[FILE_NAME] != own_checksum(record):
        raise PotstillError(
            f"{path} was changed after potstill wrote it (its SHA-256 is no longer the one that it holds): undo the "
            "change, copy it again from an undamaged copy, or prepare the corpus again."
        )


def _parsed(record: dict[str, Any]) -> Manifest:
    """Return the manifest in a JSON object of a known format.

    Raises:
        KeyError, TypeError: it is no manifest.
    """
    fingerprint = record.pop("fingerprint", None)
    cut = record["format_version"] > UNCUT_FORMAT
    for name in ("tokenizer", "whole_tokenizer") if cut else ("tokenizer",):
        tokenizer = dict(record[name])
        record[name] = _record(TokenizerRecord, tokenizer | {"class_name": tokenizer.pop("class")})
    record["splits"] = {name: _record(SplitRecord, record["splits"][name]) for name in ("train", "validation")}
    record["sources"] = [_record(SourceRecord, source) for source in record["sources"]]
    if "languages" in record:
        record["languages"] = [_record(LanguageRecord, language) for language in record["languages"]]
    manifest = _record(Manifest, record)
    for name, allowed in _WORDS.items():  # nothing else would notice a wrong word in a manifest of an earlier version
        if getattr(manifest, name) not in allowed:
            raise TypeError(f"{name} is {getattr(manifest, name)!r}")
    manifest.checksums.pop(FILE_NAME, None)  # it is about the file, not about the corpus
    if manifest.format_version >= 2:
        names = CUT_FILES if cut else FILES
        if fingerprint != fingerprint_of({name: manifest.checksums[name] for name in names}):
            raise TypeError("its fingerprint is not that of its checksums")
        # A turned bit in the name of its own checksum would otherwise make it a manifest of an earlier version.
        if unknown := sorted(manifest.checksums.keys() - set(names)):
            raise TypeError(f"it has a checksum of {unknown[0]!r}, which is no file of a corpus")
    return manifest


Record = TypeVar("Record")


def _record(kind: type[Record], values: dict[str, Any]) -> Record:
    """Return a dataclass with these values. They come from a file, so their types are checked."""
    hints = get_type_hints(kind)
    for name, value in values.items():
        hint = hints.get(name, object)
        expected = hint if isinstance(hint, UnionType) else getattr(hint, "__origin__", hint)
        allowed = (int, float) if expected is float else expected
        if not isinstance(value, allowed) or isinstance(value, bool):
            raise TypeError(f"{name} is {type(value).__name__}")
    return kind(**values)
