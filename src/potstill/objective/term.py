"""The interface of a loss: a weighted term of the objective, the states that it reads, and its checks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from potstill.errors import PotstillError
from potstill.objective.ensemble import Ensemble
from potstill.student import Reads, Rows, States, VocabularyHead, at_tokens
from potstill.wording import counted


@dataclass(frozen=True)
class Encoded(States):
    """The outputs of a model for a batch before its logits: the states that are read, and the head for the logits.

    Attributes:
        head: makes the logits; None for a model without one.
        at: (B, R) int64, the tokens whose last hidden states these are, the masked ones first; None for all tokens.
        block_size: L, if `at` is given.
        rows: the texts in the blocks; None for blocks of running text.
        pooled: (B · S, D), the embedding of each text in `rows`, if it is read.
    """

    head: VocabularyHead | None
    rows: Rows | None = None
    pooled: Tensor | None = None
    at: Tensor | None = None
    block_size: int | None = None

    @property
    def last(self) -> Tensor:
        """The last hidden states (B, L, H) of all tokens.

        Raises:
            PotstillError: only those of some tokens were computed, because no loss reads all.
        """
        if self.at is not None:
            raise PotstillError(
                "The last hidden states of the masked tokens alone were computed, because no loss reads those of all "
                "tokens: read them with last_at, or let the loss read Reads(hidden={-1})."
            )
        return self.hidden[-1]

    @property
    def length(self) -> int:
        """Tokens of a block, L."""
        return self.hidden[-1].shape[1] if self.block_size is None else self.block_size

    def last_at(self, positions: Tensor, sampled: Tensor | None = None) -> Tensor:
        """Return the last hidden states of the masked tokens, and of a sample if it is given.

        Args:
            positions: (B, K), of the masked tokens.
            sampled: (B, S), of the sampled tokens.

        Returns:
            (B, K, H), or (B, K + S, H).
        """
        if self.at is None:
            return at_tokens(self.hidden[-1], positions if sampled is None else torch.cat([positions, sampled], 1))
        return self.hidden[-1][:, : positions.shape[1] + (0 if sampled is None else sampled.shape[1])]


@dataclass(frozen=True)
class Batch:
    """The input of a term for a batch of B blocks of L tokens.

    Attributes:
        student: outputs of the student.
        teacher: outputs of one teacher; None if there is no teacher. With several teachers, each has its own `Batch`.
        positions: (B, K) int64, the masked positions of each block.
        labels: (B, K) int64, the original tokens at these positions, or -100 where nothing is predicted.
        trained: the module that `Term.module` returned; None if the term has none.
        sampled: (B, S) int64, a random sample of the other positions; None unless a loss reads it.
    """

    student: Encoded
    teacher: Encoded | None
    positions: Tensor
    labels: Tensor
    trained: nn.Module | None = None
    sampled: Tensor | None = None


class Flops(NamedTuple):
    """FLOPs per token of a term's own matrix products in the forward pass. Those of the models are not included.

    Attributes:
        teacher: FLOPs on states of the teacher, which have no backward pass.
        student: FLOPs on states of the student. The backward pass takes twice as many.
    """

    teacher: float = 0.0
    student: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """A loss that a recipe names, with its weight. Further options are fields of the subclasses.

    Attributes:
        name: its name under `losses:` in a recipe.
        weight: factor on its value; 0 leaves it out.

    Raises:
        PotstillError: an option has a value that is not valid.
    """

    name: ClassVar[str]
    weight: float = 1.0

    def __post_init__(self) -> None:
        self._number("weight", lambda weight: 0 <= weight < float("inf"), "a number, 0 or more")

    def options(self) -> dict[str, Any]:
        """Return the options in the form in which a recipe has them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def refuse(self, option: str, rule: str) -> PotstillError:
        """Return the error for an option whose value is not valid."""
        return PotstillError(f"losses: {option} of {self.name} is {getattr(self, option)!r}: it must be {rule}.")

    def _number(self, option: str, holds: Callable[[float], bool], rule: str) -> None:
        """Check a number, and store it as a float: YAML reads 1e-1 as text."""
        value = getattr(self, option)
        try:
            number = float("nan") if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            raise self.refuse(option, rule) from None
        if not holds(number):
            raise self.refuse(option, rule)
        object.__setattr__(self, option, number)

    def _choice(self, option: str, choices: tuple[str, ...]) -> None:
        if getattr(self, option) not in choices:
            raise self.refuse(option, f"{', '.join(choices[:-1])} or {choices[-1]}")


SAMPLED_SHARE = 0.2
"""With 15 % of the tokens masked, the losses then read a third of all tokens."""


@dataclass(frozen=True, kw_only=True)
class AtTokens(Weighted):
    """A loss that may be taken at some tokens of a block.

    Attributes:
        tokens: all tokens of a block, [CLS] and [SEP] included; the masked ones; or sampled: the masked ones and a
            random sample of the others. Each sampled token counts for as many as it stands for, so that the expectation
            of the loss and of its gradient is that of all tokens.
        share: with tokens: sampled, the share of the tokens that are not masked to sample. All losses at sampled tokens
            read the same sample.
    """

    tokens: Literal["all", "masked", "sampled"] = "all"
    share: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._choice("tokens", ("all", "masked", "sampled"))
        if self.tokens == "sampled":
            if self.share is None:
                object.__setattr__(self, "share", SAMPLED_SHARE)
            self._number("share", lambda value: 0 < value < 1, "a number above 0 and below 1")
        elif self.share is not None:
            raise self.refuse("share", "left out unless tokens is sampled")

    def options(self) -> dict[str, Any]:
        """See `Weighted.options`."""
        return {name: value for name, value in super().options().items() if value is not None}


def sample_weights(positions: Tensor, sampled: Tensor, length: int) -> Tensor:
    """Return (B, K + S) float32, the number of tokens that each masked token, and then each sampled one, stands for.

    A masked token stands for itself, a sampled one for an equal part of the tokens that are not masked.

    Args:
        positions: (B, K), of the masked tokens.
        sampled: (B, S), of the sampled tokens.
        length: L, tokens of a block.
    """
    masked, drawn = positions.shape[1], sampled.shape[1]
    weights = torch.ones((len(sampled), masked + drawn), device=sampled.device)
    weights[:, masked:] = (length - masked) / max(drawn, 1)  # nothing is drawn if all tokens are masked
    return weights


@dataclass(frozen=True, kw_only=True)
class Term(Weighted, ABC):
    """One loss of the objective. A subclass is a frozen dataclass whose fields are its options.

    Attributes:
        logged_as: name of its value in the log; by default its name.
        compiled: whether `value` is compiled with the layers, in a run that compiles. Then `value` may only consist of
            tensor operations.
    """

    logged_as: ClassVar[str] = ""
    compiled: ClassVar[bool] = True

    @property
    @abstractmethod
    def student_reads(self) -> Reads:
        """The states of the student that it reads."""

    @property
    def teacher_reads(self) -> Reads:
        """The states of the teacher that it reads. They are empty if it does not compare with a teacher."""
        return Reads()

    @property
    def comparing(self) -> list[str]:
        """The names of its losses that need a teacher."""
        return [self.name] if self.teacher_reads else []

    @abstractmethod
    def value(self, batch: Batch) -> Tensor:
        """Return the loss of a batch without its weight, a scalar in float32 or wider.

        It must be a mean over counts that are the same for every batch. Then the mean over micro-batches is the loss of
        the whole batch, however it is split.
        """

    def check(self, teacher: PreTrainedConfig, student: PreTrainedConfig) -> None:
        """Check that teacher and student fit. It is called before the first step if the term reads a teacher.

        Raises:
            PotstillError: they do not fit. The message names the option to change.
        """

    def flops(self, teacher: PreTrainedConfig | None, student: PreTrainedConfig, block_size: int) -> Flops:
        """Return the FLOPs per token of its own matrix products. Those of the models are counted elsewhere.

        Args:
            teacher: config of the teacher; None if there is no teacher.
            student: config of the model in training.
            block_size: L, tokens of a block.
        """
        return Flops()

    def module(self, teacher: PreTrainedConfig, student: PreTrainedConfig) -> nn.Module | None:
        """Return a module that is trained with the student but is not part of it, such as a projection; or None.

        `value` gets it as `Batch.trained`. Checkpoints contain it, but the saved model does not.
        """
        return None

    def takes_part(self, number: int, mapped: bool) -> bool:
        """Return whether the value is also computed for this teacher, of several.

        Teachers that were trained apart have hidden states in unrelated directions. So a term that compares hidden
        states themselves, and not through a learned map, should keep to the first teacher: its layers made the student.

        Args:
            number: of the teacher, counted from 0.
            mapped: whether the term has a `module` for this teacher.
        """
        return number == 0 or bool(self.teacher_reads)

    def losses(
        self, batches: Sequence[Batch], value: Callable[[Batch], Tensor], ensemble: Ensemble
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted loss, and the values for the log by name.

        With several teachers the value is the weighted mean of the values for each teacher that `takes_part`.

        Args:
            batches: the inputs of the term, one for each teacher with the same student; a single one without a teacher.
            value: `self.value`, or its compiled version.
            ensemble: the weights of the teachers.
        """
        numbers = [number for number, batch in enumerate(batches) if self.takes_part(number, batch.trained is not None)]
        found = ensemble.mean_value([value(batches[number]) for number in numbers], numbers)
        found = found.to(torch.promote_types(found.dtype, torch.float32))
        return self.weight * found, {self.logged_as or self.name: found.detach()}


def check_layer(term: Weighted, option: str, layer: int, role: str, config: PreTrainedConfig) -> None:
    """Check that a model has a layer.

    Raises:
        PotstillError: the model has no such layer. The message names the option.
    """
    depth = config.num_hidden_layers
    if not -depth <= layer < depth:
        raise PotstillError(
            f"losses: {option} of {term.name} names layer {layer} of the {role}, which has {counted(depth, 'layer')}: "
            f"give a number from 0 to {depth - 1}, or -1 for the last."
        )


def is_layer_number(value: object) -> bool:
    """Return whether a value is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)
