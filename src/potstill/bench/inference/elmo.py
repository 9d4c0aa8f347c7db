"""An untrained model of ELMo's shape (Peters et al. 2018, arXiv 1802.05365), the first row of the paper's Table 3.

It has a convolution over the characters of each word, highways, and two layers of LSTMs with projections in both
directions. The sizes are those of the released model. Four differences change its output but not its time: weights are
random, LSTMs have PyTorch's second bias, cells are not clipped, and padding is read from both sides.
"""

from __future__ import annotations

import re

import numpy as np
import torch
from torch import Tensor, nn

FILTERS = ((1, 32), (2, 32), (3, 64), (4, 128), (5, 256), (6, 512), (7, 1024))
"""Number of characters that a filter spans, and number of such filters."""

CHARACTERS, CHARACTER_SIZE, WORD_LENGTH = 262, 16, 50
HIGHWAYS, PROJECTION, CELLS, LAYERS = 2, 512, 4096, 2
BEGIN_TEXT, END_TEXT, BEGIN_WORD, END_WORD, NOTHING = 257, 258, 259, 260, 261


class ElmoShaped(nn.Module):
    """The encoder, and a score from the mean of its words.

    Inputs:
        characters: (B, W, 50) ids of the characters of each word.

    Returns:
        (B, 1) scores.
    """

    def __init__(self) -> None:
        super().__init__()
        self.characters = nn.Embedding(CHARACTERS, CHARACTER_SIZE, padding_idx=0)
        self.convolutions = nn.ModuleList(nn.Conv1d(CHARACTER_SIZE, number, span) for span, number in FILTERS)
        width = sum(number for _, number in FILTERS)
        self.highways = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(HIGHWAYS))
        self.projection = nn.Linear(width, PROJECTION)
        self.forwards, self.backwards = (
            nn.ModuleList(nn.LSTM(PROJECTION, CELLS, batch_first=True, proj_size=PROJECTION) for _ in range(LAYERS))
            for _ in range(2)
        )
        self.score = nn.Linear(2 * PROJECTION, 1)

    @property
    def encoder(self) -> nn.Module:
        """All modules except the score."""
        return nn.ModuleList(module for module in self.children() if module is not self.score)

    def forward(self, characters: Tensor) -> Tensor:
        """Return (B, 1) scores."""
        batch, words, _ = characters.shape
        x = self.characters(characters.flatten(0, 1)).transpose(1, 2)
        x = torch.cat([convolution(x).amax(dim=-1).relu() for convolution in self.convolutions], dim=-1)
        for highway in self.highways:
            new, gate = highway(x).chunk(2, dim=-1)
            gate = gate.sigmoid()
            x = gate * x + (1 - gate) * new.relu()
        x = self.projection(x).view(batch, words, PROJECTION)
        directions = []
        for layers, is_backward in ((self.forwards, False), (self.backwards, True)):
            states = x.flip(1) if is_backward else x
            for number, lstm in enumerate(layers):
                states = lstm(states)[0] + (states if number else 0)  # a residual connection from the second layer on
            directions.append(states.flip(1) if is_backward else states)
        return self.score(torch.cat(directions, dim=-1).mean(dim=1))


def characters_of(text: str, pair: str | None = None) -> np.ndarray:
    """Return the ids of a text's characters, (1, W, 50) int64. The second text of a pair follows as a separate text.

    A word is a run of letters and digits, or one punctuation mark. A character is a byte of UTF-8.
    """
    words: list[list[int]] = []  # bytes; the ids below are one higher, because 0 is padding
    for one in (text,) if pair is None else (text, pair):
        letters = [word.encode()[: WORD_LENGTH - 2] for word in re.findall(r"\w+|[^\w\s]", one)]
        words += [[BEGIN_TEXT - 1], *map(list, letters), [END_TEXT - 1]]
    ids = np.full((1, len(words), WORD_LENGTH), NOTHING, np.int64)
    for row, word in zip(ids[0], words, strict=True):
        row[: len(word) + 2] = [BEGIN_WORD, *(byte + 1 for byte in word), END_WORD]
    return ids


def random_characters(words: int, seed: int) -> np.ndarray:
    """Return the ids of random words, (1, W, 50) int64."""
    return np.random.default_rng(seed).integers(1, 257, size=(1, words, WORD_LENGTH), dtype=np.int64)
