"""Documents as the trainers of tokenizers read them."""

from collections.abc import Iterable, Iterator


def lines(documents: Iterable[bytes], keep_ends: bool = False) -> Iterator[str]:
    """Yield the lines of documents in UTF-8, with or without what ends them.

    Lines, not documents: a trainer holds a fixed number of items at a time, however long they are.
    """
    for document in documents:
        yield from document.decode().splitlines(keepends=keep_ends)
