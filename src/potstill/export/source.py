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
from potstill.export.module import ExportModule
from potstill.export.quiet import quiet
from potstill.finetuning.models import load_as, load_config
from potstill.student import takes_token_types, usable_length
from potstill.student.loading import check_vocabulary, model_folder

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
    """

    name: str
    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    head: Head
    inputs: tuple[str, ...]
    max_length: int

    @classmethod
    def open(cls, name: str) -> Source:
        """Load a model with the head that its config names.

        Raises:
            PotstillError: there is no such model, its head is not in `HEADS`, its weights are damaged or incomplete,
                or its tokenizer gives ids that the model cannot read.
        """
        config = load_config(name)
        architecture = (config.architectures or ["none"])[0]
        head = next((head for ending, head in HEADS.items() if architecture.endswith(ending)), None)
        if head is None:
            raise PotstillError(
                f"The model {name!r} is a {architecture}, which has no head to export: give a model for "
                f"{', '.join(dict.fromkeys(head.task for head in HEADS.values()))}."
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
                f"The weights of the model {name!r} are incomplete: its files lack {lacking[0]} as its config has it."
            )
        inputs = fit_inputs(tokenizer, model)
        return cls(name, folder, model.eval(), tokenizer, head, inputs, longest_input(tokenizer, config))

    @property
    def is_regression(self) -> bool:
        """Whether the model gives a text a number instead of a class."""
        return self.head.task == "text-classification" and self.model.config.num_labels == 1

    def module(self) -> nn.Module:
        """Return the module to export. It takes `inputs` in order and returns the logits of `head.outputs` in order."""
        reads_first_token = self.head.task == "text-classification"
        model = copy.deepcopy(self.model)
        model.config.use_cache = False  # a causal model would return its keys and values beside the logits
        return ExportModule(model, self.inputs, self.head.outputs, reads_first_token).eval()

    def run(self, inputs: Arrays) -> Arrays:
        """Return the float32 logits by name of output."""
        with torch.inference_mode():
            outputs = self.model(**{name: torch.from_numpy(inputs[name]) for name in self.inputs})
        return {name: outputs[name].numpy() for name in self.head.outputs}

    def tokenise(self, texts: list[str], pairs: list[str] | None = None) -> Arrays:
        """Return the model's inputs for texts or pairs, cut to its length and padded to the longest."""
        encoded = self.tokenizer(
            texts, pairs, padding=True, truncation=True, max_length=self.max_length, return_tensors="np"
        )
        return {name: np.asarray(encoded[name], np.int64) for name in self.inputs}


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
