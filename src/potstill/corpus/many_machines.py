"""Turn documents into token ids on many machines, by Ray Data. The ids are those that one machine makes.

Each source is one piece of work. A worker reads it, tokenises its documents, and writes the ids and the length of each
document to a shard in the output folder. Ray starts a piece again if its worker or its machine dies. Afterwards the
first process reads the shards in the order of the sources. Only it knows the number of each document, which decides
whether the document is held out.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from potstill.corpus.manifest import SourceRecord
from potstill.corpus.reading import DocumentReader, ReadingOptions
from potstill.corpus.sources import Source
from potstill.corpus.tokenise import Tokens, batched
from potstill.corpus.tokenizer import TokenizerSpec
from potstill.corpus.worker import Encoder, is_held_out
from potstill.errors import PotstillError, first_line

BATCH_BYTES = 2**18
"""Bytes of text that a worker tokenises at once."""

MERGED_DOCUMENTS = 2**14
"""Documents of a shard that are merged at once."""


def tokenise_on_ray(
    reader: DocumentReader, spec: TokenizerSpec, seed: int, validation_fraction: float, num_proc: int, folder: Path
) -> Generator[Tokens, None, None]:
    """Tokenise the sources of a reader on a Ray cluster, and yield their documents in order.

    `RAY_ADDRESS` names the cluster. Without it Ray starts workers on this machine.

    Args:
        reader: names the sources. Afterwards it has the records and the counts of what was read.
        spec: of the tokenizer.
        seed: of the held-out split.
        validation_fraction: share of held-out documents.
        num_proc: workers on this machine, if no cluster is named.
        folder: where the shards are written; all machines must see it under this path.

    Raises:
        PotstillError: Ray is not installed or does not work, or a source cannot be read or tokenised.
    """
    shards = folder / "shards"
    shards.mkdir()
    work = _Work(reader.options, spec, str(shards))
    pieces = [{"number": number, **asdict(source)} for number, source in enumerate(reader.sources)]
    done = sorted(_on_ray(work, pieces, num_proc), key=lambda one: one["number"])
    for one in done:  # the first error in the order of the sources, as one machine would report it
        if one["error"]:
            raise PotstillError(one["error"])
    for one in done:
        yield from _merged(shards, one, spec, reader.documents, seed, validation_fraction)
        reader.documents += one["documents"]
        reader.bad_text += one["bad_text"]
        reader.empty += one["empty"]
        reader.records.append(SourceRecord(one["name"], one["bytes"], one["sha256"], one["documents"]))
    shutil.rmtree(shards)


class _Work:
    """Reads and tokenises one source. It is sent to the workers."""

    def __init__(self, options: ReadingOptions, spec: TokenizerSpec, shards: str) -> None:
        self.options, self.shards = options, shards
        self.dtype = spec.dtype.name
        self.settings: dict[str, Any] = {
            "tokenizer_json": spec.json,
            "separator": spec.separator,
            "special_ids": spec.special_ids,
            "unknown": spec.unknown,
            "id_bytes": spec.dtype.itemsize,
            "seed": 0,
            "validation_fraction": 0.0,
        }

    def __call__(self, piece: dict[str, Any]) -> dict[str, Any]:
        found = {"number": piece["number"], "name": piece["name"], "error": "", "sha256": ""}
        counts = {"documents": 0, "bad_text": 0, "empty": 0, "bytes": 0}
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a worker for each core
        try:
            return found | counts | self._written(piece)
        except PotstillError as error:
            return found | counts | {"error": str(error)}

    def _written(self, piece: dict[str, Any]) -> dict[str, Any]:
        reader = DocumentReader([Source(piece["name"], piece["kind"])], self.options)
        encoder = Encoder(**self.settings)
        path = shard_path(self.shards, piece["number"])
        # A worker that died may have left a part of a file. Another one may still be writing: each has its own name.
        staged = path.with_name(f"{path.name}.{os.getpid()}.partial")
        lengths = []
        try:
            with staged.open("wb") as file:
                for first, documents in batched(iter(reader), BATCH_BYTES):
                    try:
                        batch = encoder.ids_of([document.decode() for document in documents])
                    except BaseException as error:  # the user's tokenizer may raise anything
                        where = encoder.failure(first, documents, error).replace("of the text", f"of {piece['name']}")
                        raise PotstillError(
                            f"The tokenizer failed {where.rstrip('.')}: correct the document or the tokenizer."
                        ) from error
                    for ids in batch:
                        if ids:
                            file.write(np.asarray([*ids, encoder.separator], dtype=self.dtype).tobytes())
                        lengths.append(len(ids) + bool(ids))
                file.flush()
                os.fsync(file.fileno())
            np.save(staged.with_suffix(".npy"), np.asarray(lengths, dtype=np.uint32))
            os.replace(staged.with_suffix(".npy"), path.with_suffix(".npy"))
            os.replace(staged, path)
        except OSError as error:
            raise PotstillError(f"A shard cannot be written to {self.shards}: {first_line(error)}.") from error
        record = reader.records[0]
        counts = {"documents": reader.documents, "bad_text": reader.bad_text, "empty": reader.empty}
        return counts | {"bytes": record.bytes, "sha256": record.sha256}


def shard_path(folder: str | Path, number: int) -> Path:
    """Return the file of the ids of a source. The lengths of its documents lie beside it, in a `.npy` file."""
    return Path(folder) / f"{number:06d}.ids"


def _on_ray(work: Callable[[dict[str, Any]], dict[str, Any]], pieces: list[dict[str, Any]], num_proc: int) -> list[Any]:
    """Do the work on each piece, on the workers of Ray."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise PotstillError("--engine ray needs Ray: pip install 'potstill[ray]'.") from error
    began = not ray.is_initialized()
    try:
        if began:
            local = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": num_proc, "include_dashboard": False}
            ray.init(logging_level="ERROR", log_to_driver=False, **local)
        ray.data.DataContext.get_current().enable_progress_bars = False
        return ray.data.from_items(pieces, override_num_blocks=len(pieces)).map(work, num_cpus=1).take_all()
    except Exception as error:  # Ray has many types of error
        raise PotstillError(
            f"Ray could not do the work ({first_line(error)}): repair that, or leave --engine ray out."
        ) from error
    finally:
        if began:
            ray.shutdown()


def _merged(
    shards: Path, done: dict[str, Any], spec: TokenizerSpec, first: int, seed: int, validation_fraction: float
) -> Generator[Tokens, None, None]:
    """Yield the documents of a shard, split by their numbers, and remove its files."""
    path = shard_path(shards, done["number"])
    lengths = np.load(path.with_suffix(".npy")).astype(np.int64)
    if len(lengths) != done["documents"] or path.stat().st_size != lengths.sum() * spec.dtype.itemsize:
        raise PotstillError(f"The shard {path} of {done['name']} is damaged: prepare the corpus again.")
    with path.open("rb") as file:
        for start in range(0, len(lengths), MERGED_DOCUMENTS):
            sizes = lengths[start : start + MERGED_DOCUMENTS]
            ids = np.frombuffer(file.read(int(sizes.sum()) * spec.dtype.itemsize), spec.dtype)
            numbers = range(first + start, first + start + len(sizes))
            held_out = np.array([is_held_out(number, seed, validation_fraction) for number in numbers])
            of_ids = np.repeat(held_out, sizes)
            yield Tokens(
                train=ids[~of_ids],
                validation=ids[of_ids],
                train_documents=int((~held_out & (sizes > 0)).sum()),
                validation_documents=int((held_out & (sizes > 0)).sum()),
                read_documents=len(sizes),
                read_bytes=done["bytes"] * len(sizes) // len(lengths),
            )
    for file_of_shard in (path, path.with_suffix(".npy")):
        file_of_shard.unlink()
