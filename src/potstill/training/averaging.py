"""The mean of the weights over the last part of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from potstill.errors import PotstillError, first_line

AVERAGE = "average.safetensors"  # the sums of the weights in a checkpoint


class WeightAverage(TrainerCallback):
    """Sums the weights after each step of the last part of a run, and replaces the weights by their mean.

    The mean of the weights that a constant learning rate passes through is better than the last of them, and nearly as
    good as the weights after a decay (Izmailov et al. 2018, arXiv 1803.05407; Hägele et al. 2024, arXiv 2405.18392).

    The sums are in float64. A running mean in float32 would ignore the later steps of a long run, whose share of the
    mean is smaller than its rounding.

    Args:
        module: what is trained.
        share: share of the training to average over, above 0 and at most 1.
        progress: returns how far training has come, from 0 to 1.

    Attributes:
        share: as given.
        steps: number of steps that are in the sums.
        first_step: the first of them, counted from 1; 0 if there is none.
        last_weights: held-out metrics of the weights before they were replaced; None if they were not measured.
    """

    def __init__(self, module: nn.Module, share: float, progress: Callable[[TrainerState], float]) -> None:
        self.share = share
        self._module = module
        self._progress = progress
        self.last_weights: dict[str, float] | None = None
        self.clear()

    def clear(self) -> None:
        """Forget all steps."""
        self.steps, self.first_step = 0, 0
        self._sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the weights to the sums if the step is in the last part of the run."""
        if self._progress(state) <= 1 - self.share + 1e-9:  # 1 − 0.9 is not 0.1
            return
        self.steps += 1
        self.first_step = self.first_step or state.global_step
        for name, parameter in self._trained():
            if name not in self._sums:
                self._sums[name] = torch.zeros_like(parameter, dtype=torch.float64)
            self._sums[name].add_(parameter)

    @torch.no_grad()
    def apply(self) -> None:
        """Replace the weights by their mean. Without any step they stay as they are."""
        for name, parameter in self._trained():
            if name in self._sums:
                parameter.copy_(self._sums[name] / self.steps)

    def save(self, folder: str | Path) -> None:
        """Write the sums. Write no file if there is no step in them."""
        if self.steps:
            counts = {"steps": str(self.steps), "first_step": str(self.first_step)}
            sums = {name: tensor.contiguous() for name, tensor in self._sums.items()}
            save_file(sums, Path(folder) / AVERAGE, metadata=counts)

    def load(self, folder: str | Path) -> None:
        """Read what `save` wrote.

        Raises:
            PotstillError: the sums are of another model, or cannot be read.
        """
        self.clear()
        file = Path(folder) / AVERAGE
        if not file.is_file():
            return
        parameters = dict(self._trained())
        try:
            with safe_open(file, "pt") as content:
                counts = content.metadata()
                sums = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (it is no dict)
            steps, first_step = int(counts["steps"]), int(counts["first_step"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise PotstillError(
                f"Cannot resume from {folder}: {AVERAGE} cannot be read ({first_line(error)}); resume from an "
                "earlier checkpoint."
            ) from error
        if {name: one.shape for name, one in sums.items()} != {name: one.shape for name, one in parameters.items()}:
            raise PotstillError(
                f"Cannot resume from {folder}: {AVERAGE} holds the weights of another model: resume from another "
                "checkpoint."
            )
        self.steps, self.first_step = steps, first_step
        self._sums = {name: tensor.to(parameters[name].device) for name, tensor in sums.items()}

    def fit_length(self, state: TrainerState, by_time: bool) -> bool:
        """Make the sums fit a run whose length was changed when it was resumed.

        Steps that are no longer in the last part of the run cannot be taken out of the sums. If no step so far is in
        it, the sums are forgotten and begin again later.

        Args:
            state: of the run, at the step where it resumes, with its new number of steps.
            by_time: whether the run has a budget of time. It is then not known which steps the last part has.

        Returns:
            Whether the sums were forgotten.

        Raises:
            PotstillError: some of the steps in the sums are in the last part, and others may not be.
        """
        if not self.steps or (not by_time and self.first_step / max(state.max_steps, 1) > 1 - self.share + 1e-9):
            return False
        if self._progress(state) > 1 - self.share + 1e-9:
            raise PotstillError(
                f"Cannot resume with another length: --average_weights {self.share} is for the last part of the run, "
                f"but the checkpoint has summed the weights since step {self.first_step}, which may lie before that "
                "part now. Give the length that the run began with, or resume from a checkpoint of an earlier step."
            )
        self.clear()
        return True

    def record(self) -> dict[str, Any]:
        """Return what `results.json` says of the mean."""
        return {
            "share": self.share,
            "first_step": self.first_step,
            "steps": self.steps,
            "held_out_of_last_step": self.last_weights,
        }

    def _trained(self) -> list[tuple[str, Tensor]]:
        return [(name, parameter) for name, parameter in self._module.named_parameters() if parameter.requires_grad]
