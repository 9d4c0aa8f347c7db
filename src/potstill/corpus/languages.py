"""Read the texts of several languages so that small ones count for more: large ones in part, small ones repeatedly."""

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence

from potstill.corpus.manifest import LanguageRecord, SourceRecord
from potstill.corpus.reading import DocumentReader, ReadingOptions
from potstill.corpus.sources import Source
from potstill.errors import PotstillError

logger = logging.getLogger(__name__)


class LanguageReader:
    """Passes over the texts of languages, each read in proportion to its size to the power of an exponent.

    A language of n bytes of text gets the share n^exponent / Σ n^exponent of an unchanged total. This is the sampling
    of multilingual BERT, with the exponent 0.7 (Tsai et al. 2019, section 3). A language that is to be read 2.4 times
    is read twice, and then 40 % of its documents once more. A hash of their numbers chooses these.

    The texts are read once in advance, to measure the languages.

    Attributes:
        exponent: 1 reads each language once, and 0 gives equal shares to all.
        languages: the size, the share and the number of passes of each language.
        documents: documents yielded so far by the newest call of `passes`, each as often as it was yielded.
        bad_text: documents left out because they are not UTF-8.
        empty: documents left out because they are null or blank.
        records: one record for each source.
    """

    def __init__(
        self, sources: Sequence[tuple[str, list[Source]]], options: ReadingOptions, exponent: float, seed: int
    ) -> None:
        """Measure the languages.

        Args:
            sources: for each language the name that was given for it, and its sources.
            options: what a document is.
            exponent: 1 reads each language once, and 0 gives equal shares to all.
            seed: of the choice of documents.

        Raises:
            PotstillError: a source belongs to two languages, a language has no text, or a source cannot be read.
        """
        counts = Counter(source.name for _, of_language in sources for source in of_language)
        if twice := next((name for name, count in counts.items() if count > 1), None):
            raise PotstillError(
                f"{twice} belongs to two languages: with --language_exponent each --text is one language, so give "
                "each text once."
            )
        if len(sources) == 1:
            logger.warning(
                "--language_exponent changes nothing, because each --text is one language, and there is only one."
            )
        self.exponent = float(exponent)
        self._sources, self._options, self._seed = dict(sources), options, seed
        self.documents = 0
        self.records: list[SourceRecord] = []
        self.bad_text = self.empty = 0
        sizes: dict[str, tuple[int, int]] = {}
        for name, of_language in sources:
            reader = DocumentReader(of_language, options)
            size = sum(map(len, reader))
            if not size:
                raise PotstillError(f"The language {name} has no text: leave it out, or check the path.")
            sizes[name] = (size, reader.documents)
            self.records += reader.records
            self.bad_text += reader.bad_text
            self.empty += reader.empty
        total, weights = sum(size for size, _ in sizes.values()), sum(size**exponent for size, _ in sizes.values())
        self.languages = []
        for name, (size, documents) in sizes.items():
            share = size**exponent / weights
            # Rounded, so that a language that is to be read once is not read 0.9999999999 times.
            self.languages.append(LanguageRecord(name, size, documents, share, round(share * total / size, 9)))

    def passes(self) -> Iterator[tuple[int, Iterator[bytes]]]:
        """See `DocumentReader.passes`. All languages are read before one is repeated, so that copies lie far apart."""
        self.documents = 0
        for before in range(math.ceil(max(language.passes for language in self.languages))):
            first = 0
            for language in self.languages:
                if language.passes > before:
                    yield first, self._pass(language.text, first, language.passes - before)
                first += language.documents

    def share_read(self) -> float | None:
        """Return the share of the documents, about, that the newest call of `passes` has yielded."""
        return min(1.0, self.documents / sum(language.documents * language.passes for language in self.languages))

    def _pass(self, name: str, first: int, share: float) -> Iterator[bytes]:
        for number, document in enumerate(DocumentReader(self._sources[name], self._options), first):
            if share >= 1 or self._chance(number) < share:
                self.documents += 1
                yield document
            else:
                yield b""

    def _chance(self, number: int) -> float:
        """Return a random number from 0 to 1. It is independent of the choice of the held-out documents."""
        key = f"{self._seed}".encode()[:64]
        digest = hashlib.blake2b(number.to_bytes(8, "big"), key=key, person=b"languages", digest_size=8).digest()
        return int.from_bytes(digest, "big") / 2.0**64
