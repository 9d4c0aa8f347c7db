"""Mean squared error of hidden states, layer by layer, through learned projections where the widths differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig

from potstill.objective.term import Batch, Flops, Term, check_layer, is_layer_number
from potstill.student import Reads


@dataclass(frozen=True, kw_only=True)
class HiddenMSE(Term):
    """Mean squared error between hidden states of student layers and those of the corresponding teacher layers.

    All pairs of layers have the same weight: the value is the mean over pairs, tokens and the teacher's width. If the
    widths differ, a linear layer for each pair projects the student's states to the teacher's width (as in TinyBERT,
    Jiao et al. 2020, section 3.1). It is trained with the student. Of several teachers, the first is compared with, and
    those whose width differs from the student's.

    Attributes:
        layers: student layer → teacher layer, both counted from 0, -1 for the last. By default only the last layers.
    """

    name: ClassVar[str] = "hidden_mse"
    layers: Mapping[int, int] = field(default_factory=lambda: {-1: -1})

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = "a mapping of student layers to teacher layers, as in {0: 0, 5: 11}"
        if not isinstance(self.layers, Mapping) or not self.layers:
            raise self.refuse("layers", rule)
        layers = {}
        for pair in self.layers.items():
            try:
                student, teacher = (int(layer) if isinstance(layer, str) else layer for layer in pair)  # from JSON
            except ValueError:
                raise self.refuse("layers", rule) from None
            if not (is_layer_number(student) and is_layer_number(teacher)):
                raise self.refuse("layers", rule)
            layers[student] = teacher
        object.__setattr__(self, "layers", layers)

    @property
    def student_reads(self) -> Reads:
        """See `Term.student_reads`."""
        return Reads(hidden=frozenset(self.layers))

    @property
    def teacher_reads(self) -> Reads:
        """See `Term.teacher_reads`."""
        return Reads(hidden=frozenset(self.layers.values()))

    def check(self, teacher: PreTrainedConfig, student: PreTrainedConfig) -> None:
        """See `Term.check`."""
        for ours, theirs in self.layers.items():
            check_layer(self, "layers", ours, "student", student)
            check_layer(self, "layers", theirs, "teacher", teacher)

    def module(self, teacher: PreTrainedConfig, student: PreTrainedConfig) -> nn.Module | None:
        """See `Term.module`."""
        if teacher.hidden_size == student.hidden_size:
            return None
        return nn.ModuleList(nn.Linear(student.hidden_size, teacher.hidden_size) for _ in self.layers)

    def flops(self, teacher: PreTrainedConfig | None, student: PreTrainedConfig, block_size: int) -> Flops:
        """See `Term.flops`."""
        if teacher is None or teacher.hidden_size == student.hidden_size:
            return Flops()
        return Flops(student=2.0 * student.hidden_size * teacher.hidden_size * len(self.layers))

    def takes_part(self, number: int, mapped: bool) -> bool:
        """See `Term.takes_part`."""
        return number == 0 or mapped

    def value(self, batch: Batch) -> Tensor:
        """See `Term.value`."""
        assert batch.teacher is not None
        values = []
        for number, (ours, theirs) in enumerate(self.layers.items()):
            student, teacher = batch.student.hidden[ours], batch.teacher.hidden[theirs]
            if batch.trained is not None:
                projection = batch.trained[number]
                weight, bias = projection.weight.to(student.dtype), projection.bias.to(student.dtype)
                student = F.linear(student, weight, bias)
            dtype = torch.promote_types(student.dtype, torch.float32)
            error = (student.to(dtype) - teacher.to(dtype)).square().mean(-1)
            rows = batch.student.rows
            values.append(error.mean() if rows is None else rows.mean_over_tokens(error))
        return torch.stack(values).mean()
