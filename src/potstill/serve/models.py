"""A model that the page can run. It is checked before anything is served, and described for the page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

import potstill.bilstm.config  # noqa: F401 (it registers the BiLSTM's config)
from potstill.errors import PotstillError, first_line
from potstill.export.format import SUMMARY
from potstill.export.formats import FORMATS
from potstill.json_files import read_object
from potstill.serve.onnx_file import is_complete
from potstill.small_files import check_model_folder, check_parts
from potstill.wording import counted

OTHER_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")

AGAIN = "export the model again"

TASKS = {
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForQuestionAnswering": "question-answering",
}
"""End of an architecture's name → task of the page."""

ENCODER = "feature-extraction"
"""Task of sentence encoders, which have no head. `export` writes it into its description."""

ENCODER_SETTINGS = "config_sentence_transformers.json"

IN_CACHE = "models--"
"""Beginning of the name of a model's folder in the hub's cache."""


@dataclass(frozen=True)
class ServedModel:
    """A model that the page can run.

    Attributes:
        folder: as `export` wrote it.
        name: shown as its title.
        file: the ONNX file in the folder.
        precision: of its weights, `float32` or `int8`.
        task: the name that `pipeline` has for it.
        layers: number of layers; None if its config does not state it.
        max_length: longest text that it can read, in tokens.
        labels: of a classifier, by number; empty if it gives one score.
        multi_label: whether a text can have several labels.
        threshold: the probability from which one of several labels is meant; None if a text has one label.
        prompt: text that a sentence encoder puts in front of each text; empty if there is none.
    """

    folder: Path
    name: str
    file: str
    precision: str
    task: str
    layers: int | None
    max_length: int
    labels: tuple[str, ...]
    multi_label: bool
    threshold: float | None = None
    prompt: str = ""

    @classmethod
    def open(cls, folder: str, flag: str) -> ServedModel:
        """Check a folder and describe the model in it.

        Args:
            folder: as `export --format onnx` or `onnx-int8` wrote it.
            flag: the option that named the folder, for messages.

        Raises:
            PotstillError: there is no such folder, it holds no ONNX export, a link in it leads elsewhere, the export is
                damaged, or the page cannot do its task.
        """
        path = Path(folder).expanduser()
        if not path.is_dir():
            wrong = "is a file: name the folder that potstill export wrote" if path.exists() else "does not exist"
            raise PotstillError(f"{flag} {folder} {wrong}.")
        weights = _loadable()
        file = next((name for name in weights if (path / name).is_file()), None)
        if file is None:
            raise PotstillError(f"{flag} {folder} {_what_instead(path, folder)}")
        for other in OTHER_FILES:
            if not (path / other).is_file():
                raise PotstillError(f"{flag} {folder} is incomplete: it has no {other}; {AGAIN}.")
        for used in (file, *OTHER_FILES, SUMMARY, ENCODER_SETTINGS):
            _check_link(path, used, f"{flag} {folder}")
        if not is_complete(path / file):
            raise PotstillError(f"{flag} {folder} is damaged: {file} is cut short or is no ONNX file; {AGAIN}.")
        second_file = next((path / "onnx").glob(f"{Path(file).name}[_.]data*"), None)
        if second_file is not None:
            raise PotstillError(
                f"{flag} {folder} keeps its weights in a second file, {second_file.name}, which the page cannot load."
            )
        check_model_folder(path)
        for other in OTHER_FILES:  # the page's JSON parser accepts no NaN
            found = read_object(path / other, f"{flag}: the file", AGAIN)
            check_parts(found, f"{flag}: the file {path / other}")
        config = _config(path, f"{flag} {folder}")
        architecture = str((config.architectures or ["model without a head"])[0])
        task = next((task for ending, task in TASKS.items() if architecture.endswith(ending)), None)
        if _summary(path, flag).get("task") == ENCODER:
            task = ENCODER
        if task is None:
            raise PotstillError(
                f"{flag} {folder} is a {architecture}, which the page cannot run: it does {', '.join(TASKS.values())} "
                "and similarity by sentence encoders that potstill exported."
            )
        labels = tuple(str(config.id2label[number]) for number in sorted(config.id2label))
        labels = labels if task == "text-classification" and len(labels) > 1 else ()
        several = bool(labels) and config.problem_type == "multi_label_classification"
        return cls(
            folder=path,
            name=_name(path),
            file=file,
            precision=weights[file],
            task=task,
            layers=_positive_integer(getattr(config, "num_hidden_layers", None)),
            max_length=_max_length(path, config, flag),
            labels=labels,
            multi_label=several,
            threshold=_threshold(config, f"{flag} {folder}") if several else None,
            prompt=_prompt(path, flag) if task == ENCODER else "",
        )

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all served files of the model."""
        return (self.file, *OTHER_FILES)

    def description(self, path: str) -> dict[str, Any]:
        """Return the description of the model for the page.

        Args:
            path: where its files are, relative to the page; ends with a slash.
        """
        return {
            "name": self.name,
            "path": path,
            "file": self.file,
            "bytes": (self.folder / self.file).stat().st_size,
            "task": self.task,
            "precision": self.precision,
            "layers": self.layers,
            "max_length": self.max_length,
            "labels": list(self.labels),
            "multi_label": self.multi_label,
            "threshold": self.threshold,
            "prompt": self.prompt,
        }


def check_pair(model: ServedModel, other: ServedModel) -> None:
    """Check that two models can answer the same questions.

    Raises:
        PotstillError: they do different tasks, have different numbers of labels, or give a text one label and several.
    """
    if model.task != other.task:
        raise PotstillError(
            f"The two models do different tasks: {model.folder} does {model.task}, {other.folder} does {other.task}. "
            "Give two of one task."
        )
    if len(model.labels) != len(other.labels):
        sizes = [counted(len(one.labels), "label") if one.labels else "a score" for one in (model, other)]
        raise PotstillError(
            f"The two models do different tasks: {model.folder} answers with {sizes[0]}, "
            f"{other.folder} answers with {sizes[1]}. Give two of one task."
        )
    if model.multi_label != other.multi_label:
        counts = ["any number of labels" if one.multi_label else "one label" for one in (model, other)]
        raise PotstillError(
            f"The two models do different tasks: {model.folder} gives a text {counts[0]}, {other.folder} gives it "
            f"{counts[1]}. Give two of one task."
        )


def _loadable() -> dict[str, str]:
    """Return file → precision of the formats that the page can load, in the order of the search.

    The search is by file name, because folders of other programs have no description.
    """
    return {format.file: format.precision(format.bits[0]) for format in FORMATS.values() if format.in_browser}


def _what_instead(path: Path, folder: str) -> str:
    """Return the end of a message: what a folder without an ONNX file is, and what to do."""
    export = f"potstill export --model {folder} --format onnx --output_dir {folder.rstrip('/')}-onnx"
    if (path / "config.json").is_file() and any(path.glob("*.safetensors")):
        return f"is a model for PyTorch; browsers run ONNX, so export it first: {export}"
    others = [format for format in FORMATS.values() if not format.in_browser]
    loadable = " or ".join(format.name for format in FORMATS.values() if format.in_browser)
    for format in others:
        if any(path.glob(f"*{Path(format.file).suffix}")):
            return f"is an export for {format.runtime}; browsers run ONNX: export the model with --format {loadable}."
    return f"holds no exported model: there is no {' or '.join(_loadable())} in it."


def _config(path: Path, what: str) -> Any:
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
        names, labels = config.architectures, config.id2label
    except Exception as error:  # of several libraries
        raise PotstillError(f"{what} has a config.json that cannot be read: {first_line(error)}.") from error
    if not isinstance(names, list | None) or not all(isinstance(number, int) for number in labels):
        raise PotstillError(f"{what} has a config.json whose architectures or labels are not lists of names; {AGAIN}.")
    return config


def links_stay_in(folder: Path) -> Path:
    """Return the folder that a link in the folder of a model may not lead out of: in general that folder itself.

    The hub's cache keeps the content of each file in `models--OWNER--NAME/blobs`, and the folder of a model there has
    links to it. Such links may lead anywhere in `models--OWNER--NAME`, which holds files of that one model.
    """
    real = folder.resolve()
    return _cached_repository(real) or real


def _cached_repository(real: Path) -> Path | None:
    """Return `models--OWNER--NAME` for a folder in its `snapshots`; None for a folder outside of the hub's cache."""
    for parent in real.parents:
        if parent.name == "snapshots" and parent.parent.name.startswith(IN_CACHE):
            return parent.parent
    return None


def _name(folder: Path) -> str:
    """Return the title of a model. In the hub's cache a folder has the hash of a commit for its name."""
    real = folder.resolve()
    repository = _cached_repository(real)
    if repository is not None and real.parent.parent == repository:
        return repository.name.removeprefix(IN_CACHE).replace("--", "/")
    return real.name


def _check_link(path: Path, file: str, what: str) -> None:
    """Check that a file of a folder lies where its links may lead.

    Raises:
        PotstillError: a symbolic link on the way to the file leads elsewhere.
    """
    real = (path / file).resolve()
    if not real.is_relative_to(links_stay_in(path)):
        raise PotstillError(
            f"{what} has a link that leads out of it, and only files in it are served: {file} is {real}; put a copy "
            "of the file in the place of the link."
        )


def _summary(path: Path, flag: str) -> dict[str, Any]:
    """Return the description of an export; an empty one if another program made the folder.

    Raises:
        PotstillError: the description is damaged.
    """
    if not (path / SUMMARY).is_file():
        return {}
    return read_object(path / SUMMARY, f"{flag}: the file", AGAIN) or {"max_length": None}


def _prompt(path: Path, flag: str) -> str:
    """Return the default prompt of a sentence encoder.

    Raises:
        PotstillError: its settings are missing or damaged.
    """
    settings = read_object(path / ENCODER_SETTINGS, f"{flag}: the file", AGAIN)
    prompts, name = settings.get("prompts") or {}, settings.get("default_prompt_name")
    if name is None:
        return ""
    if not isinstance(prompts, dict) or not isinstance(prompts.get(name), str):
        raise PotstillError(
            f"{flag}: the file {path / ENCODER_SETTINGS} is damaged: it lacks its prompt {name!r}; {AGAIN}."
        )
    return str(prompts[name])


def _max_length(path: Path, config: Any, flag: str) -> int:
    """Return the longest text in tokens: from the export's description, or else from tokenizer and config.

    Raises:
        PotstillError: the description is damaged.
    """
    if summary := _summary(path, flag):
        length = summary.get("max_length")
        if (measured := _positive_integer(length)) is None:
            raise PotstillError(f"{flag}: the file {path / SUMMARY} is damaged: its max_length is {length!r}; {AGAIN}.")
        return min(measured, _positive_integer(getattr(config, "max_position_embeddings", None)) or 512)
    from potstill.student import usable_length  # not at the top: an export of potstill is served without torch

    longest = usable_length(config) or 512
    stated = read_object(path / "tokenizer_config.json", f"{flag}: the file", AGAIN).get("model_max_length")
    return min(_positive_integer(stated) or longest, longest)


def _threshold(config: Any, what: str) -> float:
    """Return the probability from which a label is meant: that of the config, as `finetune` writes it, or 0.5.

    Raises:
        PotstillError: it is no probability.
    """
    value = getattr(config, "threshold", 0.5)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise PotstillError(f"{what} has a config.json whose threshold is {value!r}: it must be between 0 and 1.")
    return float(value)


def _positive_integer(value: Any) -> int | None:
    """Return a number of at least 1 as an integer; None for anything else."""
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) and value >= 1 else None
