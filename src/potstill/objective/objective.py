"""The objective: a sum of weighted terms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from potstill.errors import PotstillError
from potstill.objective.ensemble import Ensemble
from potstill.objective.hidden_cosine import HiddenCosine
from potstill.objective.parts import LogitsMSE, MaskedLM, SoftTargets
from potstill.objective.term import Batch, Encoded, Flops, Term, Weighted
from potstill.objective.vocabulary import Vocabulary
from potstill.student import Reads, family_of
from potstill.wording import counted

Value = Callable[[Batch], Tensor]
_PARTS = (SoftTargets, MaskedLM, LogitsMSE)


class Objective:
    """The weighted sum of some losses. The weights are not normalised.

    A loss of weight 0 is left out: it is not computed, and no states are kept for it.

    Args:
        losses: `SoftTargets`, `MaskedLM` or `CausalLM`, and `LogitsMSE`, which are joined into one `Vocabulary`; and
            any `Term`.

    Attributes:
        terms: the terms with a weight above 0, `Vocabulary` first.

    Raises:
        PotstillError: no loss has a weight above 0, two have the same name, or a sample of tokens saves no time.
    """

    def __init__(self, losses: Iterable[Weighted]) -> None:
        losses = list(losses)
        for name, count in Counter(loss.name for loss in losses).items():
            if count > 1:
                raise PotstillError(f"losses: {name} is given {count} times: give it once, or use different names.")
        used = [loss for loss in losses if loss.weight > 0]
        if not used:
            raise PotstillError("losses: no loss has a weight above 0, so there is nothing to learn from.")
        parts: dict[str, Any] = {}
        for loss in used:
            if isinstance(loss, _PARTS):
                field = "hard_labels" if isinstance(loss, MaskedLM) else loss.name
                if field in parts:
                    raise PotstillError("losses: masked_lm and causal_lm are both given: a model learns one of them.")
                parts[field] = loss
        fused = [Vocabulary(**parts)] if parts else []
        self.terms: tuple[Term, ...] = (*fused, *(loss for loss in used if isinstance(loss, Term)))
        self._check_sample()

    @cached_property
    def student_reads(self) -> Reads:
        """The states of the student that any term reads."""
        reads = Reads()
        for term in self.terms:
            reads |= term.student_reads
        return reads

    @cached_property
    def teacher_reads(self) -> Reads:
        """The states of the teacher that any term reads."""
        reads = Reads()
        for term in self.terms:
            reads |= term.teacher_reads
        return reads

    @property
    def sampled_share(self) -> float:
        """The share of the tokens that are not masked that the losses read, sampled for each block; 0 for none."""
        return max(self._shares().values(), default=0.0)

    def _shares(self) -> dict[str, float]:
        """Return the share of each loss at sampled tokens."""
        return {name: options["share"] for name, options in self.losses.items() if options.get("tokens") == "sampled"}

    def _check_sample(self) -> None:
        shares = self._shares()
        for (one, first), (other, second) in pairwise(shares.items()):
            if first != second:
                raise PotstillError(
                    f"losses: {one} has a share of {first:g} and {other} one of {second:g}, but both read the same "
                    "sample of the tokens: give them the same share."
                )
        if HiddenCosine.name in shares and self.student_reads.last == self.teacher_reads.last == "all":
            raise PotstillError(
                "losses: hidden_cosine at sampled tokens saves no time, because another loss reads the last hidden "
                "states of all tokens: give tokens: all to hidden_cosine."
            )

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares with a teacher. If not, the teacher need not run."""
        return bool(self.teacher_reads)

    @property
    def losses(self) -> dict[str, dict[str, Any]]:
        """The losses with their options, in the form of `losses:` in a recipe."""
        found: dict[str, dict[str, Any]] = {}
        for term in self.terms:
            found |= term.options() if isinstance(term, Vocabulary) else {term.name: term.options()}
        return found

    def check_direction(self, causal: bool) -> None:
        """Check that the losses are for a model of this kind.

        Args:
            causal: whether each token of the student sees only the tokens before it.

        Raises:
            PotstillError: a loss is for the other kind; the message names the one to use.
        """
        losses = self.losses
        if causal and "masked_lm" in losses:
            raise PotstillError("losses: masked_lm needs a student that reads both ways: say causal_lm for this one.")
        if not causal and "causal_lm" in losses:
            raise PotstillError("losses: causal_lm needs a causal student, such as a GPT-2: say masked_lm here.")
        if causal:
            self.check_nothing_masked("a causal model has no masked ones")

    def check_nothing_masked(self, why: str = "this training masks none") -> None:
        """Check that no loss is taken at masked tokens, for a training that has none.

        Args:
            why: the reason, for the message.

        Raises:
            PotstillError: one is.
        """
        for name, options in self.losses.items():
            if options.get("tokens") in ("masked", "sampled"):
                raise PotstillError(
                    f"losses: {name} is taken at {options['tokens']} tokens, but {why}: say tokens: all."
                )

    def check(self, teacher: PreTrainedConfig | None, student: PreTrainedConfig, number: int = 0) -> None:
        """Check that teacher and student fit each term.

        Args:
            teacher: config of a teacher; None if there is none.
            student: config of the model in training.
            number: of the teacher, of several, counted from 0.

        Raises:
            PotstillError: something does not fit. The message is about the first problem and says what to do.
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
                with torch.device("meta"):  # makes the module without drawing random numbers
                    mapped = term.module(teacher, student) is not None
                if not term.takes_part(number, mapped):
                    continue
                term.check(teacher, student)
            for role, reads, config in (
                ("student", term.student_reads, student),
                ("teacher", term.teacher_reads, teacher),
            ):
                if config is not None and reads.attention and not family_of(config).shows_attention:
                    raise PotstillError(
                        f"The loss {term.name} reads queries and keys of the {role}, and potstill does not know where "
                        f"models of type {config.model_type!r} make them: leave it out of losses."
                    )
                depth = 0 if config is None else config.num_hidden_layers
                for layer in reads.hidden | reads.attention:
                    if not -depth <= layer < depth:
                        raise PotstillError(
                            f"The loss {term.name} reads layer {layer} of the {role}, which has "
                            f"{counted(depth, 'layer')}, counted from 0: give a number from 0 to {depth - 1}."
                        )

    def flops(self, teacher: PreTrainedConfig | None, student: PreTrainedConfig, block_size: int) -> Flops:
        """Return the FLOPs per token of all terms' own matrix products: see `Term.flops`."""
        found = [term.flops(teacher, student, block_size) for term in self.terms]
        return Flops(sum(flops.teacher for flops in found), sum(flops.student for flops in found))

    def modules(self, teachers: Sequence[PreTrainedConfig], student: PreTrainedConfig, seed: int = 0) -> nn.ModuleDict:
        """Return the modules that the terms train. A term has its own module for each teacher.

        Args:
            teachers: configs of all teachers, in order.
            student: config of the model in training.
            seed: decides the initial weights; equal seeds give equal weights.

        Returns:
            Modules by the name of the term. From the second teacher on, the teacher's number follows the name.
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
        """Return the compiled `value` of each term that allows it, by name, with the options of `torch.compile`."""
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
        sampled: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the named losses of a batch, each a float32 scalar; ``loss``, their weighted sum, has a gradient.

        The averages are over counts that are the same for every batch (all tokens, or K masked tokens per block). So
        the mean over micro-batches is the loss of the whole batch, however it is split.

        Args:
            student: states of the student for a batch of B blocks of L tokens.
            teachers: states of each teacher for the same batch; may be empty if no term needs a teacher.
            positions: (B, K) int64, the masked positions of each block.
            labels: (B, K) int64, the original tokens at these positions, or -100 where nothing is predicted.
            modules: the modules that the terms train, from `modules`.
            values: functions that replace `Term.value`, by the name of the term, from `compiled`.
            ensemble: how the teachers are averaged; with equal weights if not given.
            sampled: (B, S) int64, a random sample of the other positions; needed if `sampled_share` is above 0.
        """
        ensemble = ensemble or Ensemble.of(len(teachers))
        trained, values = dict(modules.items()) if modules is not None else {}, values or {}
        logged: dict[str, Tensor] = {}
        parts: list[Tensor] = []
        for term in self.terms:
            batches = [
                Batch(student, teacher, positions, labels, trained.get(_module_name(term, number)), sampled)
                for number, teacher in enumerate(teachers or [None])
            ]
            part, named = term.losses(batches, values.get(term.name, term.value), ensemble)
            parts.append(part)
            logged |= named
        return {"loss": torch.stack(parts).sum(), **logged}


def _module_name(term: Term, number: int) -> str:
    """Return the name of the module that a term trains for a teacher, counted from 0."""
    return f"{term.name} {number + 1}" if number else term.name
