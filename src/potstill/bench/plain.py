"""A plain training step: the baseline for the results and the speed of potstill's own step."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from potstill.corpus import Blocks
from potstill.corpus.labelling import Labelling
from potstill.objective import Batch, Encoded, Ensemble, Objective, Vocabulary
from potstill.recipe import Recipe
from potstill.student import Reads, Tokens, family_of
from potstill.training.part_clock import PartClock
from potstill.training.step import DistillationStep


class PlainStep(DistillationStep):
    """The same losses as `DistillationStep`, from the models' own forward passes and their logits at every position.

    It can replace the `DistillationStep` of a `DistillationTrainer`. Set it as the model before training starts:
    `trainer.model = trainer.model_wrapped = PlainStep(trainer.student, trainer.teacher, trainer.step.objective)`.
    """

    def forward(
        self, input_ids: Tensor, positions: Tensor, labels: Tensor, sampled: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the named losses, each a float32 scalar: see `DistillationStep.forward`."""
        reads = self.objective.teacher_reads
        teacher = None
        if self.teacher is not None and reads:
            with torch.no_grad():
                teacher, teacher_logits = _full_forward(self.teacher, input_ids, reads)
            self.mark("teacher")
        student, student_logits = _full_forward(self.student, input_ids, self.objective.student_reads)
        self.mark("student")

        parts: list[Tensor] = []
        logged: dict[str, Tensor] = {}
        for term in self.objective.terms:
            if isinstance(term, Vocabulary):
                weighted = _over_logits(
                    term, student_logits, teacher_logits if teacher else None, positions, labels, sampled
                )
                parts += [weight * value for weight, value in weighted.values()]
                logged |= {name: value.detach() for name, (_, value) in weighted.items()}
            else:
                trained = dict(self.objective_modules.items()).get(term.name)
                part, named = term.losses([Batch(student, teacher, positions, labels, trained)], term.value, Ensemble())
                parts.append(part)
                logged |= named
        self.mark("losses")
        return {"loss": torch.stack(parts).sum()} | logged


def _full_forward(model: PreTrainedModel, input_ids: Tensor, reads: Reads) -> tuple[Encoded, Tensor]:
    """Return the outputs that losses read, from a model's own forward pass, and its (B, L, V) logits."""
    output = model(input_ids=input_ids, output_hidden_states=True)
    family, before = family_of(model), output.hidden_states
    layers = list(family.layers(model))
    hidden = {layer: before[layer % len(layers) + 1] for layer in reads.hidden}
    attention = {
        layer: family.attention_inputs(layers[layer], before[layer % len(layers)]) for layer in reads.attention
    }
    return Encoded(hidden, attention, family.head(model)), output.logits


def _over_logits(
    term: Vocabulary,
    student: Tensor,
    teacher: Tensor | None,
    positions: Tensor,
    labels: Tensor,
    sampled: Tensor | None,
) -> dict[str, tuple[float, Tensor]]:
    """Return name in the log → weight and value, for each loss over (B, L, V) logits."""
    found: dict[str, tuple[float, Tensor]] = {}

    def compared(tokens: Tokens, distance: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return the mean of a distance between rows of the teacher's and the student's logits."""
        assert teacher is not None
        if tokens == "all":
            return distance(teacher.float(), student.float()).mean()
        values = distance(_at(teacher, positions).float(), _at(student, positions).float())
        if tokens == "masked":
            return (values * (labels >= 0)).mean()
        assert sampled is not None
        blocks, length = student.shape[:2]
        others = distance(_at(teacher, sampled).float(), _at(student, sampled).float())
        weight = (length - positions.shape[1]) / sampled.shape[1]
        return (values.sum() + weight * others.sum()) / (blocks * length)

    if (soft := term.soft_targets) is not None:

        def divergence(target: Tensor, logits: Tensor) -> Tensor:
            log_p, log_q = (F.log_softmax(values / soft.temperature, dim=-1) for values in (target, logits))
            if soft.divergence == "forward_kl":
                return _kl(log_p, log_q)
            if soft.divergence == "reverse_kl":
                return _kl(log_q, log_p)
            log_mean = torch.logaddexp(log_p, log_q) - math.log(2)
            return (_kl(log_p, log_mean) + _kl(log_q, log_mean)) / 2

        found["ce"] = soft.weight, compared(soft.tokens, divergence) * soft.temperature**2
    if term.hard_labels is not None:
        masked_logits = _at(student, positions).float()
        total = F.cross_entropy(masked_logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
        found[term.hard_labels.logged_as] = term.hard_labels.weight, total / labels.numel()
    if (squared := term.logits_mse) is not None:
        value = compared(squared.tokens, lambda target, logits: (logits - target).square().mean(-1))
        found["logits_mse"] = squared.weight, value
    return found


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p ‖ q) over the last dimension."""
    return F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)


def _at(logits: Tensor, positions: Tensor) -> Tensor:
    """Return (B, K, V): the rows of (B, L, V) at (B, K) positions."""
    return logits[torch.arange(len(logits), device=logits.device)[:, None], positions]


class PlainTraining:
    """A plain training loop: eager, under autocast, with AdamW.

    Args:
        student: the model to train.
        teacher: the model to learn from, without compiled layers.
        objective: the losses.
        blocks: the training data.
        labelling: labels the blocks, on the device of the run.
        args: device, precision, optimiser and accumulation.
        batch_size: blocks per device and micro-batch.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | None,
        objective: Objective,
        blocks: Blocks,
        labelling: Labelling,
        args: Recipe,
        batch_size: int,
    ) -> None:
        self.args = args
        self.labelling = labelling
        step = PlainStep(student.to(args.device), teacher.to(args.device) if teacher else None, objective).train()
        self.clock = PartClock(args.device)
        step.mark = self.clock.mark
        self.model: nn.Module = step
        if args.world_size > 1:
            self.model = DistributedDataParallel(step, device_ids=[args.device] if args.device.type == "cuda" else None)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=args.learning_rate,
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
            weight_decay=args.weight_decay,
        )
        self.dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        self.scaler = torch.amp.GradScaler(args.device.type, enabled=self.dtype == torch.float16)
        self._loader = DataLoader(
            blocks,
            batch_size,
            shuffle=True,
            drop_last=True,
            collate_fn=_unchanged,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
        )
        self._batches = self._endless_batches()

    def run(self, steps: int) -> None:
        """Take this number of optimiser steps."""
        accumulated = self.args.gradient_accumulation_steps
        for _ in range(steps):
            for micro_step in range(accumulated):
                batch = next(self._batches)
                self.clock.mark("data")
                labelled = self.labelling(batch["input_ids"], batch["sample_index"])
                self.clock.mark("masking")
                with self._no_sync(micro_step < accumulated - 1):
                    with torch.autocast(self.args.device.type, self.dtype, enabled=self.dtype is not None):
                        loss = self.model(*labelled.tensors)["loss"]
                    self.scaler.scale(loss / accumulated).backward()
                self.clock.mark("backward")
            self.scaler.unscale_(self.optimizer)
            if self.args.max_grad_norm > 0:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad()
            self.clock.mark("optimiser")

    def close(self) -> None:
        """End the processes that read the data."""
        self._batches.close()

    def _endless_batches(self) -> Generator[dict[str, Tensor], None, None]:
        while True:
            for batch in self._loader:
                yield {name: values.to(self.args.device, non_blocking=True) for name, values in batch.items()}

    def _no_sync(self, wanted: bool) -> contextlib.AbstractContextManager[None]:
        if wanted and isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()


def _unchanged(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the batch: `Blocks` has already collated it."""
    return batch
