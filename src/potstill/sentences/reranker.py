"""Rerankers: cross-encoders, which read a query and a passage together and give one score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerFast

from potstill.corpus import load_tokenizer
from potstill.errors import PotstillError
from potstill.finetuning.models import load_config, load_trained
from potstill.sentences.encoder import Report
from potstill.student import takes_token_types, usable_length
from potstill.student.loading import check_vocabulary


@dataclass
class Reranker:
    """A cross-encoder (Nogueira and Cho 2019): an encoder with a head for sequence classification of one score.

    Attributes:
        model: the model, in evaluation mode.
        tokenizer: its tokenizer.
        max_length: longest input in tokens, query and passage together; the longer of the two is cut first.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    max_length: int

    @classmethod
    def load(cls, name_or_path: str, role: str = "model") -> Reranker:
        """Load a reranker in float32, on the CPU.

        Args:
            name_or_path: folder or hub name, also of a CrossEncoder of sentence-transformers.
            role: the word for the model in messages.

        Raises:
            PotstillError: there is no such model, it has no trained head, its head has several scores, or its files are
                damaged.
        """
        config = load_config(name_or_path, role)
        if config.num_labels != 1:
            raise PotstillError(
                f"the {role} {name_or_path!r} is no reranker: it has {config.num_labels} labels, and a reranker has one"
            )
        model = load_trained(AutoModelForSequenceClassification, name_or_path, config, role)
        tokenizer = load_tokenizer(name_or_path, takes_token_types(config), role)
        if tokenizer.pad_token is None:
            raise PotstillError(
                f"The tokenizer of the {role} {name_or_path!r} has no padding token: set its pad_token."
            )
        check_vocabulary(tokenizer, config, f"the {role} {name_or_path!r}")
        longest = usable_length(config) or tokenizer.model_max_length
        return cls(model, tokenizer, min(tokenizer.model_max_length, longest))

    @torch.inference_mode()
    def score(
        self, queries: Sequence[str], passages: Sequence[str], batch_size: int = 64, report: Report | None = None
    ) -> NDArray[np.float32]:
        """Return the score of each query with its passage, (N,): the output of the head without an activation.

        Args:
            queries: N texts.
            passages: N texts.
            batch_size: pairs at a time; pairs of similar length are in one batch.
            report: is called with the number of pairs that are done, after each batch.
        """
        lengths = [len(query) + len(passage) for query, passage in zip(queries, passages, strict=True)]
        order = np.argsort(lengths, kind="stable")[::-1]
        scores = np.empty(len(queries), np.float32)
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            batch: Any = self.tokenizer(
                [queries[place] for place in places],
                [passages[place] for place in places],
                truncation="longest_first",
                max_length=self.max_length,
                padding=True,
                return_tensors="pt",
            )
            scores[places] = self.model(**batch.to(self.model.device)).logits[:, 0].float().cpu().numpy()
            if report is not None:
                report(start + len(places))
        return scores
