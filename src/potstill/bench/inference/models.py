"""What the models are: their tasks, which must be the same, and the forms that each is run in."""

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
from potstill.export.source import HEADS, Source
from potstill.finetuning.models import load_config
from potstill.student.loading import CONFIG, model_folder, quiet_loading

Runner = Literal["eager", "compiled", "exported", "elmo"]
ENCODING = "feature-extraction"
SCORING = "text-classification"


@dataclass(frozen=True)
class Model:
    """A model as it was named.

    Attributes:
        name: as given.
        path: folder or hub name, as given.
        task: as `pipeline` calls it; feature-extraction for an encoder without a head.
        config: of the model, with the labels of a new head if it gets one.
        new_head: whether it is run under a new head for labels, in place of its own or none.
        exported: what its folder says of itself if `export` wrote it, else None.
    """

    name: str
    path: str
    task: str
    config: PreTrainedConfig
    new_head: bool = False
    exported: ExportedFolder | None = None

    @property
    def auto(self) -> Any:
        """The class that loads it."""
        return next((head.auto for head in HEADS.values() if head.task == self.task), AutoModel)

    def shape(self, device: str = "meta") -> PreTrainedModel:
        """Return it with attention made of plain matrix products, and without its weights.

        Args:
            device: where there are none at all, or `cpu`, where they are random.

        Raises:
            PotstillError: there is no such model for its config.
        """
        try:
            with torch.device(device), quiet_loading():
                return self.auto.from_config(self.config, attn_implementation="eager").eval()
        except Exception as error:  # of several libraries
            raise PotstillError(f"The model {self.name!r} cannot be built: {first_line(error)}.") from error

    def as_run(self, device: str) -> tuple[nn.Module, PreTrainedModel]:
        """Return what computes the logits, without weights, and the model in it: an export may compute less than that.

        What it takes is token ids, or for an export what its folder says.

        Args:
            device: see `shape`.

        Raises:
            PotstillError: likewise.
        """
        shape = self.shape(device)
        if self.exported is None:
            return shape, shape
        head = next(head for head in HEADS.values() if head.task == self.task)
        no_tokenizer: Any = None
        exported = self.exported
        source = Source(self.name, exported.folder, shape, no_tokenizer, head, exported.inputs, exported.max_length)
        return source.module(), shape

    def bytes_on_disk(self) -> int:
        """Return the bytes of its weights: of its files, or under a new head of those it would be saved to."""
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
        title: of the form, in words.
        runner: who runs it.
        path: folder or hub name; empty for ELMo's shape.
        task: see `Model`.
        num_labels: of a new head; None where the model keeps its own.
        weight_bits: of a weight of a matrix in memory; below 16 of integers.
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
    """Read what the models are, and make sure that they can be compared.

    For STS-B all must score texts; a folder that PyTorch runs gets a new head if its own does something else.

    Args:
        named: name and folder or hub name of each.
        data: `--data`.

    Raises:
        PotstillError: there is no model, it cannot be run, or two do different tasks.
    """
    models = [_read(name, path) for name, path in named]
    if data == STSB:
        models = _scoring(models)
    for first, other in combinations(models, 2):
        if other.task != first.task:
            raise PotstillError(
                f"The models {first.name!r} ({first.task}) and {other.name!r} ({other.task}) do different tasks: what "
                "they take tells nothing of each other."
            )
        if first.task in (SCORING, "token-classification") and not _same_labels(first, other):
            raise PotstillError(
                f"The models {first.name!r} (labels {_named(first)}) and {other.name!r} (labels {_named(other)}) do "
                "different tasks: compare models that are fine-tuned on the same."
            )
    return models


def forms_of(model: Model, compiled: bool) -> list[Form]:
    """Return the forms that a model is run in."""
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
        exported.package  # noqa: B018 (it says what is missing before anything is started)
    elif folder.is_dir() and not (folder / CONFIG).is_file():
        raise PotstillError(
            f"--models {name}={path}: the folder holds no model, neither a {CONFIG} with weights nor what potstill "
            "export writes."
        )
    try:
        config = exported.config() if exported else load_config(path)
    except PotstillError as error:
        raise PotstillError(f"--models {name}={path}: {str(error).rstrip('.')}.") from error
    if exported is not None:
        return Model(name, path, exported.task, config, exported=exported)
    architecture = (config.architectures or ["Model"])[0]
    for ending, head in HEADS.items():
        if architecture.endswith(ending):
            return Model(name, path, head.task, config)
    if architecture.endswith("Model") and not config.is_encoder_decoder:
        return Model(name, path, ENCODING, config)
    raise PotstillError(
        f"--models {name}={path}: a {architecture} is not among what can be measured, which is encoders and models for "
        f"{', '.join(head.task for head in HEADS.values())}."
    )


def _scoring(models: list[Model]) -> list[Model]:
    """Give a head for labels to those that have another, or none; they get as many labels as the others have."""
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
    """Return whether two models tell the same labels apart; labels that are only numbered may be any."""
    if model.config.num_labels != other.config.num_labels:
        return False
    names = [{str(label).lower() for label in one.config.id2label.values()} for one in (model, other)]
    numbered = {f"label_{number}" for number in range(model.config.num_labels)}
    return numbered in names or names[0] == names[1]


def _named(model: Model) -> str:
    return ", ".join(str(name) for name in model.config.id2label.values())
