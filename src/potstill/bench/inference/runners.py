"""The runners of the forms: make a model's inputs from a text or at random, and run the model on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from potstill.bench.inference.models import ENCODING, Form
from potstill.bench.inference.requests import Text

Arrays = dict[str, np.ndarray]


class Runner(Protocol):
    """A loaded model."""

    @property
    def longest(self) -> int | None:
        """Largest number of tokens that it can read; None if there is no limit."""

    def encode(self, text: Text, max_length: int | None) -> Arrays:
        """Return the inputs for a text, one row, cut to `max_length` if it is not None."""

    def random(self, length: int, seed: int) -> Arrays:
        """Return one row of random tokens, or words."""

    def prepare(self, rows: Sequence[Arrays]) -> Any:
        """Return a padded batch of rows, for `run`."""

    def run(self, batch: Any) -> None:
        """Compute the outputs of the model, and nothing else. This call is timed."""


def open_runner(form: Form, threads: int) -> Runner:
    """Load the model of a form.

    Raises:
        PotstillError: the model cannot be loaded.
    """
    if form.runner == "elmo":
        return ElmoRunner()
    if form.runner == "exported":
        return ExportedRunner(form, threads)
    return TorchRunner(form)


class _Tokenised:
    """A runner whose model reads tokens."""

    tokenizer: Any
    inputs: tuple[str, ...]

    def encode(self, text: Text, max_length: int | None) -> Arrays:
        first, second = text
        encoded = self.tokenizer(
            first, second, truncation=max_length is not None, max_length=max_length, return_tensors="np"
        )
        zeros = np.zeros_like(encoded["input_ids"])
        return {name: np.asarray(encoded.get(name, zeros), np.int64) for name in self.inputs}

    def random(self, length: int, seed: int) -> Arrays:
        ids = np.random.default_rng(seed).integers(len(self.tokenizer), size=(1, length), dtype=np.int64)
        rows = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        return {name: rows[name] for name in self.inputs}

    def padded(self, rows: Sequence[Arrays]) -> Arrays:
        """Return rows as one batch, padded to the longest row."""
        padding = {"input_ids": self.tokenizer.pad_token_id or 0}
        return {name: _stacked([row[name] for row in rows], padding.get(name, 0)) for name in self.inputs}


class TorchRunner(_Tokenised):
    """A model folder as PyTorch runs it, eager or compiled."""

    def __init__(self, form: Form) -> None:
        import torch
        from transformers import AutoModel, AutoModelForSequenceClassification

        from potstill.corpus import load_tokenizer
        from potstill.export.source import Source, fit_inputs, longest_input
        from potstill.finetuning.models import load_as, load_config, load_with_head
        from potstill.sentences.encoder import SentenceEncoder
        from potstill.sentences.folder import FETCHED, has_pooling
        from potstill.student.loading import check_vocabulary
        from potstill.student.model_files import model_folder

        if form.num_labels is None and form.task == ENCODING and has_pooling(model_folder(form.path, "model", FETCHED)):
            encoder = SentenceEncoder.load(form.path, "model")
            model, self.tokenizer, self.longest = encoder, encoder.tokenizer, encoder.max_length
            self.inputs = fit_inputs(self.tokenizer, encoder.model)
        elif form.num_labels is None and form.task != ENCODING:
            source = Source.open(form.path)
            model, self.tokenizer, self.inputs, self.longest = (
                *(source.model, source.tokenizer, source.inputs),
                source.max_length,
            )
        else:
            self.tokenizer = load_tokenizer(form.path)
            if form.num_labels is not None:
                head = AutoModelForSequenceClassification
                model = load_with_head(form.path, head, self.tokenizer, 0, num_labels=form.num_labels)
            else:
                model, _ = load_as(AutoModel, form.path, load_config(form.path), "model")
            check_vocabulary(self.tokenizer, model.config, f"The model {form.path!r}")
            self.inputs = fit_inputs(self.tokenizer, model)
            self.longest = longest_input(self.tokenizer, model.config)
        self._torch = torch
        self._model: Any = model.eval()
        if form.runner == "compiled":
            # Lengths differ between requests. With dynamic shapes one graph serves all lengths.
            self._model = torch.compile(self._model, dynamic=True)

    def prepare(self, rows: Sequence[Arrays]) -> Any:
        """Return a batch as tensors."""
        return {name: self._torch.from_numpy(values) for name, values in self.padded(rows).items()}

    def run(self, batch: Any) -> None:
        """Call the model as its users do."""
        with self._torch.inference_mode():
            self._model(**batch)


class ExportedRunner(_Tokenised):
    """A folder that `export` wrote, run in its own runtime."""

    def __init__(self, form: Form, threads: int) -> None:
        from potstill.corpus import load_tokenizer
        from potstill.export.runtime import ExportedFolder
        from potstill.student.loading import check_vocabulary

        exported = ExportedFolder.read(Path(form.path).expanduser())
        self.tokenizer = load_tokenizer(str(exported.folder))
        check_vocabulary(self.tokenizer, exported.config(), f"The export in {exported.folder}")
        self.inputs, self.longest = exported.inputs, exported.max_length
        self._runtime = exported.open(threads)

    def prepare(self, rows: Sequence[Arrays]) -> Any:
        """Return a batch as arrays."""
        return self.padded(rows)

    def run(self, batch: Any) -> None:
        """Compute the logits in the runtime."""
        self._runtime.run(batch)


class ElmoRunner:
    """ELMo's shape, which reads the characters of words."""

    longest = None

    def __init__(self) -> None:
        import torch

        from potstill.bench.inference.elmo import ElmoShaped

        self._torch = torch
        self._model = ElmoShaped().eval()

    def encode(self, text: Text, max_length: int | None) -> Arrays:
        """Return the characters of the words."""
        from potstill.bench.inference.elmo import characters_of

        return {"characters": characters_of(*text)[:, :max_length]}

    def random(self, length: int, seed: int) -> Arrays:
        """Return random characters."""
        from potstill.bench.inference.elmo import random_characters

        return {"characters": random_characters(length, seed)}

    def prepare(self, rows: Sequence[Arrays]) -> Any:
        """Return a batch as a tensor."""
        return self._torch.from_numpy(_stacked([row["characters"] for row in rows], 0))

    def run(self, batch: Any) -> None:
        """Compute the scores."""
        with self._torch.inference_mode():
            self._model(batch)


def _stacked(rows: Sequence[np.ndarray], padding: int) -> np.ndarray:
    """Stack (1, L, …) rows into one (B, L, …) array, padded to the longest row."""
    longest = max(row.shape[1] for row in rows)
    if len(rows) == 1:
        return rows[0]
    stacked = np.full((len(rows), longest, *rows[0].shape[2:]), padding, rows[0].dtype)
    for place, row in zip(stacked, rows, strict=True):
        place[: row.shape[1]] = row[0]
    return stacked
