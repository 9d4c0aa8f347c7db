"""A budget for the student's size or speed, and the largest student that keeps to it."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from potstill.bench.flops import forward_flops
from potstill.errors import PotstillError
from potstill.student.family import family_of
from potstill.student.headless import new_encoder, shallower_config
from potstill.student.interface import is_headless
from potstill.student.sizes import Sizes, sizes_of, wanted_sizes, with_sizes

Unit = Literal["bytes", "parameters", "times faster"]

_UNITS: dict[str, tuple[Unit, float]] = {
    "kb": ("bytes", 1e3),
    "mb": ("bytes", 1e6),
    "gb": ("bytes", 1e9),
    "kib": ("bytes", 2**10),
    "mib": ("bytes", 2**20),
    "gib": ("bytes", 2**30),
    "k": ("parameters", 1e3),
    "m": ("parameters", 1e6),
    "x": ("times faster", 1),
    "×": ("times faster", 1),
}
ROUNDING = 1e-9
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Budget:
    """What a student may take.

    Attributes:
        text: as it was given, such as "50MB".
        number: bytes of the weights on disk at most, or parameters at most, or times fewer FLOPs at least.
        unit: which of the three.
    """

    text: str
    number: float
    unit: Unit

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read a budget: "50MB" or "50MiB" on disk, "20M" parameters, or "2.5x" faster.

        Raises:
            PotstillError: the text is none of these.
        """
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z×]+)\s*", str(text).lower())
        if found is None or found[2] not in _UNITS or float(found[1]) <= 0:
            raise PotstillError(
                f"--max_size is {text!r}: give a size on disk such as 50MB or 50MiB, a number of parameters such as "
                "20M, or how much faster the student has to be, such as 2.5x."
            )
        unit, factor = _UNITS[found[2]]
        number = float(found[1]) * factor
        if unit == "times faster" and number <= 1:
            raise PotstillError(f"--max_size is {text!r}: to be faster than its teacher a student needs more than 1x.")
        return cls(str(text).strip(), number, unit)


@dataclass(frozen=True)
class Estimate:
    """A shape of a student, and what a student of this shape takes.

    Attributes:
        num_hidden_layers: depth.
        sizes: width of the hidden states, heads, and width of the feed-forward layers.
        parameters: number of parameters. A tensor that is used twice counts once.
        layer_parameters: the part of them that is in the layers.
        file_bytes: bytes of the weights on disk, as safetensors in float32.
        embedding_bytes: the part of them that holds the word embeddings and an output projection of its own.
        speed_up: FLOPs per token of the teacher over those of the student. The vocabulary head counts only for a causal
            model, because a fine-tuned encoder has none. It is an estimate of how much faster the student is.
    """

    num_hidden_layers: int
    sizes: Sizes
    parameters: int
    layer_parameters: int
    file_bytes: int
    embedding_bytes: int
    speed_up: float

    def fits(self, budget: Budget) -> bool:
        """Return whether such a student keeps to a budget."""
        if budget.unit == "bytes":
            return self.file_bytes <= budget.number
        if budget.unit == "parameters":
            return self.parameters <= budget.number
        return self.speed_up >= budget.number * (1 - ROUNDING)

    def as_record(self) -> dict[str, Any]:
        """Return it as values for JSON."""
        record = asdict(self)
        return {"num_hidden_layers": record.pop("num_hidden_layers"), **record.pop("sizes"), **record}

    def __str__(self) -> str:
        sizes = self.sizes
        depth, heads = _count(self.num_hidden_layers, "layer"), _count(sizes.num_attention_heads, "head")
        return (
            f"{depth}, {sizes.hidden_size} wide, {heads}, feed-forward layers of {sizes.intermediate_size:,}: "
            f"{self.parameters:,} parameters, {megabytes(self.file_bytes)} on disk "
            f"({megabytes(self.embedding_bytes)} of it embeddings), about {self.speed_up:.2f} times faster than the "
            "teacher by FLOPs"
        )


def megabytes(number: float) -> str:
    """Return a number of bytes in MB (10⁶ bytes), or in kB below 1 MB."""
    return f"{number / 1e6:.1f} MB" if number >= 1e6 else f"{number / 1e3:.1f} kB"


class Beside(NamedTuple):
    """What is saved beside the model of a student, whatever its shape: the Dense modules of a sentence encoder.

    Attributes:
        parameters: number of parameters.
        file_bytes: bytes of their files.
    """

    parameters: int = 0
    file_bytes: int = 0


def estimate(
    teacher: PreTrainedModel, num_hidden_layers: int, sizes: Sizes, block_size: int, beside: Beside | None = None
) -> Estimate:
    """Count what a student takes, exactly but for the speed. No weights are made.

    Args:
        teacher: its family decides the class of the student.
        num_hidden_layers: depth of the student.
        sizes: of its layers.
        block_size: L, tokens of a block. Attention takes more FLOPs per token in longer blocks.
        beside: what is saved beside the model.
    """
    beside = beside or Beside()
    family = family_of(teacher)
    config = with_sizes(_student_config(teacher, num_hidden_layers), sizes)
    with torch.device("meta"):
        headless = is_headless(teacher)
        student = new_encoder(teacher, config) if headless else family_of(config).auto_class.from_config(config)
    tensors: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in student.state_dict(keep_vars=True).items():
        tensors.setdefault(id(tensor), (name, tensor))  # tied tensors are saved once
    file_bytes = safetensors_bytes({name: tuple(tensor.shape) for name, tensor in tensors.values()})
    embeddings = {id(part.weight): part.weight for part in (student.get_input_embeddings(), _head(student))}
    head_share = 1.0 if family.causal else 0.0
    flops = [forward_flops(model, block_size, head_share) for model in (teacher, student)]
    return Estimate(
        num_hidden_layers,
        sizes,
        parameters=sum(parameter.numel() for parameter in student.parameters()) + beside.parameters,
        layer_parameters=sum(parameter.numel() for parameter in family_of(config).layers(student).parameters()),
        file_bytes=file_bytes + beside.file_bytes,
        embedding_bytes=FLOAT_BYTES * sum(weight.numel() for weight in embeddings.values()),
        speed_up=flops[0] / flops[1],
    )


def safetensors_bytes(shapes: Mapping[str, Sequence[int]]) -> int:
    """Return the size of a safetensors file of float32 tensors, but for the few bytes that align it.

    Args:
        shapes: name → shape of each tensor.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + FLOAT_BYTES * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    return 8 + len(json.dumps(header, separators=(",", ":"))) + end


def largest_student(
    teacher: PreTrainedModel,
    budget: Budget,
    block_size: int,
    num_hidden_layers: int | None = None,
    hidden_size: int | None = None,
    num_attention_heads: int | None = None,
    intermediate_size: int | None = None,
    copied: bool = True,
    beside: Beside | None = None,
) -> Estimate:
    """Choose the shape of a student that keeps to a budget.

    If at least half of the teacher's layers fit at the teacher's width, the student has this width and as many layers
    as fit, because its layers can be copied as they are (Sanh et al. 2019). Otherwise it is the one with the most
    parameters in its layers, of any depth and width. As embeddings grow with the width alone, this is mostly a deep and
    narrow one: at a fixed number of parameters, depth is worth more than width (Turc et al. 2019, arXiv 1908.08962). Of
    equals it is the wider one. Heads stay as wide as the teacher's, and the feed-forward layers keep their ratio to the
    width.

    Args:
        teacher: with its vocabulary, which the student shares.
        budget: what the student may take.
        block_size: L, tokens of a block, for the speed.
        num_hidden_layers: fixes the depth.
        hidden_size: fixes the width.
        num_attention_heads: fixes the number of heads, and with it the width if that is not given.
        intermediate_size: fixes the width of the feed-forward layers.
        copied: whether the student starts from the teacher's weights. Then its family has to say how it is narrowed.
        beside: what is saved beside the model.

    Raises:
        PotstillError: the smallest possible student is above the budget, or a given size is not possible.
    """
    whole, full = teacher.config.num_hidden_layers, sizes_of(teacher.config)
    head_size = full.hidden_size // full.num_attention_heads
    if hidden_size is None and num_attention_heads is not None:
        hidden_size = num_attention_heads * head_size
    student_family = family_of(_student_config(teacher, whole))
    if hidden_size is not None:
        widths = [hidden_size]
    elif (copied and student_family.widths is None) or full.hidden_size % full.num_attention_heads:
        widths = [full.hidden_size]
    else:
        widths = [heads * head_size for heads in range(1, full.num_attention_heads + 1)]
    depths = [num_hidden_layers] if num_hidden_layers is not None else list(range(1, whole + 1))

    def at(width: int, depth: int) -> Estimate:
        sizes = wanted_sizes(teacher.config, width, num_attention_heads, intermediate_size, copied)
        return estimate(teacher, depth, sizes, block_size, beside)

    found: list[Estimate] = []
    for width in reversed(widths):
        deepest = _deepest(depths, partial(at, width), budget)
        if deepest is None:
            continue
        if width == full.hidden_size and deepest.num_hidden_layers >= max(1, whole // 2):
            return deepest
        found.append(deepest)
    if found:
        return max(found, key=lambda estimate: estimate.layer_parameters)
    smallest = at(widths[0], depths[0])
    given = num_hidden_layers is not None or hidden_size is not None or intermediate_size is not None
    advice = "ask for less speed" if budget.unit == "times faster" else "raise --max_size"
    if given:
        advice += ", or leave out --num_hidden_layers, --layers, --hidden_size and the like"
    if budget.unit != "times faster":
        advice += ", or cut the vocabulary with `potstill prepare --prune_vocabulary`"
    what = "with the sizes that are given " if given else ""
    raise PotstillError(
        f"No student keeps to --max_size {budget.text}: the smallest one of this teacher {what}has {smallest}; "
        f"{advice}."
    )


def _student_config(teacher: PreTrainedModel, depth: int) -> PreTrainedConfig:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come once, when the student is made
        of_depth = shallower_config if is_headless(teacher) else family_of(teacher).student_config
        return of_depth(teacher.config, list(range(depth)))


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _head(model: PreTrainedModel) -> Any:
    return model.get_output_embeddings() or model.get_input_embeddings()


def _deepest(depths: Sequence[int], at: Callable[[int], Estimate], budget: Budget) -> Estimate | None:
    """Return the estimate of the largest of ascending depths that keeps to a budget; None if none does. It bisects."""
    found, low, high = None, 0, len(depths) - 1
    while low <= high:
        middle = (low + high) // 2
        estimate = at(depths[middle])
        if estimate.fits(budget):
            found, low = estimate, middle + 1
        else:
            high = middle - 1
    return found
