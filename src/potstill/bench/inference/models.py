"""The models, which must have the same task, and the forms in which each is run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from potstill.bench.inference.inference_arguments import ELMO
from potstill.bench.inference.requests import STSB
from potstill.errors import PotstillError, first_line
from potstill.export.runtime import ExportedFolder
from potstill.export.source import ENCODER, HEADS, Source
from potstill.finetuning.models import load_config
from potstill.sentences.encoder import SentenceEncoder, load_encoder_tokenizer
from potstill.sentences.folder import MODULES, has_pooling, read_layout
from potstill.student.model_files import CONFIG, model_folder
from potstill.student.quiet import quiet_loading

Runner = Literal["eager", "compiled", "exported", "elmo"]
ENCODING = ENCODER.task
SCORING = "text-classification"


@dataclass(frozen=True)
class Model:
    """A model of `--models`.

    Attributes:
        name: as given.
        path: folder or hub name, as given.
        task: the name that `pipeline` has for it; feature-extraction for an encoder without a head.
        config: of the model, with the labels of a new head if it gets one.
        new_head: whether it is run with a new head for labels, because it has another head or none.
        exported: description of its folder if `export` wrote it, else None.
    """

    name: str
    path: str
    task: str
    config: PreTrainedConfig
    new_head: bool = False
    exported: ExportedFolder | None = None

    @property
    def auto(self) -> Any:
        """The class of transformers that loads it."""
        return next((head.auto for head in HEADS.values() if head.task == self.task), AutoModel)

    def shape(self, device: str = "meta") -> PreTrainedModel:
        """Return the model without its weights, and with attention as plain matrix products.

        Args:
            device: `meta` for no weights at all, or `cpu` for random ones.

        Raises:
            PotstillError: the model cannot be built from its config.
        """
        try:
            with torch.device(device), quiet_loading():
                return self.auto.from_config(self.config, attn_implementation="eager").eval()
        except Exception as error:  # of several libraries
            raise PotstillError(f"The model {self.name!r} cannot be built: {first_line(error)}.") from error

    def as_run(self, device: str) -> tuple[nn.Module, PreTrainedModel]:
        """Return the module that computes the logits, without weights, and the model inside it.

        For an export, the module may compute less than the model, and takes the inputs that its folder names. Otherwise
        it is the model, and takes token ids.

        Args:
            device: see `shape`.

        Raises:
            PotstillError: the model cannot be built from its config.
        """
        shape = self.shape(device)
        if self.exported is None:
            return shape, shape
        head = next((head for head in HEADS.values() if head.task == self.task), ENCODER)
        no_tokenizer: Any = None
        exported, encoder = self.exported, None
        if head is ENCODER:
            layout, tokenizer = read_layout(exported.folder, self.name), load_encoder_tokenizer(exported.folder)
            encoder = SentenceEncoder.of_layout(layout, shape, tokenizer, self.name).to(device)
        source = Source(
            *(self.name, exported.folder, shape, no_tokenizer, head, exported.inputs),
            exported.max_length,
            encoder,
        )
        return source.module(), shape

    def bytes_on_disk(self) -> int:
        """Return the size of the weight files; with a new head, the size that they would have."""
        if self.exported is not None:
            return self.exported.bytes
        if self.new_head:
            return 4 * sum(parameter.numel() for parameter in self.shape().parameters())
        return sum(file.stat().st_size for file in model_folder(self.path, "model").glob("*.safetensors"))


@dataclass(frozen=True)
class Form:
    """One way of running a model: a row of the report.

    Attributes:
        name: of the model.
        title: of the form, for the report.
        runner: the kind of runner that runs it.
        path: folder or hub name; empty for ELMo's shape.
        task: see `Model`.
        num_labels: labels of a new head; None if the model keeps its own head.
        weight_bits: bits of a weight of a matrix in memory. Below 16 they are integers.
    """

    name: str
    title: str
    runner: Runner
    path: str
    task: str
    num_labels: int | None = None
    weight_bits: int = 32

    def __str__(self) -> str:
        return f"{self.name} ({self.title})"


def read_models(named: list[tuple[str, str]], data: str | None) -> list[Model]:
    """Read the descriptions of the models, and check that they can be compared.

    For STS-B all models must score texts. A model of PyTorch with another head, or with none, gets a new head.

    Args:
        named: name, and folder or hub name, of each.
        data: `--data`.

    Raises:
        PotstillError: a model is missing or cannot be run, or two models do different tasks.
    """
    models = [_read(name, path) for name, path in named]
    if data == STSB:
        models = _scoring(models)
    for first, other in combinations(models, 2):
        if other.task != first.task:
            raise PotstillError(
                f"The models {first.name!r} ({first.task}) and {other.name!r} ({other.task}) do different tasks: their "
                "times cannot be compared."
            )
        if first.task in (SCORING, "token-classification") and not _same_labels(first, other):
            raise PotstillError(
                f"The models {first.name!r} (labels {_label_names(first)}) and {other.name!r} (labels "
                f"{_label_names(other)}) do different tasks: compare models that are fine-tuned on the same task."
            )
    return models


def forms_of(model: Model, compiled: bool) -> list[Form]:
    """Return the forms in which a model is run."""
    form = Form(model.name, "PyTorch, eager", "eager", model.path, model.task)
    if model.exported is not None:
        exported = model.exported
        return [replace(form, title=exported.title, runner="exported", weight_bits=exported.bits_in_memory)]
    if model.new_head:
        form = replace(form, num_labels=model.config.num_labels)
    return [form, replace(form, title="PyTorch, compiled", runner="compiled")] if compiled else [form]


def elmo_form() -> Form:
    """Return the row of ELMo's shape."""
    return Form(ELMO, "PyTorch, eager", "elmo", "", ENCODING)


def _read(name: str, path: str) -> Model:
    exported = None
    folder = Path(path).expanduser()
    if ExportedFolder.is_one(folder):
        exported = ExportedFolder.read(folder)
        exported.package  # noqa: B018 (it raises if the package is missing, before any process starts)
    elif folder.is_dir() and not (folder / CONFIG).is_file():
        raise PotstillError(
            f"--models {name}={path}: the folder holds no model: it has neither a {CONFIG} with weights nor the files "
            "of potstill export."
        )
    try:
        config = exported.config() if exported else load_config(path)
    except PotstillError as error:
        raise PotstillError(f"--models {name}={path}: {str(error).rstrip('.')}.") from error
    if exported is not None:
        return Model(name, path, exported.task, config, exported=exported)
    if has_pooling(model_folder(path, "model", (MODULES,))):
        return Model(name, path, ENCODING, config)
    architecture = (config.architectures or ["Model"])[0]
    for ending, head in HEADS.items():
        if architecture.endswith(ending):
            return Model(name, path, head.task, config)
    if architecture.endswith("Model") and not config.is_encoder_decoder:
        return Model(name, path, ENCODING, config)
    raise PotstillError(
        f"--models {name}={path}: a {architecture} cannot be measured: give encoders or models for "
        f"{', '.join(head.task for head in HEADS.values())}."
    )


def _scoring(models: list[Model]) -> list[Model]:
    """Return the models. Those without a head for labels get a new one, with as many labels as the others have."""
    for model in models:
        if model.task != SCORING and (model.exported or model.task not in (ENCODING, "fill-mask")):
            raise PotstillError(
                f"--models {model.name}={model.path}: it is for {model.task}, and --data {STSB} asks for models that "
                "score texts: give such models, or a file of text as --data."
            )
    labels = next((model.config.num_labels for model in models if model.task == SCORING), 1)
    found = []
    for model in models:
        if model.task != SCORING:
            model.config.num_labels = labels
            model = replace(model, task=SCORING, new_head=True)
        found.append(model)
    return found


def _same_labels(model: Model, other: Model) -> bool:
    """Return whether two models have the same labels. Labels with default names (`LABEL_0`, …) match any others."""
    if model.config.num_labels != other.config.num_labels:
        return False
    names = [{str(label).lower() for label in one.config.id2label.values()} for one in (model, other)]
    numbered = {f"label_{number}" for number in range(model.config.num_labels)}
    return numbered in names or names[0] == names[1]


def _label_names(model: Model) -> str:
    return ", ".join(str(name) for name in model.config.id2label.values())
