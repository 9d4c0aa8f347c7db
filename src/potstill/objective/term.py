"""What a loss is: a term of the objective, with a weight, that says what it reads and what must fit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from potstill.errors import PotstillError
from potstill.objective.ensemble import Ensemble
from potstill.student import Reads, States, VocabularyHead


@dataclass(frozen=True)
class Encoded(States):
    """What a model makes of a batch, short of its logits: the states that are read, and the head that makes logits."""

    head: VocabularyHead


@dataclass(frozen=True)
class Batch:
    """What a term sees of a batch of B blocks of L tokens.

    Attributes:
        student: what the student makes of it.
        teacher: what the teacher makes of it; None where there is none. With several teachers there is a batch for
            each of them.
        positions: (B, K) int64, the masked positions of each block.
        labels: (B, K) int64, the original tokens there, -100 where there is none to predict.
        trained: the term's own module, as `Term.module` built it; None if it has none.
    """

    student: Encoded
    teacher: Encoded | None
    positions: Tensor
    labels: Tensor
    trained: nn.Module | None = None


class Flops(NamedTuple):
    """FLOPs per token of a term's own matrix products, forward, beside those of the models.

    Attributes:
        teacher: of what comes from the teacher; it has no backward pass.
        student: of what comes from the student; the backward pass takes twice as many.
    """

    teacher: float = 0.0
    student: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """A loss that a recipe names, with its weight. Further options are fields of the subclasses.

    Attributes:
        name: what it is called under `losses:` in a recipe.
        weight: what its value is multiplied by; 0 leaves it out.

    Raises:
        PotstillError: an option that cannot be.
    """

    name: ClassVar[str]
    weight: float = 1.0

    def __post_init__(self) -> None:
        self._number("weight", lambda weight: 0 <= weight < float("inf"), "a number, 0 or more")

    def options(self) -> dict[str, Any]:
        """Return the options as they are written in a recipe."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def refuse(self, option: str, rule: str) -> PotstillError:
        """Return the error of an option that cannot be."""
        return PotstillError(f"losses: {option} of {self.name} is {getattr(self, option)!r}: it must be {rule}.")

    def _number(self, option: str, holds: Callable[[float], bool], rule: str) -> None:
        """Check a number, and keep it as a float: YAML takes 1e-1 for text."""
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


@dataclass(frozen=True, kw_only=True)
class Term(Weighted, ABC):
    """One loss of the objective. A subclass is a frozen dataclass whose fields are its options.

    Attributes:
        logged_as: what its value is called in the log; its name if not given.
        compiled: whether `value` is compiled with the layers where a run compiles. Then it must be made of operations
            on tensors alone.
    """

    logged_as: ClassVar[str] = ""
    compiled: ClassVar[bool] = True

    @property
    @abstractmethod
    def student_reads(self) -> Reads:
        """What it reads of the student."""

    @property
    def teacher_reads(self) -> Reads:
        """What it reads of the teacher; nothing if it does not compare with one."""
        return Reads()

    @property
    def comparing(self) -> list[str]:
        """The names of the losses in it that need a teacher."""
        return [self.name] if self.teacher_reads else []

    @abstractmethod
    def value(self, batch: Batch) -> Tensor:
        """Return the loss of a batch, a scalar in float32 or wider, not weighted.

        It must be a mean over counts that are the same for every batch, so that the mean over micro-batches is the
        loss of the whole batch, however it is split.
        """

    def check(self, teacher: PreTrainedConfig, student: PreTrainedConfig) -> None:
        """Check that teacher and student fit; asked before the first step, of a term that reads a teacher.

        Raises:
            PotstillError: they do not; the message names the option that mends it.
        """

    def flops(self, teacher: PreTrainedConfig | None, student: PreTrainedConfig, block_size: int) -> Flops:
        """Return the FLOPs of its own matrix products; those of the models follow from what it reads.

        Args:
            teacher: None where there is no teacher.
            student: of the model in training.
            block_size: L, tokens of a block.
        """
        return Flops()

    def module(self, teacher: PreTrainedConfig, student: PreTrainedConfig) -> nn.Module | None:
        """Return what is trained with the student but not part of it, a projection say; None if there is nothing.

        It comes back in `Batch.trained`. Checkpoints have it, the saved model has not.
        """
        return None

    def losses(
        self, batches: Sequence[Batch], value: Callable[[Batch], Tensor], ensemble: Ensemble
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted loss, and what the log gets to see of it by name.

        With several teachers it is the weighted mean of the values against each of them.

        Args:
            batches: what is compared: the same student with each teacher; a single one where there is no teacher.
            value: `self.value`, perhaps compiled.
            ensemble: the weights of the teachers.
        """
        if not self.teacher_reads:
            batches = batches[:1]
        found = ensemble.mean_value([value(batch) for batch in batches])
        found = found.to(torch.promote_types(found.dtype, torch.float32))
        return self.weight * found, {self.logged_as or self.name: found.detach()}


def check_layer(term: Weighted, option: str, layer: int, role: str, config: PreTrainedConfig) -> None:
    """Check that a model has a layer.

    Raises:
        PotstillError: it has not; the message names the option.
    """
    depth = config.num_hidden_layers
    if not -depth <= layer < depth:
        raise PotstillError(
            f"losses: {option} of {term.name} names layer {layer} of the {role}, which has {depth} layers: give a "
            f"number from 0 to {depth - 1}, or -1 for the last."
        )


def is_layer_number(value: object) -> bool:
    """Return whether a value is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)
