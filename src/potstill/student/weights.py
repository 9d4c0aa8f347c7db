"""What the weights in a model's files are, asked before the model is built, and whether they are numbers after it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import CONFIG_MAPPING

from potstill.errors import PotstillError, first_line
from potstill.json_files import read_object
from potstill.panics import panics_as_errors

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

NO_LARGER_THAN_FILES = (
    *("vocab_size", "intermediate_size", "embedding_size", "type_vocab_size", "num_attention_heads", "num_labels"),
    *("num_hidden_groups", "hidden_dim", "d_ff", "d_inner", "n_inner", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim"),
)
"""Sizes in a config that are at most as large as the largest dimension of a tensor, which is that of the vocabulary."""

MOST_SHARED_LAYERS = 1000
"""Times that a model may apply one and the same layer, where the files do not tell how often it does."""

_NUMBER = re.compile(r"(?:^|\.)(\d+)\.")


@dataclass(frozen=True)
class Weights:
    """The tensors in a model's files, of which only the headers are read.

    Attributes:
        shapes: name of each tensor → its shape.
    """

    shapes: dict[str, tuple[int, ...]]

    @classmethod
    def read(cls, folder: Path, model_is: str) -> Weights:
        """Read the headers of a model's safetensors files.

        Args:
            folder: the model's.
            model_is: what the model is called in messages: "the teacher 'bert-base-uncased'".

        Raises:
            PotstillError: a file is missing or damaged.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        for name in _files(folder, model_is):
            try:
                with panics_as_errors(), safe_open(folder / name, framework="pt") as file:
                    shapes |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
            except Exception as error:  # of safetensors' own type, an OSError, or a panic
                raise PotstillError(
                    f"{model_is} cannot be loaded, because its weights in {name} are damaged or incomplete: copy or "
                    f"download it again ({first_line(error)})"
                ) from error
        if not shapes:
            raise PotstillError(f"{model_is} cannot be loaded: there is no tensor in its weights")
        return cls(shapes)

    @property
    def layers(self) -> int:
        """Numbered layers: of the names `a.0.b`, `a.1.b`, … the largest number is 1."""
        numbers = (int(found[1]) for name in self.shapes if (found := _NUMBER.search(name)))
        return max(numbers, default=-1) + 1

    def check_config(self, config: dict[str, Any], model_is: str) -> None:
        """Refuse a config of which the files cannot hold the model, before that model takes all memory or all day.

        Whether every tensor has the shape that its config asks for is known when the model is built, which is safe
        after this.

        Args:
            config: as `config.json` has it, with the names of its own architecture.
            model_is: see `read`.

        Raises:
            PotstillError: a size in the config is beyond the weights.
        """
        dimensions = {size for shape in self.shapes.values() for size in shape}
        largest = max(dimensions, default=0)
        # The width is one side of every matrix, and the shorter one of most.
        widest = max((min(shape) for shape in self.shapes.values() if len(shape) == 2), default=largest)
        for part in _configs(config):
            for key, value in _sizes(part, "hidden_size"):
                if value > widest and value not in dimensions:
                    self._refuse(model_is, key, value, "no tensor in them has such a dimension")
            for name in NO_LARGER_THAN_FILES:
                for key, value in _sizes(part, name):
                    if value > largest:
                        self._refuse(model_is, key, value, f"the largest dimension in them is {largest:,}")
            shared = bool(_sizes(part, "num_hidden_groups"))
            most = MOST_SHARED_LAYERS if shared else self.layers
            for key, value in _sizes(part, "num_hidden_layers"):
                if value > most:
                    held = (
                        f"no model applies a layer more than {most:,} times" if shared else f"they hold {most:,} layers"
                    )
                    self._refuse(model_is, key, value, held)
            rows = [shape[0] for name, shape in self.shapes.items() if name.endswith("position_embeddings.weight")]
            for key, value in _sizes(part, "max_position_embeddings"):
                if rows and value > max(rows):
                    self._refuse(model_is, key, value, f"they hold {max(rows):,} positions")

    def _refuse(self, model_is: str, key: str, value: int, held: str) -> None:
        asked = f"{value:,}" if value < 10**15 else f"a number of {len(str(value))} digits"
        raise PotstillError(
            f"the weights of {model_is} do not fit its config.json, whose {key} is {asked}: {held}; restore the "
            "config that the weights were saved with"
        )


def check_finite(model: nn.Module, model_is: str) -> None:
    """Refuse a model with a weight that is not a finite number: nothing that it computes would be one.

    Args:
        model: as it was loaded.
        model_is: see `Weights.read`.

    Raises:
        PotstillError: there is one; its tensor is named.
    """
    for name, tensor in model.state_dict().items():
        # A sum takes no memory. One that is beyond the range of numbers need not have such a number in it.
        if tensor.is_floating_point() and not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            what = "a weight that is" if count == 1 else f"{count:,} weights that are"
            raise PotstillError(
                f"{model_is} cannot be used: {name} has {what} not a finite number (NaN or infinity), so its "
                "training failed or its file is damaged; take an earlier checkpoint, or download it again"
            )


def _files(folder: Path, model_is: str) -> list[str]:
    """Return the names of the files that hold the weights."""
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    found = read_object(folder / INDEX, f"the index of the weights of {model_is},", "copy or download it again")
    parts = found.get("weight_map")
    if not isinstance(parts, dict) or not parts or not all(isinstance(name, str) for name in parts.values()):
        raise PotstillError(f"{model_is} cannot be loaded: {INDEX} names no files; copy or download it again")
    names = sorted(set(parts.values()))
    for name in names:
        if Path(name).name != name or "\0" in name:
            raise PotstillError(f"{model_is} cannot be loaded: {INDEX} names {name!r}, which is no file beside it")
        if not (folder / name).is_file():
            raise PotstillError(f"{model_is} cannot be loaded: its weights are incomplete, {name} is missing")
    return names


def _configs(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a config and those of the models in it."""
    yield config
    for value in config.values():
        if isinstance(value, dict) and isinstance(value.get("model_type"), str):
            yield from _configs(value)


def _sizes(config: dict[str, Any], name: str) -> list[tuple[str, int]]:
    """Return the keys that give a size, by transformers' name for it or the architecture's own, with their numbers."""
    try:
        own = CONFIG_MAPPING[config.get("model_type")].attribute_map.get(name, name)
    except (KeyError, TypeError, AttributeError):  # an architecture that is not of transformers is told later
        own = name
    return [(key, config[key]) for key in dict.fromkeys((own, name)) if type(config.get(key)) is int]
