"""The training step written the obvious way: what potstill's own is compared with, in results and in speed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from potstill.bench.clock import PartClock
from potstill.corpus import Blocks
from potstill.corpus.masking import MaskedBlocks
from potstill.objective import DistillationObjective
from potstill.recipe import Recipe
from potstill.training.step import DistillationStep


class PlainStep(DistillationStep):
    """The same losses as `DistillationStep`, from the models' own forward passes and their logits at every position.

    It takes its place in a `DistillationTrainer`, whose model it then has to be before training starts:
    `trainer.model = trainer.model_wrapped = PlainStep(trainer.student, trainer.teacher, trainer.step.objective)`.
    """

    def forward(self, input_ids: Tensor, positions: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the named losses, each a float32 scalar: see `DistillationStep.forward`."""
        objective = self.objective
        teacher = None
        if self.teacher is not None and objective.needs_teacher:
            with torch.no_grad():
                teacher = self.teacher(input_ids=input_ids, output_hidden_states=True)
            self.mark("teacher")
        student = self.student(input_ids=input_ids, output_hidden_states=True)
        self.mark("student")

        losses: dict[str, Tensor] = {}
        if objective.alpha_ce > 0:
            assert teacher is not None
            student_logits, teacher_logits = student.logits, teacher.logits
            if objective.soft_targets == "masked":
                student_logits, teacher_logits = _at(student_logits, positions), _at(teacher_logits, positions)
            temperature = objective.temperature
            log_p = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
            log_q = F.log_softmax(student_logits.float() / temperature, dim=-1)
            kl = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
            if objective.soft_targets == "masked":
                kl = kl * (labels >= 0)
            losses["ce"] = kl.mean() * temperature**2
        if objective.alpha_mlm > 0:
            masked_logits = _at(student.logits, positions).float()
            total = F.cross_entropy(masked_logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
            losses["mlm"] = total / labels.numel()
        if objective.alpha_cos > 0:
            assert teacher is not None
            student_hidden, teacher_hidden = student.hidden_states[-1].float(), teacher.hidden_states[-1].float()
            losses["cos"] = 1 - F.cosine_similarity(student_hidden, teacher_hidden, dim=-1).mean()
        weights = {"ce": objective.alpha_ce, "mlm": objective.alpha_mlm, "cos": objective.alpha_cos}
        loss = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        self.mark("losses")
        return {"loss": loss} | {name: value.detach() for name, value in losses.items()}


def _at(logits: Tensor, positions: Tensor) -> Tensor:
    """Return (B, K, V): the rows of (B, L, V) at (B, K) positions."""
    return logits[torch.arange(len(logits), device=logits.device)[:, None], positions]


class PlainTraining:
    """The training loop written the obvious way: eager, under autocast, with AdamW.

    Args:
        student: to train.
        teacher: to learn from, not one whose layers were compiled.
        objective: the losses.
        blocks: what is read.
        masking: how it is masked, on the device of the run.
        args: device, precision, optimiser and accumulation.
        batch_size: blocks per device and micro-batch.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | None,
        objective: DistillationObjective,
        blocks: Blocks,
        masking: Callable[[Tensor, Tensor], MaskedBlocks],
        args: Recipe,
        batch_size: int,
    ) -> None:
        self.args = args
        self.masking = masking
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
            collate_fn=_as_it_is,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
        )
        self._batches = self._batches_for_ever()

    def run(self, steps: int) -> None:
        """Take so many steps of the optimiser."""
        accumulated = self.args.gradient_accumulation_steps
        for _ in range(steps):
            for micro_step in range(accumulated):
                batch = next(self._batches)
                self.clock.mark("data")
                masked = self.masking(batch["input_ids"], batch["draw"])
                self.clock.mark("masking")
                with self._no_sync(micro_step < accumulated - 1):
                    with torch.autocast(self.args.device.type, self.dtype, enabled=self.dtype is not None):
                        loss = self.model(masked.input_ids, masked.positions, masked.labels)["loss"]
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

    def _batches_for_ever(self) -> Generator[dict[str, Tensor], None, None]:
        while True:
            for batch in self._loader:
                yield {name: values.to(self.args.device, non_blocking=True) for name, values in batch.items()}

    def _no_sync(self, wanted: bool) -> contextlib.AbstractContextManager[None]:
        if wanted and isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()


def _as_it_is(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Collate nothing: `Blocks` returns whole batches."""
    return batch
