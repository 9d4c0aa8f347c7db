"""Writes synthetic texts to the cache in parts, so that millions of them never are in memory together."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa

from potstill.cache import cache_folder, cached, clear_abandoned, one_process
from potstill.errors import PotstillError, first_line
from potstill.finetuning.augment import Synthesiser, Token, WordsByClass, split_words
from potstill.finetuning.augment_options import AugmentOptions
from potstill.finetuning.predict import fingerprint
from potstill.finetuning.rows import Array
from potstill.finetuning.unlabelled import Unlabelled
from potstill.finetuning.word_classes import Endings, Tagger
from potstill.json_files import json_text, read_object
from potstill.live_line import LiveLine
from potstill.student.model_files import model_folder
from potstill.tasks.rows import print_message
from potstill.training.run_record import model_fingerprint
from potstill.wording import counted

VERSION = 1
"""Of the way in which texts are made. After a change here, no earlier texts are used."""

TEXTS, COUNTS, KEYS, TAGS = "texts.arrow", "counts.json", "keys.npy", "tags.npy"
TEXTS_PER_PART = 65_536
ROWS_TAGGED = 2_048
WHAT = "The synthetic texts"
EMPTY = 0
"""The key of a row of which a text is empty."""

Classes = Callable[[Sequence[Sequence[str]]], list[list[int]]]
"""Words of some sentences → the class of each word."""


def augmented(
    train: datasets.Dataset,
    scored: Iterable[datasets.Dataset],
    options: AugmentOptions,
    mask: str,
    new_tagger: Callable[[str], Tagger],
    also: datasets.Dataset | None = None,
) -> Unlabelled:
    """Return synthetic texts of labelled rows. They are made once, and kept in the cache.

    They lie below `$POTSTILL_CACHE`, or `~/.cache/potstill`, in a folder that is named after a hash of the rows and the
    options. They are mapped into memory from there. After an interruption the same call continues with the first part
    that is missing. Texts that occur twice are left out, and so are those that are labelled or scored rows.

    Args:
        train: the labelled rows, with the column `text` and perhaps `pair`.
        scored: the rows that are scored.
        options: how many texts are made, and how they differ from the rows.
        mask: stands in for a masked word; "" to leave the word out.
        new_tagger: loads the tagger that the options name.
        also: other texts without labels, which are not made once more.

    Raises:
        PotstillError: the cache cannot be written or read, the tagger cannot be used, or no text is left.
    """
    known = [[train], list(scored), [] if also is None else [also]]
    folder = cache_folder() / "synthetic-texts" / _key(known, options, mask)
    if not folder.is_dir():
        with one_process(folder):
            if not folder.is_dir():
                clear_abandoned(folder.parent)
                parts = folder.with_name(f".parts-{folder.name}")
                _Parts(train, options, mask, parts, new_tagger).make()
                with cached(folder, WHAT) as partial:
                    counts = _join(sorted(parts.glob("texts-*")), partial, known)
                    (partial / COUNTS).write_text(json_text(counts, COUNTS), encoding="utf-8")
                shutil.rmtree(parts, ignore_errors=True)
    counts = read_object(folder / COUNTS, "The file", "delete its folder")
    left_out = counts["duplicates"] + counts["in_training_rows"] + counts["in_scored_rows"]
    if not counts["texts"]:
        raise PotstillError(f"--augment makes no new text from {counted(len(train), 'row')}: raise its probabilities.")
    print_message(
        f"{counted(counts['texts'], 'synthetic text')} from {counted(len(train), 'row')}; left out: {left_out:,} that "
        f"occur twice or are rows of the task, {counts['empty']:,} that are empty."
    )
    return Unlabelled(_open(folder / TEXTS), counts, mask)


def _key(known: list[list[datasets.Dataset]], options: AugmentOptions, mask: str) -> str:
    names = [name for name in ("text", "pair") if name in known[0][0].column_names]
    tables = {
        f"{number}.{place}": table.select_columns(names)
        for number, some in enumerate(known)
        for place, table in enumerate(some)
    }
    given = {"version": VERSION, "mask": mask, "rows": fingerprint(tables)} | asdict(options)
    if options.tagger is not None:
        given["tagger"] = model_fingerprint(model_folder(options.tagger, "tagger"))
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:32]


class _Parts:
    """Makes the parts that are missing.

    Args:
        train: see `augmented`.
        options: see `augmented`.
        mask: see `augmented`.
        folder: of the parts.
        new_tagger: see `augmented`.
    """

    def __init__(
        self,
        train: datasets.Dataset,
        options: AugmentOptions,
        mask: str,
        folder: Path,
        new_tagger: Callable[[str], Tagger],
    ) -> None:
        self.train, self.options, self.mask, self.folder, self.new_tagger = train, options, mask, folder, new_tagger
        self.columns = [name for name in ("text", "pair") if name in train.column_names]
        self.endings = Endings()

    def make(self) -> None:
        """Write all parts, and print the progress."""
        if self.options.tagger is not None:
            self._tag()
        words = WordsByClass.count(
            (word, kind)
            for start in range(0, len(self.train), ROWS_TAGGED)
            for row, kinds in zip(self._rows(start), self._kinds(start), strict=True)
            for text, classes in zip(row, kinds, strict=True)
            for (_, word), kind in zip(text, classes, strict=True)
        )
        synthesiser = Synthesiser(self.options, words, self.mask)
        size = max(1, TEXTS_PER_PART // self.options.samples // ROWS_TAGGED) * ROWS_TAGGED
        starts = range(0, len(self.train), size)
        for start in self._missing("texts", starts, size, "synthetic texts", self.options.samples):
            with cached(self._place("texts", start), WHAT) as partial:
                self._write(synthesiser, start, min(start + size, len(self.train)), partial)

    def _tag(self) -> None:
        starts = range(0, len(self.train), ROWS_TAGGED)
        tagger: Tagger | None = None
        for start in self._missing("tags", starts, ROWS_TAGGED, "rows tagged"):
            tagger = tagger or self.new_tagger(self.options.tagger or "")
            sentences = [[word for _, word in text] for row in self._rows(start) for text in row]
            kinds = np.fromiter(chain.from_iterable(tagger(sentences)), np.int32)
            with cached(self._place("tags", start), WHAT) as partial:
                np.save(partial / TAGS, kinds)

    def _write(self, synthesiser: Synthesiser, start: int, stop: int, folder: Path) -> None:
        schema = pa.schema([(name, pa.string()) for name in self.columns])
        keys: list[int] = []
        with pa.OSFile(str(folder / TEXTS), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
            for first in range(start, stop, ROWS_TAGGED):
                found: list[list[str]] = []
                rows = zip(self._rows(first), self._kinds(first), strict=True)
                for number, (row, kinds) in enumerate(rows, first):
                    found += synthesiser.texts(number, row, kinds)
                keys += [_hash(texts) for texts in found]
                columns = [pa.array(column, pa.string()) for column in zip(*found, strict=True)]
                stream.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
        np.save(folder / KEYS, np.array(keys, np.uint64))

    def _rows(self, start: int) -> list[list[list[Token]]]:
        """Return the words of each text of each row, from a row on."""
        chunk = self.train[start : start + ROWS_TAGGED]
        return [
            [split_words(text) for text in row] for row in zip(*(chunk[name] for name in self.columns), strict=True)
        ]

    def _kinds(self, start: int) -> list[list[list[int]]]:
        """Return the class of each of these words."""
        rows = self._rows(start)
        if self.options.tagger is None:
            return [self.endings([[word for _, word in text] for text in row]) for row in rows]
        tags = iter(np.load(self._place("tags", start) / TAGS).tolist())
        return [[[next(tags) for _ in text] for text in row] for row in rows]

    def _place(self, name: str, start: int) -> Path:
        return self.folder / f"{name}-{start:012}"

    def _missing(self, name: str, starts: range, size: int, unit: str, times: int = 1) -> Iterator[int]:
        """Yield the starts of the parts that are missing, and print the progress between them."""
        missing = [start for start in starts if not self._place(name, start).is_dir()]
        whole = times * sum(min(size, len(self.train) - start) for start in missing)
        done = 0
        with LiveLine() as progress:
            for start in missing:
                yield start
                done += times * min(size, len(self.train) - start)
                progress.update_count(done, whole, unit)


def _join(parts: Sequence[Path], folder: Path, known: list[list[datasets.Dataset]]) -> dict[str, int]:
    """Write the texts of all parts to one file, each text once, and return how many were left out.

    Only a number of 64 bits for each text is in memory.

    Args:
        parts: their folders, in order.
        folder: to write to.
        known: the labelled rows, the scored rows, and other texts, none of which is written.
    """
    keys = np.concatenate([np.load(part / KEYS) for part in parts])
    first = np.zeros(len(keys), bool)
    first[np.unique(keys, return_index=True)[1]] = True
    empty = keys == EMPTY
    labelled, scored, also = (np.isin(keys, _hashes(tables)) & ~empty for tables in known)
    labelled &= ~scored
    twice = (also | ~first) & ~(empty | labelled | scored)
    kept = ~(empty | labelled | scored | twice)
    start = 0
    schema = pa.ipc.open_stream(pa.memory_map(str(parts[0] / TEXTS))).schema
    with pa.OSFile(str(folder / TEXTS), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        for part in parts:
            for batch in pa.ipc.open_stream(pa.memory_map(str(part / TEXTS))):
                stream.write_batch(batch.filter(pa.array(kept[start : start + len(batch)])))
                start += len(batch)
    found = {"texts": kept, "empty": empty, "duplicates": twice, "in_training_rows": labelled, "in_scored_rows": scored}
    return {name: int(of.sum()) for name, of in found.items()} | {"bad": 0, "synthetic": int(kept.sum())}


def _hashes(tables: Iterable[datasets.Dataset]) -> Array:
    """Return the hashes of the rows of some tables."""
    found: list[int] = []
    for table in tables:
        names = [name for name in ("text", "pair") if name in table.column_names]
        for start in range(0, len(table), ROWS_TAGGED):
            chunk = table[start : start + ROWS_TAGGED]
            found += [_hash(row) for row in zip(*(chunk[name] for name in names), strict=True)]
    return np.array(found, np.uint64)


def _hash(texts: Sequence[str]) -> int:
    """Return 64 bits for the texts of a row, without the blank space around them; `EMPTY` if one of them is empty."""
    stripped = [text.strip() for text in texts]
    if not all(stripped):
        return EMPTY
    return int.from_bytes(hashlib.blake2b("\0".join(stripped).encode(), digest_size=8).digest(), "little") or 1


def _open(file: Path) -> datasets.Dataset:
    try:
        return datasets.Dataset.from_file(str(file))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise PotstillError(f"The texts in {file} cannot be read ({first_line(error)}): remove its folder.") from error
