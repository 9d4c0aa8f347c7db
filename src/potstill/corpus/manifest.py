"""What a prepared corpus says of itself: `manifest.json`."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from potstill.errors import PotstillError

FILE_NAME = "manifest.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class TokenizerRecord:
    """The tokenizer that made the ids: where it came from, its Python class, its size, and what it does (a hash)."""

    name: str
    class_name: str
    vocab_size: int
    fingerprint: str


@dataclass(frozen=True)
class SplitRecord:
    """One split. `tokens` is the length of its stream, separators included; `dropped_tokens` of them fill no block."""

    documents: int
    tokens: int
    blocks: int
    dropped_tokens: int


@dataclass(frozen=True)
class SourceRecord:
    """One input: its path or hub id, its size in bytes and their SHA-256 as stored, and the documents it gave."""

    name: str
    bytes: int
    sha256: str
    documents: int


@dataclass(frozen=True)
class Manifest:
    """Everything needed to know what a corpus was made of and how.

    `skipped` counts documents left out: `bad_text` (not UTF-8) and `empty` (null, blank, or nothing to the tokenizer).
    `created` is the time of day in UTC, ISO 8601.
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
    format_version: int = FORMAT_VERSION

    def save(self, folder: Path) -> None:
        """Write `manifest.json`."""
        record = {"format_version": self.format_version} | asdict(self)
        record["tokenizer"]["class"] = record["tokenizer"].pop("class_name")
        (folder / FILE_NAME).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read `manifest.json`.

        Raises:
            PotstillError: there is none, it is damaged, or a newer version of potstill wrote it.
        """
        path = folder / FILE_NAME
        try:
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise PotstillError(
                f"{folder} is not a prepared corpus: it has no {FILE_NAME}; make one with potstill prepare."
            ) from error
        except (OSError, ValueError) as error:
            raise PotstillError(f"{path} cannot be read ({error}): prepare the corpus again.") from error
        try:
            if record["format_version"] > FORMAT_VERSION:
                raise PotstillError(
                    f"{folder} was written in corpus format {record['format_version']} by potstill "
                    f"{record['potstill_version']}, and this version knows formats up to {FORMAT_VERSION}: "
                    "upgrade potstill."
                )
            tokenizer = record["tokenizer"]
            record["tokenizer"] = TokenizerRecord(class_name=tokenizer.pop("class"), **tokenizer)
            record["splits"] = {name: SplitRecord(**split) for name, split in record["splits"].items()}
            record["sources"] = [SourceRecord(**source) for source in record["sources"]]
            return cls(**record)
        except (KeyError, TypeError, AttributeError) as error:
            raise PotstillError(f"{path} is not the manifest of a corpus ({error}): prepare it again.") from error
