"""Compares the embeddings of an exported sentence encoder with those of its source."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.stats import rankdata

from potstill.errors import PotstillError
from potstill.export.source import EMBEDDING, ENCODER, Arrays, Source

if TYPE_CHECKING:
    from potstill.export.check import Runtime

Array = np.ndarray[Any, Any]

MOST_RANKED = 2000
"""Texts whose similarities to each other are compared: each one is compared with all others."""

NEAR = 0.01
"""Two neighbours of a text are as near if their similarities differ by at most this share of the range of all."""


@dataclass(frozen=True)
class EmbeddingAgreement:
    """How far the embeddings of two encoders are apart.

    Attributes:
        largest: largest length of a difference of two embeddings, as a share of the length of the source's.
        lowest: lowest cosine of an embedding of the source and of the export.
        mean: mean of these cosines.
        same: share of texts whose nearest neighbour is the same. Another neighbour is the same if the source finds it
            as near, up to 1 % of the range of similarities.
        order: Spearman's correlation of the similarities of each two texts.
        texts: number of texts of the last two figures.
    """

    largest: float
    lowest: float
    mean: float
    same: float
    order: float
    texts: int

    @property
    def relative(self) -> float:
        """Largest difference as a share of the source."""
        return self.largest

    def __str__(self) -> str:
        return (
            f"embeddings differ by at most {self.largest:.2%} of their length (cosine at least {self.lowest:.4f}, mean "
            f"{self.mean:.4f}); {self.same:.2%} of {self.texts:,} texts have the same nearest neighbour; Spearman's "
            f"correlation of the similarities {self.order:.4f}"
        )


@dataclass
class EmbeddingComparison:
    """Compares the embeddings of source and export, batch by batch.

    The last hidden states are compared as what becomes of them: sentence-transformers pools them itself.

    Args:
        source: the encoder as PyTorch runs it.
        exported: the same encoder in another runtime.
    """

    source: Source
    exported: Runtime
    _texts: dict[bytes, tuple[Array, Array]] = field(default_factory=dict)
    _cosines: list[Array] = field(default_factory=list)
    _largest: float = 0.0

    def run(self, inputs: Arrays, counts: bool = True) -> tuple[Arrays, Arrays]:
        """Run both encoders on a batch, and return the embeddings of the source and of the export.

        Args:
            inputs: inputs of both encoders.
            counts: whether the texts are ranked. Random tokens are not. A text that comes again is ranked once.

        Raises:
            PotstillError: the export cannot run the batch or gives other shapes, or an embedding of the source is not
                finite.
        """
        expected, found = self.source.run(inputs), self.exported.run(inputs)
        check_embeddings(self.source, expected)
        for name in ENCODER.outputs:
            if found[name].shape != expected[name].shape:
                raise PotstillError(
                    f"The {name} of the export have the shape {found[name].shape}, but those of the model have "
                    f"{expected[name].shape}."
                )
        source_side, export_side = expected[EMBEDDING], np.asarray(found[EMBEDDING], np.float32)
        for side in (export_side, self._pooled(found, inputs)):
            self._compare(source_side.astype(np.float64), side.astype(np.float64))
        if counts:
            for ids, mask, *pair in zip(
                inputs["input_ids"], inputs["attention_mask"], source_side, export_side, strict=True
            ):
                if len(self._texts) < MOST_RANKED:
                    self._texts.setdefault(ids[mask.astype(bool)].tobytes(), (pair[0], pair[1]))
        return {EMBEDDING: source_side}, {EMBEDDING: export_side}

    def _pooled(self, found: Arrays, inputs: Arrays) -> Array:
        """Return the embeddings (B, D) that the source's pooling makes of the export's last hidden states."""
        assert self.source.encoder is not None
        hidden = torch.from_numpy(np.asarray(found[ENCODER.outputs[0]], np.float32))
        with torch.inference_mode():
            pooled = self.source.encoder.pool(hidden, torch.from_numpy(inputs["attention_mask"]))
            return self.source.encoder.finish(pooled).numpy()

    def _compare(self, expected: Array, found: Array) -> None:
        length = np.maximum(np.linalg.norm(expected, axis=1), 1e-12)
        apart = float((np.linalg.norm(expected - found, axis=1) / length).max())
        self._largest = max(self._largest, apart) if np.isfinite(apart) else float("inf")
        self._cosines.append((expected * found).sum(axis=1) / length / np.maximum(np.linalg.norm(found, axis=1), 1e-12))

    def agreement(self) -> EmbeddingAgreement:
        """Return how far the two encoders are apart on all batches."""
        cosines = np.nan_to_num(np.concatenate(self._cosines), nan=-1.0)
        expected, found = (
            np.stack([pair[side] for pair in self._texts.values()]).astype(np.float64) for side in (0, 1)
        )
        same, order = _ranks(_similarities(expected), _similarities(found))
        return EmbeddingAgreement(
            self._largest, float(cosines.min()), float(cosines.mean()), same, order, len(self._texts)
        )


def check_embeddings(source: Source, found: Arrays) -> None:
    """Check the outputs of an encoder.

    Raises:
        PotstillError: they are not all finite numbers.
    """
    if not all(np.isfinite(of).all() for of in found.values()):
        raise PotstillError(
            f"The embeddings of the model {source.name!r} are not all finite numbers, although its weights are. Its "
            "training diverged, so an export cannot be compared with it: take an earlier checkpoint."
        )


def _similarities(embeddings: Array) -> Array:
    """Return the cosines (N, N) of embeddings (N, D)."""
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    return unit @ unit.T


def _ranks(expected: Array, found: Array) -> tuple[float, float]:
    """Return the share of equal nearest neighbours, and Spearman's correlation of similarities (N, N)."""
    if len(expected) < 3 or not np.isfinite(found).all():
        return float(np.isfinite(found).all()), float(np.isfinite(found).all())
    pairs = np.triu_indices(len(expected), 1)
    spread = np.ptp(expected[pairs])
    ones, others = rankdata(expected[pairs]), rankdata(found[pairs])
    order = float(np.corrcoef(ones, others)[0, 1]) if spread and np.ptp(found[pairs]) else 1.0
    for similarities in (expected, found):
        np.fill_diagonal(similarities, -np.inf)
    chosen = np.take_along_axis(expected, found.argmax(axis=1)[:, None], axis=1)[:, 0]
    near = expected.max(axis=1) - chosen <= max(NEAR * spread, 1e-9)
    return float(near.mean()), order
