"""What the steps of all trainings with an objective share: how losses are computed, compiled, recorded and saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from potstill.objective import Encoded, Ensemble, Objective
from potstill.training.checkpoints import load_modules, save_modules
from potstill.training.float32_norms import use_float32_norms
from potstill.training.graphs import Graphed
from potstill.training.teachers import ignore

# Devices whose kernels sum the gradients of 16-bit LayerNorms and embeddings in float32. The kernels of a CPU sum in 16
# bits. There a summand is lost when the sum is some hundred times larger.
FLOAT32_SUMS = ("cuda",)


class ObjectiveStep(nn.Module):
    """A micro-batch of a training: teachers and student run, and the objective compares them.

    Its forward does a whole step except the backward pass, so that it never has to return logits. Its parameters are
    those of the student and of the modules that the objective trains. Teachers are outside the module tree, so the
    optimiser, DistributedDataParallel and checkpoints do not include them.

    Under autocast, teachers compute in the autocast type throughout, on copies of their parameters in that type. On a
    GPU the student does the same. Autocast itself would keep LayerNorm and the values added to it in float32, and move
    twice as many bytes. Trained parameters stay in float32, and so do sums inside LayerNorm, softmax and the losses.

    A subclass says in `_losses` how the models are run, and calls it by `_step`.

    Args:
        student: the module in training.
        objective: computes losses from the states of all models.
        objective_modules: modules that the objective trains besides the student, by the name of the term.

    Attributes:
        student: as given.
        objective: as given.
        objective_modules: as given; often empty.
        mark: called at the end of each part of the step with the name of the part, for measurements.
        replays: whether to replay a recorded step. A replay does not call `mark`.
    """

    student: Any

    def __init__(self, student: nn.Module, objective: Objective, objective_modules: nn.ModuleDict) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        self.objective_modules = objective_modules
        self.mark: Callable[[str], None] = ignore
        self.replays = True
        self._compiled_values: dict[str, Any] = {}
        self._graphed: Graphed | None = None

    @property
    def trained(self) -> PreTrainedModel:
        """The model in training."""
        raise NotImplementedError

    @property
    def checkpointed(self) -> nn.ModuleDict:
        """The modules that are trained and are no part of the model in training."""
        return self.objective_modules

    @property
    def _recomputes(self) -> bool:
        """Whether the student's layers drop their activations and compute them again in the backward pass."""
        raise NotImplementedError

    def _losses(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Return the named losses, each a float32 scalar."""
        raise NotImplementedError

    def _step(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Return the losses, by replaying a recorded step if there is one."""
        run = self._graphed if self._graphed is not None and self.replays else self._losses
        return run(*inputs)

    def _compare(
        self,
        run_student: Callable[[torch.dtype | None], Encoded],
        teachers: Sequence[Encoded],
        positions: Tensor,
        labels: Tensor,
        dtype: torch.dtype | None,
        ensemble: Ensemble | None = None,
        sampled: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Run the student, and return the losses.

        Args:
            run_student: runs the student on copies of its parameters in a type; on the parameters themselves for None.
            teachers: states of each teacher.
            positions: see `Objective.__call__`.
            labels: see `Objective.__call__`.
            dtype: type of autocast; None without it.
            ensemble: see `Objective.__call__`.
            sampled: see `Objective.__call__`.
        """
        device = positions.device.type
        # Recomputed activations would use the parameters themselves, not the copies. Then autocast does the casts.
        # So does a sharded student, because its parameters are gathered in its layers.
        in_place = self._recomputes or isinstance(self, FSDPModule)
        copied = dtype if device in FLOAT32_SUMS and not in_place else None
        if dtype is not None and device not in FLOAT32_SUMS:
            use_float32_norms(self.trained)
        with torch.autocast(device, enabled=dtype is not None and copied is None, dtype=dtype):
            student = run_student(copied)
            self.mark("student")
            modules, values = self.objective_modules, self._compiled_values
            losses = self.objective(student, teachers, positions, labels, modules, values, ensemble, sampled)
            self.mark("losses")
        return losses

    def compile_parts(self, **options: Any) -> None:
        """Compile the parts of a step, with the options of `torch.compile`."""
        self._compiled_values = self.objective.compiled(**options)

    def record_graphs(self) -> None:
        """Replay each step, its backward pass included, as one CUDA graph."""
        self._graphed = Graphed(self._losses, self)

    def refresh(self) -> None:
        """Forget recorded steps: others may have replaced the parameters of the student since the last call."""
        if self._graphed is not None:
            self._graphed.clear()

    def save_objective(self, folder: str | Path) -> None:
        """Write the modules that are no part of the model in training. Write no file if there are none."""
        save_modules(self.checkpointed, folder)

    def load_objective(self, folder: str | Path) -> None:
        """Read what `save_objective` wrote.

        Raises:
            PotstillError: the file was written with other losses than those of this objective, or cannot be read.
        """
        load_modules(self.checkpointed, folder)

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Make the student recompute activations to save memory, as `TrainingArguments` requests."""
        self.trained.gradient_checkpointing_enable(**options)

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Make the student recompute activations to save memory, as newer `TrainingArguments` request."""
        self.trained.activation_checkpointing_enable(**options)


def autocast_dtype(device: str) -> torch.dtype | None:
    """Return the type of autocast on a type of device; None if it is off."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
