"""One micro-batch of a sentence encoder: run teacher and student on blocks of whole texts, and return the losses."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedConfig, PreTrainedModel

from potstill.errors import PotstillError
from potstill.objective import Encoded, Objective
from potstill.sentences.encoder import SentenceEncoder
from potstill.sentences.rows_pooling import pool_rows
from potstill.student import Reads, Rows, family_of
from potstill.student.family import family_or_none
from potstill.student.rows import ATTENTION
from potstill.student.tensors import cast_parameters
from potstill.training.objective_step import ObjectiveStep, autocast_dtype


@dataclass(frozen=True)
class RowFormat:
    """How whole texts are told apart in the blocks of a corpus.

    Attributes:
        first: id of the token that begins each text.
        padding: id of the token that fills a block.
        slots: largest number of texts in a block.
        per_block: average number of texts in a block.
    """

    first: int
    padding: int
    slots: int
    per_block: float

    def __call__(self, input_ids: Tensor) -> Rows:
        """Return the texts in blocks (B, L)."""
        return Rows.of(input_ids, self.first, self.padding, self.slots, self.per_block)


class SentenceStep(ObjectiveStep):
    """The step of a sentence encoder: see `ObjectiveStep`.

    Args:
        student: the encoder in training.
        teacher: is frozen.
        objective: computes losses from the states of both.
        rows: finds the texts in a block.
        seed: decides the initial weights of the modules that the objective trains.

    Attributes:
        rows: as given.

    Raises:
        PotstillError: an encoder cannot read blocks of whole texts.
    """

    def __init__(
        self, student: SentenceEncoder, teacher: SentenceEncoder, objective: Objective, rows: RowFormat, seed: int = 0
    ) -> None:
        super().__init__(student, objective, objective.modules([described(teacher)], described(student), seed))
        self.rows = rows
        teacher = copy.deepcopy(teacher).eval().requires_grad_(False)
        for encoder, role in ((teacher, "teacher"), (student, "student")):
            prepare_for_rows(encoder, role)
        for module in student.modules():
            if isinstance(module, nn.Dropout):  # it is noise here: the embedding to learn is the same in each epoch
                module.p = 0.0
        self._teachers: dict[torch.dtype | None, _Encoder] = {None: _Encoder(teacher, objective.teacher_reads)}
        self._student = (_Encoder(student, objective.student_reads),)
        self._compile_options: dict[str, Any] | None = None

    @property
    def trained(self) -> PreTrainedModel:
        """The student's model. Its Dense modules are checkpointed with those that the objective trains."""
        return self.student.model

    @property
    def checkpointed(self) -> nn.ModuleDict:
        """See `ObjectiveStep.checkpointed`: the modules of the objective, and the Dense modules of the student."""
        modules = dict(self.objective_modules.items())
        if len(self.student.dense):
            modules["dense_of_student"] = self.student.dense
        return nn.ModuleDict(modules)

    @property
    def teacher(self) -> SentenceEncoder:
        """The frozen teacher."""
        return self._teachers[None].encoder

    def to_device(self, device: torch.device) -> None:
        """Move the teacher, which is no part of this module, to the device of the run."""
        self.teacher.to(device)

    def forward(self, input_ids: Tensor, embeddings: Tensor | None = None) -> dict[str, Tensor]:
        """Return the named losses, each a float32 scalar.

        Args:
            input_ids: (B, L) int64, blocks of whole texts.
            embeddings: (B, S, D), the teacher's embeddings of the texts in each block, if they are known. The teacher
                does not run then.
        """
        return self._step(input_ids) if embeddings is None else self._step(input_ids, embeddings)

    def _losses(self, *inputs: Tensor) -> dict[str, Tensor]:
        input_ids, *known = inputs
        dtype = autocast_dtype(input_ids.device.type)
        rows = self.rows(input_ids)
        if known:
            teacher = Encoded({}, {}, None, rows, known[0].flatten(0, 1).float())
        else:
            teacher = self._run_teacher(input_ids, rows, dtype)
        self.mark("teacher")
        none = input_ids.new_empty((len(input_ids), 0))
        return self._compare(lambda copied: self._run_student(input_ids, rows, copied), [teacher], none, none, dtype)

    def teacher_embeddings(self, input_ids: Tensor, dtype: torch.dtype | None) -> Tensor:
        """Return the teacher's embeddings (B · S, D) of the texts in blocks (B, L), computed in a type.

        Args:
            input_ids: the blocks.
            dtype: None for the teacher's own.
        """
        pooled = self._run_teacher(input_ids, self.rows(input_ids), dtype).pooled
        assert pooled is not None
        return pooled

    def forget_teacher_copies(self) -> None:
        """Free the memory of copies of the teacher in other types than its own. They are made again if needed."""
        self._teachers = {None: self._teachers[None]}

    @torch.no_grad()
    def _run_teacher(self, input_ids: Tensor, rows: Rows, dtype: torch.dtype | None) -> Encoded:
        with torch.autocast(input_ids.device.type, enabled=False):
            return self._teacher_in(dtype)(input_ids, rows)

    @property
    def _recomputes(self) -> bool:
        layers = family_of(self.student.model).layers(self.student.model)
        return getattr(layers[0], "gradient_checkpointing", False)

    def _run_student(self, input_ids: Tensor, rows: Rows, dtype: torch.dtype | None) -> Encoded:
        (encoder,) = self._student
        if dtype is None:
            return encoder(input_ids, rows)
        copies = {name: tensor.to(dtype) for name, tensor in encoder.named_parameters()}
        return functional_call(encoder, copies, (input_ids, rows))

    def _teacher_in(self, dtype: torch.dtype | None) -> _Encoder:
        if dtype not in self._teachers:
            encoder = copy.deepcopy(self.teacher)
            cast_parameters(encoder, dtype or torch.float32)
            if encoder.model.device.type == "cuda":
                family_of(encoder.model).fuse_gelu(encoder.model)
            self._teachers[dtype] = _Encoder(encoder, self.objective.teacher_reads)
            if self._compile_options is not None:
                self._teachers[dtype].compile_layers(self._compile_options)
        return self._teachers[dtype]

    def embeddings(self, input_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the embeddings (N, D) of student and teacher for blocks of whole texts, and which of the N exist."""
        rows = self.rows(input_ids)
        reads = Reads(pooled=True)
        student, teacher = (_Encoder(one, reads)(input_ids, rows).pooled for one in (self.student, self.teacher))
        assert student is not None
        assert teacher is not None
        return student, teacher, rows.filled

    def compile_parts(self, **options: Any) -> None:
        """Compile the parts of a step, with the options of `torch.compile`."""
        self._compile_options = options
        super().compile_parts(**options)
        self._student[0].compile_layers(options)


class _Encoder(nn.Module):
    """An encoder as a function of blocks: its states, and the embeddings of the texts."""

    def __init__(self, encoder: SentenceEncoder, reads: Reads) -> None:
        super().__init__()
        self.encoder = encoder
        self.reads = reads

    def forward(self, input_ids: Tensor, rows: Rows) -> Encoded:
        model = self.encoder.model
        states = family_of(model).encode_rows(model, input_ids, rows, self.reads)
        pooled = None
        if self.reads.pooled:
            pooled = self.encoder.finish(pool_rows(self.encoder.pooling.modes, states.last, rows))
        return Encoded(states.hidden, states.attention, None, rows, pooled)

    def compile_layers(self, options: dict[str, Any]) -> None:
        for layer in family_of(self.encoder.model).layers(self.encoder.model):
            layer.compile(**options)


def prepare_for_rows(encoder: SentenceEncoder, role: str) -> None:
    """Let an encoder read blocks of whole texts: its attention stays inside of a text, and has no dropout.

    Raises:
        PotstillError: its architecture cannot read such blocks.
    """
    family = family_or_none(encoder.model.config)
    if family is None or not family.reads_rows:
        raise PotstillError(
            f"The {role} is a {encoder.model.config.model_type}, which cannot read several texts in one block: use a "
            "BERT, DistilBERT, RoBERTa, XLM-RoBERTa, CamemBERT or ELECTRA."
        )
    encoder.model.set_attn_implementation(ATTENTION)


def described(encoder: SentenceEncoder) -> PreTrainedConfig:
    """Return the config of an encoder's model with the width of its embeddings, which the losses need to know."""
    config = copy.deepcopy(encoder.model.config)
    config.embedding_width = encoder.width
    return config
