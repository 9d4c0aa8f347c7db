"""Sentence encoders and rerankers as the suites use them: embeddings of texts, and scores of pairs of texts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from potstill.errors import PotstillError
from potstill.export.loaded import load_exported
from potstill.export.runtime import ExportedFolder
from potstill.finetuning.models import load_config
from potstill.live_line import LiveLine
from potstill.sentences.encoder import Report, SentenceEncoder
from potstill.sentences.folder import FETCHED, MODULES, has_pooling, read_layout
from potstill.sentences.reranker import Reranker
from potstill.student.model_files import CONFIG, model_folder
from potstill.training.run_record import model_fingerprint

Kind = Literal["sentence", "query", "passage"]
"""What a text is. Some encoders put another prompt in front of each kind."""

PROMPTS: dict[Kind, tuple[str, ...]] = {
    "sentence": (),
    "query": ("query",),
    "passage": ("document", "passage", "corpus"),
}
"""Names of the prompts that sentence-transformers looks for; the encoder's default prompt if it has none of these."""

OTHER_HEADS = ("ForQuestionAnswering", "ForTokenClassification", "ForMultipleChoice", "ForCausalLM")


class Scorer:
    """A model, on the CPU until `to` moves it.

    Args:
        path: folder or hub name; a folder that `export` wrote runs in its own runtime, on the CPU.
        max_length: longest input in tokens; the model's own if None.
        batch_size: texts at a time.

    Attributes:
        exported: description of the folder if `export` wrote it, else None.
        weights: fingerprint of the weights.
        cut: number of texts so far that were longer than the model reads and were cut; rerankers do not count them.
        settings: what its scores depend on besides its weights, by name, as results record it.

    Raises:
        PotstillError: there is no such model, its files are damaged, it is neither a sentence encoder nor a reranker,
            or `max_length` is more than it reads.
    """

    def __init__(self, path: str, max_length: int | None, batch_size: int) -> None:
        self.exported: ExportedFolder | None = None
        self.model: SentenceEncoder | Reranker
        if ExportedFolder.is_one(Path(path).expanduser()):
            self.exported = ExportedFolder.read(Path(path).expanduser())
            self.model = load_exported(self.exported)
        elif is_reranker(path):
            self.model = Reranker.load(path, "model")
        else:
            self.model = SentenceEncoder.load(path, "model")
        self.path, self.batch_size = path, batch_size
        if max_length is not None:
            limit = self.model.max_length
            if max_length > limit:
                raise PotstillError(
                    f"--max_length is {max_length}, but the model {path!r} reads at most {limit} tokens: lower it."
                )
            self.model.max_length = max_length
        if self.exported is not None:
            self.weights = self.exported.fingerprint
        else:
            folder = model_folder(path, "model", FETCHED)
            transformer = folder if isinstance(self.model, Reranker) else read_layout(folder, path).transformer
            self.weights = model_fingerprint(transformer)
        self.device, self.cut = torch.device("cpu"), 0

    def to(self, device: torch.device | str) -> Scorer:
        """Move the model to a device, and return the scorer."""
        self.device = torch.device(device)
        (self.model.model if isinstance(self.model, Reranker) else self.model).to(self.device)
        return self

    @property
    def embeds(self) -> bool:
        """Whether the model makes embeddings; a reranker does not."""
        return isinstance(self.model, SentenceEncoder)

    @property
    def settings(self) -> dict[str, Any]:
        """See the attribute."""
        runtime = {} if self.exported is None else {"runtime": self.exported.title}
        if isinstance(self.model, Reranker):
            return {"kind": "reranker", "max_length": self.model.max_length} | runtime
        encoder = self.model
        digest = hashlib.sha256()
        for name, tensor in encoder.dense.state_dict().items():
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return {
            "kind": "sentence encoder",
            "max_length": encoder.max_length,
            "pooling": "+".join(encoder.pooling.modes),
            "dense": digest.hexdigest()[:16] if len(encoder.dense) else None,
            "normalize": encoder.normalize,
            "similarity": self._similarity,
            "prompts": {kind: prompt for kind in PROMPTS if (prompt := self._prompt(kind))},
        } | runtime

    def embeddings(self, texts: Sequence[str], kind: Kind) -> Tensor:
        """Return the embeddings of texts, (N, D) float32 on the scorer's device. Equal texts are encoded once.

        Raises:
            PotstillError: an embedding is not finite.
        """
        assert isinstance(self.model, SentenceEncoder)
        places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        with _reporter(len(places), "texts") as report:
            found = self.model.encode([*places], batch_size=self.batch_size, prompt=self._prompt(kind), report=report)
        self.cut += self.model.cut
        if not np.isfinite(found).all():
            raise PotstillError(
                f"the model {self.path!r} makes embeddings that are not finite, so its weights are broken: leave it "
                "out."
            )
        return torch.from_numpy(found).to(self.device)[[places[text] for text in texts]]

    def vectors(self, texts: Sequence[str], kind: Kind) -> Tensor:
        """Return embeddings whose inner products are the encoder's own similarity: for cosine their lengths are 1."""
        found = self.embeddings(texts, kind)
        return found if self._similarity == "dot" else F.normalize(found, dim=1)

    def cosines(self, texts: Sequence[str], others: Sequence[str]) -> NDArray[np.float64]:
        """Return the cosine of each text with its other, (N,)."""
        found = self.embeddings([*texts, *others], "sentence").double()
        return F.cosine_similarity(found[: len(texts)], found[len(texts) :]).cpu().numpy()

    def scores(self, queries: Sequence[str], passages: Sequence[str]) -> NDArray[np.float64]:
        """Return how well each passage fits its query, (N,): the reranker's score, or the encoder's own similarity.

        Raises:
            PotstillError: a score is not finite.
        """
        if not isinstance(self.model, Reranker):
            one, other = self.vectors(queries, "query").double(), self.vectors(passages, "passage").double()
            return (one * other).sum(1).cpu().numpy()
        pairs = {pair: place for place, pair in enumerate(dict.fromkeys(zip(queries, passages, strict=True)))}
        with _reporter(len(pairs), "pairs") as report:
            texts = map(list, zip(*pairs, strict=True))
            found = self.model.score(*texts, self.batch_size, report).astype(np.float64)
        if not np.isfinite(found).all():
            raise PotstillError(
                f"the model {self.path!r} gives scores that are not finite, so its weights are broken: leave it out."
            )
        return found[[pairs[pair] for pair in zip(queries, passages, strict=True)]]

    @property
    def _similarity(self) -> str:
        assert isinstance(self.model, SentenceEncoder)
        return "dot" if self.model.similarity_fn_name == "dot" else "cosine"

    def _prompt(self, kind: Kind) -> str:
        """Return the text that is put in front of texts of a kind; an empty text if there is none."""
        assert isinstance(self.model, SentenceEncoder)
        prompts = self.model.prompts
        name = next((name for name in PROMPTS[kind] if name in prompts), self.model.default_prompt_name)
        return prompts.get(name, "") if name is not None else ""


@contextmanager
def _reporter(count: int, what: str) -> Iterator[Report]:
    """Yield what shows how many texts or pairs are done."""
    with LiveLine() as progress:
        yield lambda done: progress.update_count(done, count, what, "the longest first: ")


def is_reranker(path: str) -> bool:
    """Return whether a model is a reranker, and not a sentence encoder, by its files.

    Raises:
        PotstillError: it is neither; or it has no config that can be read.
    """
    folder = model_folder(path, "model", FETCHED)
    if (folder / MODULES).is_file() and (has_pooling(folder) or not (folder / CONFIG).is_file()):
        return False
    config = load_config(path, "model")
    for architecture in config.architectures or []:
        several = architecture.endswith("ForSequenceClassification") and config.num_labels != 1
        if several or architecture.endswith(OTHER_HEADS):
            what = f"{config.num_labels} labels" if several else f"the head of a {architecture}"
            raise PotstillError(
                f"the model {path!r} is neither a sentence encoder nor a reranker: it has {what}; give an encoder, or "
                "a model for sequence classification with one label"
            )
        if architecture.endswith("ForSequenceClassification"):
            return True
    return False
