"""The requests to the models: sentences, pairs of sentences, or random tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from potstill.corpus.lines import decoded_lines, open_hashed
from potstill.errors import PotstillError
from potstill.tasks.glue import GLUE
from potstill.tasks.load import load_split

STSB = "stsb"
SYNTHETIC_LENGTHS = (8, 16, 32, 64, 128)
SYNTHETIC_REQUESTS = 200

Text = tuple[str, str | None]
"""A text, and the second text if it is a pair."""


@dataclass(frozen=True)
class Requests:
    """The requests, in order.

    Attributes:
        title: description for the report.
        texts: the texts; None if tokens are random.
        lengths: number of tokens of each request if they are random, else None.
        places: where each text stands, for messages, such as `line 7`.
    """

    title: str
    texts: tuple[Text, ...] | None
    lengths: tuple[int, ...] | None = None
    places: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts if self.texts is not None else self.lengths or ())


def synthetic_requests(most: int | None, longest: int) -> Requests:
    """Return requests of random tokens. Five lengths alternate.

    Args:
        most: largest number of requests; all if None.
        longest: largest number of tokens of a request.
    """
    lengths = list(dict.fromkeys(min(length, longest) for length in SYNTHETIC_LENGTHS))
    count = min(most or SYNTHETIC_REQUESTS, SYNTHETIC_REQUESTS)
    by_request = tuple(lengths[number % len(lengths)] for number in range(count))
    listed = ", ".join(map(str, dict.fromkeys(by_request)))
    return Requests(f"no data: {count} synthetic requests of {listed} random tokens in turns", None, by_request)


def read_requests(data: str, task_data: str | None, most: int | None) -> Requests:
    """Read the requests.

    Args:
        data: see `BenchInferenceArguments`.
        task_data: see `BenchInferenceArguments`.
        most: largest number of requests. They are taken at even distances, because the data may be sorted.

    Raises:
        PotstillError: there is no such data, it has no requests, or it cannot be read.
    """
    if data == STSB:
        rows = load_split(GLUE[STSB], "dev", task_data)
        texts: list[Text] = list(zip(rows["text"], rows["pair"], strict=True))
        places = [f"pair {number}" for number in range(1, len(texts) + 1)]
        title, what = "STS-B dev", "pairs"
    elif Path(data).is_file():
        texts, places = _lines(data)
        title, what = Path(data).name, "requests"
    else:
        if Path(data).is_dir():
            raise PotstillError(f"--data {data} is a folder: name a file of text with one request a line.")
        raise PotstillError(
            f"There is no data {data!r}: give {STSB}, or a file of text with one request a line, or leave --data out."
        )
    if not texts:
        raise PotstillError(f"--data {data} has no requests: every line is empty.")
    chosen = evenly(len(texts), most or len(texts))
    some = f"{len(chosen):,} of {len(texts):,}" if len(chosen) < len(texts) else f"{len(texts):,}"
    return Requests(
        f"{title}, {some} {what}",
        tuple(texts[number] for number in chosen),
        places=tuple(places[number] for number in chosen),
    )


def evenly(count: int, most: int) -> list[int]:
    """Return at most `most` numbers below `count`, in order and at even distances."""
    return [number * count // min(most, count) for number in range(min(most, count))]


def _lines(path: str) -> tuple[list[Text], list[str]]:
    texts: list[Text] = []
    places = []
    with open_hashed(path) as file:
        for number, line in decoded_lines(path, file):
            if isinstance(line, UnicodeDecodeError):
                raise PotstillError(f"{path}, line {number}, is not UTF-8: {line.reason}.")
            if line.strip():
                text, tab, pair = line.partition("\t")
                texts.append((text, pair if tab else None))
                places.append(f"line {number}")
    return texts, places
