"""Attention relations: how similar tokens are in the attention of one layer (MiniLMv2, Wang et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig

from potstill.errors import PotstillError
from potstill.objective.term import Batch, Flops, Term, check_layer, is_layer_number
from potstill.student import Reads

RELATIONS = ("query", "key", "value")


@dataclass(frozen=True, kw_only=True)
class AttentionRelations(Term):
    """KL(teacher ‖ student) of the relations between tokens inside one layer of each (Wang et al. 2021, section 3).

    The queries (or keys, or values) of all heads of a layer are concatenated and then split into relation heads. A
    relation is softmax(A Aᵀ / √d) over the L tokens of the block, where A is the (L, d) part of one relation head.
    Each relation head of the student is compared with one of the teacher, so both have the same number of them. The
    widths and the numbers of attention heads may differ. The value is the mean over tokens and relation heads, summed
    over the kinds of relations.

    Attributes:
        teacher_layer: layer of the teacher, counted from 0; -1 is the last.
        student_layer: layer of the student, counted from 0; -1 is the last.
        relation_heads: number of relation heads; by default the number of the teacher's attention heads. It must divide
            both widths.
        relations: the kinds of relations: any of query, key and value.
    """

    name: ClassVar[str] = "attention_relations"
    teacher_layer: int = -1
    student_layer: int = -1
    relation_heads: int | None = None
    relations: Sequence[str] = RELATIONS

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("teacher_layer", "student_layer"):
            if not is_layer_number(getattr(self, option)):
                raise self.refuse(option, "the number of a layer, counted from 0, or -1 for the last")
        heads = self.relation_heads
        if heads is not None and not (is_layer_number(heads) and heads > 0):
            raise self.refuse("relation_heads", "a whole number above 0")
        relations = (self.relations,) if isinstance(self.relations, str) else self.relations
        if not isinstance(relations, Sequence) or not relations or not all(r in RELATIONS for r in relations):
            raise self.refuse(
                "relations", f"a list of {', '.join(RELATIONS[:-1])} and {RELATIONS[-1]}, or some of them"
            )
        if len(set(relations)) < len(relations):
            raise self.refuse("relations", "a list without repetitions")
        object.__setattr__(self, "relations", tuple(relations))

    @property
    def student_reads(self) -> Reads:
        """See `Term.student_reads`."""
        return Reads(attention=frozenset({self.student_layer}))

    @property
    def teacher_reads(self) -> Reads:
        """See `Term.teacher_reads`."""
        return Reads(attention=frozenset({self.teacher_layer}))

    def check(self, teacher: PreTrainedConfig, student: PreTrainedConfig) -> None:
        """See `Term.check`."""
        check_layer(self, "teacher_layer", self.teacher_layer, "teacher", teacher)
        check_layer(self, "student_layer", self.student_layer, "student", student)
        heads = self.relation_heads or teacher.num_attention_heads
        for role, config in (("teacher", teacher), ("student", student)):
            if config.hidden_size % heads:
                raise PotstillError(
                    f"losses: the {heads} relation heads of {self.name} do not divide the {role}'s width of "
                    f"{config.hidden_size}: set relation_heads to a number that divides {teacher.hidden_size} and "
                    f"{student.hidden_size}."
                )

    def flops(self, teacher: PreTrainedConfig | None, student: PreTrainedConfig, block_size: int) -> Flops:
        """See `Term.flops`."""
        per_width = 2.0 * block_size * len(self.relations)
        return Flops(0.0 if teacher is None else per_width * teacher.hidden_size, per_width * student.hidden_size)

    def value(self, batch: Batch) -> Tensor:
        """See `Term.value`."""
        assert batch.teacher is not None
        teacher, student = batch.teacher.attention[self.teacher_layer], batch.student.attention[self.student_layer]
        heads = self.relation_heads or teacher.heads
        values = []
        for kind in self.relations:
            target = _log_relations(getattr(teacher, kind), heads)
            found = _log_relations(getattr(student, kind), heads)
            values.append((target.exp() * (target - found)).sum(-1).mean())
        return torch.stack(values).sum()


def _log_relations(values: Tensor, heads: int) -> Tensor:
    """Return (B, heads, L, L): the logarithms of the relations of (B, L, D), in float32 or wider."""
    split = values.unflatten(-1, (heads, -1)).transpose(1, 2)
    split = split * split.shape[-1] ** -0.25  # scaled before the product, which could overflow in float16
    scores = torch.matmul(split, split.transpose(2, 3))
    return F.log_softmax(scores.to(torch.promote_types(scores.dtype, torch.float32)), dim=-1)
