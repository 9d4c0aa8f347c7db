"""Exported sentence encoders and rerankers in place of those of PyTorch: they run in their own runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from potstill.corpus import load_tokenizer
from potstill.errors import PotstillError
from potstill.export.runtime import ExportedFolder
from potstill.export.source import EMBEDDING, ENCODER
from potstill.sentences.encoder import SentenceEncoder, load_encoder_tokenizer
from potstill.sentences.folder import MODULES, read_layout
from potstill.sentences.reranker import Reranker
from potstill.student.loading import check_vocabulary
from potstill.wording import counted


class RuntimeModel(nn.Module):
    """An exported model that is called like one of transformers. It computes on the CPU, without gradients.

    Args:
        exported: the folder.
        threads: of one request; the runtime's choice if None.

    Raises:
        PotstillError: the runtime cannot be used, or the model or its config is damaged.
    """

    device = torch.device("cpu")

    def __init__(self, exported: ExportedFolder, threads: int | None = None) -> None:
        super().__init__()
        self.config = exported.config()
        self._inputs, self._runtime = exported.inputs, exported.open(threads)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the outputs by name for (B, L) inputs."""
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        found = self._runtime.run({name: given[name].cpu().numpy() for name in self._inputs})
        return ModelOutput({name: torch.from_numpy(array) for name, array in found.items()})


class ExportedEncoder(SentenceEncoder):
    """A sentence encoder whose embeddings come from its export."""

    def hidden_and_embeddings(self, input_ids: Tensor, attention_mask: Tensor, **inputs: Any) -> tuple[Tensor, Tensor]:
        """Return the last hidden states (B, L, H) and the embeddings (B, D) of a batch of texts."""
        outputs = self.model(input_ids, attention_mask, **inputs)
        return outputs[ENCODER.outputs[0]], outputs[EMBEDDING]


def load_exported(exported: ExportedFolder, threads: int | None = None) -> ExportedEncoder | Reranker:
    """Load an exported sentence encoder, or an exported reranker: a model for text classification with one score.

    Args:
        exported: the folder.
        threads: of one request; the runtime's choice if None.

    Raises:
        PotstillError: it is neither, its files are damaged or missing, or its runtime cannot be used.
    """
    folder, model_is = exported.folder, f"the export in {str(exported.folder)!r}"
    if exported.task == ENCODER.task:
        return _encoder(exported, threads, folder, model_is)
    config = exported.config()
    if exported.task != "text-classification" or config.num_labels != 1:
        labels = f" with {counted(config.num_labels, 'label')}" if exported.task == "text-classification" else ""
        raise PotstillError(
            f"{model_is} is for {exported.task}{labels}, so it is neither a sentence encoder nor a reranker: export "
            "one of these"
        )
    tokenizer = load_tokenizer(str(folder), role="export")
    check_vocabulary(tokenizer, config, model_is)
    model: Any = RuntimeModel(exported, threads)
    return Reranker(model, tokenizer, exported.max_length)


def _encoder(exported: ExportedFolder, threads: int | None, folder: Path, model_is: str) -> ExportedEncoder:
    layout = read_layout(folder, model_is)
    if not layout.stated or EMBEDDING not in exported.outputs:
        lacking = f"{MODULES}" if not layout.stated else f"output {EMBEDDING}"
        raise PotstillError(f"{model_is} lacks its {lacking}: export the model again")
    tokenizer = load_encoder_tokenizer(folder)
    check_vocabulary(tokenizer, exported.config(), model_is)
    return ExportedEncoder.of_layout(layout, RuntimeModel(exported, threads), tokenizer, model_is)
