"""The sizes of a new BiLSTM, and where its tokenizer and its embeddings come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from potstill.errors import PotstillError

NAME = "bilstm"
"""The value of `--model` for a new BiLSTM."""

RANDOM = "random"

EMBEDDING_SIZE = 300
"""The width of the embeddings in the paper."""


@dataclass(frozen=True)
class BiLSTMOptions:
    """The options of a new BiLSTM.

    Attributes:
        hidden_size: units of the LSTM in each direction; the paper tried 150 and 300.
        embedding_size: width of an embedding; None for 300, or for the width of the embeddings to begin with if those
            are narrower.
        intermediate_size: width of the layer with the ReLU; the paper tried 200 and 400.
        dropout: see `BiLSTMConfig`.
        tokenizer: folder or hub name of the tokenizer; None for the teacher's.
        embeddings: folder or hub name of the model whose word embeddings both channels begin with; `random`; None for
            the teacher's if its tokenizer is the same, else random.

    Raises:
        PotstillError: a value is not valid.
    """

    hidden_size: int = 150
    embedding_size: int | None = None
    intermediate_size: int = 200
    dropout: float = 0.2
    tokenizer: str | None = None
    embeddings: str | None = None

    def __post_init__(self) -> None:
        for name in ("hidden_size", "embedding_size", "intermediate_size"):
            value = getattr(self, name)
            if name == "embedding_size" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise PotstillError(f"--bilstm: {name} is {value!r}: it must be a whole number above 0.")
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise PotstillError(f"--bilstm: dropout is {self.dropout!r}: it must be a share, from 0 to below 1.")
        for name in ("tokenizer", "embeddings"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                raise PotstillError(f"--bilstm: {name} is {value!r}: it must be the folder or the name of a model.")

    @classmethod
    def read(cls, given: Any) -> BiLSTMOptions:
        """Return the options of a mapping.

        Raises:
            PotstillError: it is no mapping, or it names something else.
        """
        if not isinstance(given, Mapping):
            raise PotstillError(f"--bilstm is {given!r}: it must be a mapping, such as {{hidden_size: 150}}.")
        known = [field.name for field in fields(cls)]
        unknown = next((name for name in given if name not in known), None)
        if unknown is not None:
            raise PotstillError(f"--bilstm: there is no {unknown!r}; it takes {', '.join(known)}.")
        return cls(**given)
