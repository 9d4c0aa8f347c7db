"""Write whole texts to an Arrow file, several to a block, so that little of a block is padding."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from potstill.corpus.packing import BlockWriter
from potstill.corpus.tokenizer import TokenizerSpec
from potstill.errors import PotstillError

WINDOW_TOKENS = 2**18
"""Tokens that are packed together. More would fill blocks better by less than a percent, and take more memory."""

TOKENS_PER_SLOT = 8
"""A block of L tokens holds at most L / 8 texts, so that a batch has a number of places for texts that is known."""


def slots(block_size: int) -> int:
    """Return the largest number of texts in a block."""
    return max(1, block_size // TOKENS_PER_SLOT)


class TextRowWriter(BlockWriter):
    """Write one split whose blocks are rows of whole texts: `[CLS] text [SEP] [CLS] text [SEP] … [PAD] [PAD]`.

    The texts of a window are packed by best fit, the longest first (Johnson 1974). The result depends on the stream
    alone. A text that is longer than a block is cut to it, as an encoder cuts it. A text that occurred before is left
    out, and so is one that another split holds.

    Args:
        path: of the file.
        spec: of the tokenizer; texts are framed.
        block_size: L, tokens of a block.
        pad: id of [PAD].
        other: the complete writer of the split whose texts are left out here.

    Attributes:
        texts: number of texts written.
        cut_texts: number of texts that were longer than a block.
        duplicates: number of texts left out because they occurred before.
        in_other: number of texts left out because the other split holds them.
        padding: number of padding tokens written.
    """

    def __init__(
        self, path: Path, spec: TokenizerSpec, block_size: int, pad: int, other: "TextRowWriter | None" = None
    ) -> None:
        super().__init__(path, spec, block_size)
        self.pad = pad
        self.other = other
        self.texts = self.cut_texts = self.duplicates = self.in_other = self.padding = 0
        self._rest: NDArray[Any] = np.empty(0, spec.dtype)  # the beginning of a text whose separator has not come yet
        self._window: list[NDArray[Any]] = []
        self._window_tokens = 0
        self._seen: set[bytes] = set()
        self._rows_waiting: list[NDArray[Any]] = []

    def add(self, ids: NDArray[Any]) -> None:
        """Append ids (1-D, of the spec's dtype), in which the separator ends each text."""
        self.tokens += len(ids)
        stream = np.concatenate([self._rest, ids])
        ends = np.flatnonzero(stream == self.spec.separator)
        start = 0
        for end in ends.tolist():
            self._add_text(stream[start:end])
            start = end + 1
        self._rest = stream[start:].copy()

    def finish(self) -> None:
        """Write the texts that are still waiting and end the file."""
        self._pack()
        self._flush()
        self.close()

    @property
    def dropped_tokens(self) -> int:
        """Number of the stream's tokens that are in no block: separators, ends of long texts, and duplicates."""
        return self.tokens - int(self.counts.sum())

    def _add_text(self, text: NDArray[Any]) -> None:
        key = hashlib.blake2b(text.tobytes(), digest_size=8).digest()
        if key in self._seen:
            self.duplicates += 1
            return
        self._seen.add(key)
        if self.other is not None and key in self.other._seen:
            self.in_other += 1
            return
        self.cut_texts += len(text) > self.content_size
        self._window.append(text[: self.content_size].copy())
        self._window_tokens += min(len(text), self.content_size) + 2
        if self._window_tokens >= WINDOW_TOKENS:
            self._pack()

    def _pack(self) -> None:
        """Pack the window's texts into rows, and write them."""
        for row in best_fit([len(text) + 2 for text in self._window], self.block_size, slots(self.block_size)):
            ids = np.full(self.block_size, self.pad, self.spec.dtype)
            start = 0
            for number in row:
                text = self._window[number]
                ids[start] = self.spec.prefix
                ids[start + 1 : start + 1 + len(text)] = text
                ids[start + 1 + len(text)] = self.spec.suffix
                self.counts += np.bincount(text, minlength=self.spec.vocab_size) if len(text) else 0
                start += len(text) + 2
            self.texts += len(row)
            self.padding += self.block_size - start
            self._rows_waiting.append(ids)
            if len(self._rows_waiting) == self._rows:
                self._flush()
        self._window, self._window_tokens = [], 0

    def _flush(self) -> None:
        if self._rows_waiting:
            self.write_blocks(np.stack(self._rows_waiting))
            self._rows_waiting = []


def best_fit(lengths: list[int], size: int, most: int) -> list[list[int]]:
    """Return which items go into each bin: the longest first, each into the bin that it fills best.

    Args:
        lengths: of the items, each at most `size`.
        size: room of a bin.
        most: largest number of items in a bin.

    Returns:
        The numbers of the items of each bin, in the order in which the bins were opened.
    """
    bins: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(size + 1)]  # open bins, by the room that is left in them
    rooms = 0  # bit r is set if a bin has room r
    for item in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        length = lengths[item]
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            number = by_room[room].pop()
            if not by_room[room]:
                rooms &= ~(1 << room)
        else:
            room, number = size, len(bins)
            bins.append([])
        bins[number].append(item)
        room -= length
        if room and len(bins[number]) < most:
            by_room[room].append(number)
            rooms |= 1 << room
    return bins


def check_rows(spec: TokenizerSpec, tokenizer: PreTrainedTokenizerFast, name: str) -> int:
    """Return the id of [PAD], after making sure that a tokenizer can frame and pad texts.

    Args:
        spec: of the tokenizer.
        tokenizer: a fast one.
        name: what messages call it.

    Raises:
        PotstillError: the tokenizer has no [CLS], no [SEP] or no [PAD], two of them are the same token, text can become
            [PAD], or the tokenizer itself puts other tokens around a text.
    """
    pad = tokenizer.pad_token_id
    if spec.prefix is None or spec.suffix is None or pad is None:
        raise PotstillError(
            f"The tokenizer {name} lacks [CLS], [SEP] or [PAD], by which whole texts are told apart in a block: set "
            "these tokens, or prepare the text without --unit."
        )
    if len({spec.prefix, spec.suffix, pad}) < 3 or pad not in spec.special_ids:
        raise PotstillError(
            f"The tokenizer {name} uses one token for two of [CLS], [SEP], [PAD] and [UNK], so whole texts cannot be "
            "told apart in a block: give each its own token, or prepare the text without --unit."
        )
    framed = tokenizer("", padding=False, truncation=False)["input_ids"]
    if framed != [spec.prefix, spec.suffix]:
        raise PotstillError(
            f"The tokenizer {name} does not put [CLS] before and [SEP] after a text, as blocks of whole texts have "
            "them: restore its post-processor, or prepare the text without --unit."
        )
    return pad
