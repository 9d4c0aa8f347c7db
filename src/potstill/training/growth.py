"""Growing in mid-training: a checkpoint of a shallow model made into one of a deeper model."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import nn

from potstill.files import complete_folder
from potstill.student import grow, grow_optimizer_state
from potstill.training.checkpoints import WRITE_ERRORS, cannot_write, write_checksums
from potstill.training.step import DistillationStep
from potstill.training.trainer import DistillationTrainer

OPTIMIZER_FILE = "optimizer.pt"  # of `transformers.Trainer`


def grow_checkpoint(checkpoint: Path, trainer: DistillationTrainer) -> None:
    """Make a checkpoint that the trainer's deeper model resumes from, in place.

    Weights and the optimiser's moments of a copied layer are copies; step, schedule, data order and random states stay.
    The folder is replaced whole, so a kill leaves it either shallow or grown, and both can be resumed.

    Args:
        checkpoint: folder of the shallow model's checkpoint.
        trainer: holds a model of the same family and the depth to grow to; its weights are not read.

    Raises:
        PotstillError: the grown checkpoint cannot be written; the shallow one is still there.
    """
    # Whether to grow was read from this folder: every process must have done so before it changes.
    trainer.accelerator.wait_for_everyone()
    if trainer.args.should_save:
        shallow = type(trainer.student).from_pretrained(checkpoint, use_safetensors=True, dtype=torch.float32)
        step = DistillationStep(shallow, None, trainer.step.objective, trainer.args.seed)
        old_names = optimizer_names(trainer, step)
        state = torch.load(checkpoint / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
        state = grow_optimizer_state(state, old_names, optimizer_names(trainer, trainer.step), shallow)
        try:
            with complete_folder(checkpoint) as folder:
                shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
                grow(shallow, trainer.student.config.num_hidden_layers).save_pretrained(folder)
                torch.save(state, folder / OPTIMIZER_FILE)
                write_checksums(folder)
        except WRITE_ERRORS as error:
            raise cannot_write(checkpoint, error, checkpoint) from error
    trainer.accelerator.wait_for_everyone()


def optimizer_names(trainer: DistillationTrainer, step: nn.Module) -> list[list[str]]:
    """Return the names of the parameters in each group of the optimiser that a trainer would make for a step.

    `Trainer` makes two groups, in this order: what weight decay applies to, and the rest.
    """
    decayed = set(trainer.get_decay_parameter_names(step))
    names = [name for name, parameter in step.named_parameters() if parameter.requires_grad]
    return [[name for name in names if (name in decayed) is wanted] for wanted in (True, False)]
