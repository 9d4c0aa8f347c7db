"""The objective: a sum of weighted terms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from potstill.errors import PotstillError
from potstill.objective.ensemble import Ensemble
from potstill.objective.parts import LogitsMSE, MaskedLM, SoftTargets
from potstill.objective.term import Batch, Encoded, Flops, Term, Weighted
from potstill.objective.vocabulary import Vocabulary
from potstill.student import Reads

Value = Callable[[Batch], Tensor]
_PARTS = (SoftTargets, MaskedLM, LogitsMSE)


class Objective:
    """The sum of some losses, each times its weight; the weights are not normalised.

    A loss of weight 0 is left out: nothing of it is computed, and nothing is kept for it.

    Args:
        losses: `SoftTargets`, `MaskedLM` and `LogitsMSE`, which are joined into one `Vocabulary`; and any `Term`.

    Attributes:
        terms: those with a weight, `Vocabulary` first.

    Raises:
        PotstillError: no loss has a weight, or two have the same name.
    """

    def __init__(self, losses: Iterable[Weighted]) -> None:
        losses = list(losses)
        for name, count in Counter(loss.name for loss in losses).items():
            if count > 1:
                raise PotstillError(f"losses: {name} is given {count} times: give it once, or name one otherwise.")
        used = [loss for loss in losses if loss.weight > 0]
        if not used:
            raise PotstillError("losses: no loss has a weight above 0, so there is nothing to learn from.")
        parts: dict[str, Any] = {loss.name: loss for loss in used if isinstance(loss, _PARTS)}
        fused = [Vocabulary(**parts)] if parts else []
        self.terms: tuple[Term, ...] = (*fused, *(loss for loss in used if isinstance(loss, Term)))

    @cached_property
    def student_reads(self) -> Reads:
        """What any term reads of the student."""
        reads = Reads()
        for term in self.terms:
            reads |= term.student_reads
        return reads

    @cached_property
    def teacher_reads(self) -> Reads:
        """What any term reads of the teacher."""
        reads = Reads()
        for term in self.terms:
            reads |= term.teacher_reads
        return reads

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares with a teacher; without one the teacher need not run."""
        return bool(self.teacher_reads)

    @property
    def losses(self) -> dict[str, dict[str, Any]]:
        """The losses with their options, as a recipe says them under `losses:`."""
        found: dict[str, dict[str, Any]] = {}
        for term in self.terms:
            found |= term.options() if isinstance(term, Vocabulary) else {term.name: term.options()}
        return found

    def check(self, teacher: PreTrainedConfig | None, student: PreTrainedConfig) -> None:
        """Check that teacher and student fit each term.

        Raises:
            PotstillError: the first thing that does not fit, with what to do.
        """
        comparing = [name for term in self.terms for name in term.comparing]
        if teacher is None and comparing:
            one = len(comparing) == 1
            raise PotstillError(
                f"The loss{'' if one else 'es'} {' and '.join(comparing)} need{'s' if one else ''} a teacher: "
                f"name one, or set {'its weight' if one else 'their weights'} to 0."
            )
        for term in self.terms:
            if teacher is not None and term.teacher_reads:
                term.check(teacher, student)
            for role, reads, config in (
                ("student", term.student_reads, student),
                ("teacher", term.teacher_reads, teacher),
            ):
                depth = 0 if config is None else config.num_hidden_layers
                for layer in reads.hidden | reads.attention:
                    if not -depth <= layer < depth:
                        raise PotstillError(
                            f"The loss {term.name} reads layer {layer} of the {role}, which has {depth} layers, "
                            "counted from 0."
                        )

    def flops(self, teacher: PreTrainedConfig | None, student: PreTrainedConfig, block_size: int) -> Flops:
        """Return the FLOPs per token of all terms' own matrix products: see `Term.flops`."""
        found = [term.flops(teacher, student, block_size) for term in self.terms]
        return Flops(sum(flops.teacher for flops in found), sum(flops.student for flops in found))

    def modules(self, teachers: Sequence[PreTrainedConfig], student: PreTrainedConfig, seed: int = 0) -> nn.ModuleDict:
        """Return what the terms train besides the student, each for each teacher; the same for the same seed.

        Args:
            teachers: the configs of all teachers, in order.
            student: of the model in training.
            seed: decides the initial weights.

        Returns:
            The modules by the name of the term; for the second teacher and those after it, its number follows.
        """
        modules = nn.ModuleDict()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            for term in self.terms:
                for number, teacher in enumerate(teachers):
                    module = term.module(teacher, student) if term.teacher_reads else None
                    if module is not None:
                        modules[_module_name(term, number)] = module
        return modules

    def compiled(self, **options: Any) -> dict[str, Value]:
        """Return the compiled values of the terms that can be, by name, with the options of `torch.compile`."""
        return {term.name: torch.compile(term.value, **options) for term in self.terms if term.compiled}

    def __call__(
        self,
        student: Encoded,
        teachers: Sequence[Encoded],
        positions: Tensor,
        labels: Tensor,
        modules: nn.ModuleDict | None = None,
        values: Mapping[str, Value] | None = None,
        ensemble: Ensemble | None = None,
    ) -> dict[str, Tensor]:
        """Return the named losses of a batch, each a float32 scalar; ``loss``, their weighted sum, has a gradient.

        The averages are over counts that are the same for every batch (all tokens; K masked tokens a block), so the
        mean over micro-batches is the loss of the whole batch, however it is split.

        Args:
            student: of a batch of B blocks of L tokens.
            teachers: each of the same batch; may be none if no term needs one.
            positions: (B, K) int64, the masked positions of each block.
            labels: (B, K) int64, the original tokens there, -100 where there is none to predict.
            modules: what the terms train, from `modules`.
            values: what computes a term by its name in place of `Term.value`, from `compiled`.
            ensemble: how several teachers become one; by equal weights if not given.
        """
        ensemble = ensemble or Ensemble.of(len(teachers))
        trained, values = dict(modules.items()) if modules is not None else {}, values or {}
        logged: dict[str, Tensor] = {}
        parts: list[Tensor] = []
        for term in self.terms:
            batches = [
                Batch(student, teacher, positions, labels, trained.get(_module_name(term, number)))
                for number, teacher in enumerate(teachers or [None])
            ]
            part, named = term.losses(batches, values.get(term.name, term.value), ensemble)
            parts.append(part)
            logged |= named
        return {"loss": torch.stack(parts).sum(), **logged}


def _module_name(term: Term, number: int) -> str:
    """Return what is called the module that a term trains for a teacher, which is counted from 0."""
    return f"{term.name} {number + 1}" if number else term.name
