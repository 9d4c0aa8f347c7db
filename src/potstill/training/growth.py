"""Growing during training: turn a checkpoint of a shallow model into one of a deeper model."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from potstill.files import complete_folder
from potstill.student import grow, grow_optimizer_state
from potstill.training.checkpoints import WRITE_ERRORS, cannot_write, write_checksums
from potstill.training.step import DistillationStep
from potstill.training.trainer import DistillationTrainer

OPTIMIZER_FILE = "optimizer.pt"  # of `transformers.Trainer`


def grow_checkpoint(checkpoint: Path, trainer: DistillationTrainer) -> None:
    """Turn a checkpoint, in place, into one that the trainer's deeper model can resume from.

    The weights of a copied layer and its moments in the optimiser are copies. Step, schedule, data order and random
    states stay the same. The folder is replaced atomically: after a kill it is either shallow or grown, and both can be
    resumed.

    Args:
        checkpoint: folder of the shallow model's checkpoint.
        trainer: holds a model of the same family with the new depth; its weights are not read.

    Raises:
        PotstillError: the grown checkpoint cannot be written. The shallow one is still there.
    """
    # Every process reads from this folder whether to grow. All of them must have read it before it changes.
    trainer.accelerator.wait_for_everyone()
    if trainer.args.should_save:
        shallow = type(trainer.student).from_pretrained(checkpoint, use_safetensors=True, dtype=torch.float32)
        step = DistillationStep(shallow, None, trainer.step.objective, trainer.args.seed)
        old_names = trainer.parameter_groups(step, shallow)
        new_names = trainer.parameter_groups(trainer.step, trainer.student)
        state = torch.load(checkpoint / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
        state = grow_optimizer_state(state, old_names, new_names, shallow)
        try:
            with complete_folder(checkpoint) as folder:
                shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
                grow(shallow, trainer.student.config.num_hidden_layers).save_pretrained(folder)
                torch.save(state, folder / OPTIMIZER_FILE)
                write_checksums(folder)
        except WRITE_ERRORS as error:
            raise cannot_write(checkpoint, error, checkpoint) from error
    trainer.accelerator.wait_for_everyone()
