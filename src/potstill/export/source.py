"""The model that is exported: its head, its inputs and its logits."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from potstill.corpus import load_tokenizer
from potstill.errors import PotstillError
from potstill.export.module import EncoderModule, ExportModule
from potstill.export.quiet import quiet
from potstill.finetuning.models import load_as, load_config
from potstill.sentences.encoder import SentenceEncoder
from potstill.sentences.folder import FETCHED, MODULES, has_pooling, read_layout
from potstill.student import takes_token_types, usable_length
from potstill.student.loading import check_vocabulary
from potstill.student.model_files import model_folder

Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Head:
    """A head, which decides the task of a model.

    Attributes:
        task: the name that `pipeline` has for it.
        auto: the class that loads models with this head.
        outputs: names of its logits, in order.
    """

    task: str
    auto: Any
    outputs: tuple[str, ...] = ("logits",)


HEADS = {
    "ForMaskedLM": Head("fill-mask", AutoModelForMaskedLM),
    "ForCausalLM": Head("text-generation", AutoModelForCausalLM),
    "LMHeadModel": Head("text-generation", AutoModelForCausalLM),
    "ForSequenceClassification": Head("text-classification", AutoModelForSequenceClassification),
    "ForTokenClassification": Head("token-classification", AutoModelForTokenClassification),
    "ForQuestionAnswering": Head("question-answering", AutoModelForQuestionAnswering, ("start_logits", "end_logits")),
}
ENCODER = Head("feature-extraction", AutoModel, ("last_hidden_state", "sentence_embedding"))
"""A sentence encoder, which has no head. sentence-transformers' ONNX and OpenVINO backends and the pipeline of
transformers.js ask for an output with the name of the first. optimum-intel refuses a model with the two outputs
`token_embeddings` and `sentence_embedding`."""

EMBEDDING = ENCODER.outputs[1]

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class Source:
    """A model as PyTorch runs it.

    Attributes:
        name: folder or hub name, as given.
        folder: where its files are.
        model: in float32, on the CPU, in evaluation mode.
        tokenizer: of the model.
        head: of the model.
        inputs: names of its inputs, in order, each (B, L) int64.
        max_length: longest input, in tokens.
        encoder: the whole sentence encoder whose transformer `model` is; None for a model with a head.
    """

    name: str
    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    head: Head
    inputs: tuple[str, ...]
    max_length: int
    encoder: SentenceEncoder | None = None

    @classmethod
    def open(cls, name: str) -> Source:
        """Load a model with the head that its config names, or a sentence encoder.

        A folder of sentence-transformers and a model without a head are sentence encoders.

        Raises:
            PotstillError: there is no such model, its head is not in `HEADS`, its weights are damaged or incomplete,
                or its tokenizer gives ids that the model cannot read.
        """
        if has_pooling(model_folder(name, "model", (MODULES,))):
            return cls._open_encoder(name)
        config = load_config(name)
        architecture = (config.architectures or ["none"])[0]
        if is_headless(architecture):
            return cls._open_encoder(name)
        head = next((head for ending, head in HEADS.items() if architecture.endswith(ending)), None)
        if head is None:
            raise PotstillError(
                f"The model {name!r} is a {architecture}, which has no head to export: give a model for "
                f"{', '.join(dict.fromkeys(head.task for head in HEADS.values()))}, or a sentence encoder."
            )
        folder = model_folder(name, "model")
        tokenizer = load_tokenizer(name)
        check_vocabulary(tokenizer, config, f"The model {name!r}")
        if head.task == "text-generation" and tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token  # nothing attends to padding, so any token serves
        needed = ("pad_token", "mask_token") if head.task == "fill-mask" else ("pad_token",)
        for token in needed:
            if getattr(tokenizer, token) is None:
                raise PotstillError(f"The tokenizer of the model {name!r} has no {token}: set it in its settings.")
        with quiet():  # transformers imports other installed packages, which may warn about the machine
            model, report = load_as(head.auto, name, config, "model")
        lacking = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
        if lacking:
            raise PotstillError(
                f"The weights of the model {name!r} are incomplete (its files lack {lacking[0]} as its config has it): "
                "copy or download it again."
            )
        inputs = fit_inputs(tokenizer, model)
        return cls(name, folder, model.eval(), tokenizer, head, inputs, longest_input(tokenizer, config))

    @classmethod
    def _open_encoder(cls, name: str) -> Source:
        encoder = SentenceEncoder.load(name, "model")
        tokenizer, model = encoder.tokenizer, encoder.model
        if tokenizer.pad_token is None:
            raise PotstillError(f"The tokenizer of the model {name!r} has no pad_token: set it in its settings.")
        folder = read_layout(model_folder(name, "model", FETCHED), f"the model {name!r}").transformer
        inputs = fit_inputs(tokenizer, model)
        return cls(name, folder, model, tokenizer, ENCODER, inputs, encoder.max_length, encoder)

    @property
    def threshold(self) -> float | None:
        """The probability from which a label is meant, if a text may have several; None for other models."""
        config = self.model.config
        several = getattr(config, "problem_type", None) == "multi_label_classification"
        text = self.head.task == "text-classification"
        return float(getattr(config, "threshold", 0.5)) if several and text else None

    @property
    def is_regression(self) -> bool:
        """Whether the model gives a text a number instead of a class."""
        return self.head.task == "text-classification" and self.model.config.num_labels == 1

    def module(self) -> nn.Module:
        """Return the module to export. It takes `inputs` in order and returns the logits of `head.outputs` in order."""
        reads_first_token = self.head.task == "text-classification"
        if self.encoder is not None:
            encoder = copy.deepcopy(self.encoder)
            encoder.model.config.use_cache = False
            return EncoderModule(encoder, self.inputs, self.head.outputs).eval()
        model = copy.deepcopy(self.model)
        model.config.use_cache = False  # a causal model would return its keys and values beside the logits
        return ExportModule(model, self.inputs, self.head.outputs, reads_first_token).eval()

    def run(self, inputs: Arrays) -> Arrays:
        """Return the float32 logits, or hidden states and embeddings, by name of output."""
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(inputs[name]) for name in self.inputs}
            if self.encoder is not None:
                found = self.encoder.hidden_and_embeddings(**tensors)
                return {name: of.numpy() for name, of in zip(self.head.outputs, found, strict=True)}
            outputs = self.model(**tensors)
        return {name: outputs[name].numpy() for name in self.head.outputs}

    def tokenise(self, texts: list[str], pairs: list[str] | None = None) -> Arrays:
        """Return the model's inputs for texts or pairs, cut to its length and padded to the longest."""
        encoded = self.tokenizer(
            texts, pairs, padding=True, truncation=True, max_length=self.max_length, return_tensors="np"
        )
        return {name: np.asarray(encoded[name], np.int64) for name in self.inputs}


def is_headless(architecture: str) -> bool:
    """Return whether a class of transformers has no head, by its name."""
    return architecture.endswith("Model") and not any(architecture.endswith(ending) for ending in HEADS)


def fit_inputs(tokenizer: PreTrainedTokenizerFast, model: PreTrainedModel) -> tuple[str, ...]:
    """Return the names of a model's inputs, and set the tokenizer to give exactly these, now and after it is saved.

    The inputs are those that both the tokenizer and the model know. Token types are left out if the model has fewer
    than two of them, because its tokenizer may still number two.

    Args:
        tokenizer: of the model; changed.
        model: takes the inputs in `INPUTS`, or some of them.
    """
    taken = inspect.signature(type(model).forward).parameters
    given = {"input_ids", "attention_mask", *tokenizer.model_input_names}
    if not takes_token_types(model.config):
        given.discard("token_type_ids")
    inputs = tuple(name for name in INPUTS if name in taken and name in given)
    tokenizer.model_input_names = list(inputs)
    tokenizer.init_kwargs["model_input_names"] = list(inputs)  # only the settings in here are saved
    return inputs


def longest_input(tokenizer: PreTrainedTokenizerFast, config: PreTrainedConfig) -> int:
    """Return the largest number of tokens that a model can read."""
    return min(tokenizer.model_max_length, usable_length(config) or 512)
