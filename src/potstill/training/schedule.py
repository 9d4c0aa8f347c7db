"""A learning-rate schedule that follows the progress of a run instead of its steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import SchedulerType, TrainingArguments, get_scheduler

from potstill.errors import PotstillError


def schedule_by_progress(
    optimizer: torch.optim.Optimizer, args: TrainingArguments, progress: Callable[[], float]
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return the learning-rate schedule that `args` names, driven by progress (0 to 1) instead of by steps.

    With a budget of minutes the number of steps is not known in advance. So the schedule is computed for a fixed number
    of points, and each step uses the point of the current progress.
    """
    points = 100_000
    layout = get_scheduler(
        SchedulerType(args.lr_scheduler_type),
        torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0),
        num_warmup_steps=int(args.warmup_steps * points),
        num_training_steps=points,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs or {},
    )
    if not isinstance(layout, torch.optim.lr_scheduler.LambdaLR):
        raise PotstillError(
            f"--lr_scheduler_type {SchedulerType(args.lr_scheduler_type).value} does not work with "
            "--max_train_minutes: use linear or cosine."
        )
    factor = layout.lr_lambdas[0]
    first = max(1, int(points * 1e-4))  # the progress of the first step is 0, and its learning rate would be 0 too
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: factor(max(first, round(progress() * points))))
