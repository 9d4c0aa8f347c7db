"""Show the progress of `prepare` on standard error."""

from collections.abc import Callable

from potstill.live_line import LiveLine
from potstill.wording import counted


class PrepareProgress(LiveLine):
    """Shows documents, megabytes, tokens, rates, and the time left.

    Args:
        share_read: returns the share of the text that is read, from 0 to 1; None if it is not known.
    """

    def __init__(self, share_read: Callable[[], float | None]) -> None:
        super().__init__()
        self.share_read = share_read
        self.documents = 0
        self.bytes = 0
        self.tokens = 0

    def advance(self, documents: int, size: int, tokens: int) -> None:
        """Add the work that was done since the last call.

        Args:
            documents: number of documents.
            size: size of the documents in bytes.
            tokens: number of tokens of the documents.
        """
        self.documents += documents
        self.bytes += size
        self.tokens += tokens
        if not self.due:
            return
        share, seconds = self.share_read(), self.seconds
        self.update(
            share,
            [
                counted(self.documents, "document"),
                f"{self.bytes / 1e6:,.1f} MB",
                f"{self.tokens:,} tokens",
                "" if share is None else self.left(share),
                f"{self.bytes / 1e6 / seconds:.1f} MB/s",
                f"{self.tokens / seconds:,.0f} tokens/s",
            ],
        )
