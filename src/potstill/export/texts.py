"""Real texts for comparison and calibration: the user's own, or an excerpt that comes with the package."""

from __future__ import annotations

import gzip
import json
from importlib.resources import files
from itertools import cycle, islice
from pathlib import Path

from potstill.corpus.reading import DocumentReader, ReadingOptions
from potstill.corpus.sources import find_sources
from potstill.errors import PotstillError

WORDS = (6, 12, 18, 25, 40, 70)
"""Lengths of the embedded texts, which alternate. Most sentences of GLUE have 5 to 40 words."""


def read_texts(name: str, count: int) -> list[str]:
    """Return the first texts of a file, folder or pattern that `prepare` can read. A line or a row is a text.

    Raises:
        PotstillError: there is no such file, it cannot be read, or it holds no text.
    """
    sources = find_sources([name], Path())
    if any(source.kind == "hub" for source in sources):
        raise PotstillError(f"There is no file or folder {name}: name one that holds text.")
    texts = [document.decode() for document in islice(DocumentReader(sources, ReadingOptions()), count)]
    if not texts:
        raise PotstillError(f"{name} holds no text: check that it is the right file.")
    return texts


def embedded_texts(count: int) -> list[str]:
    """Return texts of different lengths from the excerpt of Simple English Wikipedia that comes with the package."""
    packed = files("potstill.demo").joinpath("assets", "simple-wikipedia.jsonl.gz").read_bytes()
    bodies = (json.loads(line)["text"].partition("\n")[2].split() for line in gzip.decompress(packed).splitlines())
    long_enough = (words for words in bodies if len(words) >= WORDS[-1])
    return [" ".join(words[:length]) for length, words in islice(zip(cycle(WORDS), long_enough), count)]
