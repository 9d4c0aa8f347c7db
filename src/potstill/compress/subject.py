"""The task that a model is pruned for: the loss of its training rows, and the score on its dev rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from potstill.compress.prune_arguments import PruneArguments
from potstill.errors import PotstillError
from potstill.finetuning.job import Job
from potstill.finetuning.models import load_task_teacher
from potstill.finetuning.objective import NO_TAG
from potstill.finetuning.predict import predict
from potstill.finetuning.step import TaskStep
from potstill.tasks.per_label import DETAILS

Batch = dict[str, Tensor]


class Subject:
    """A model with the head of a task, and the data of that task.

    Args:
        args: options of the verb.

    Attributes:
        job: the data, tokenised for the model.
        model: in float32, in evaluation mode, on the device of the run.

    Raises:
        PotstillError: data or model are missing or cannot be used, the model is not fine-tuned on the task, or there
            are no labels.
    """

    def __init__(self, args: PruneArguments) -> None:
        self.args = args
        self.job = Job.prepare(args)
        data, name = self.job.data, args.model or ""
        if not getattr(data, "labelled", True):
            raise PotstillError(
                "The training rows have no labels, and importance is computed from labels: give rows that have them."
            )
        model, labels = load_task_teacher(name, data.head, data.labels, data.shape().get("problem_type"), "model")
        places = labels.places if labels is not None else None
        if places is not None and (places != [*range(len(places))] or model.config.num_labels != len(places)):
            raise PotstillError(
                f"the labels of the model {name!r} are not those of the task in its order, "
                f"{', '.join(data.labels or ())}: fine-tune it on the task with `potstill finetune` first."
            )
        self.model: PreTrainedModel = model.to(args.device)

    def batches(self) -> Iterator[tuple[int, Batch]]:
        """Yield the training rows, as many as `max_train_samples`: the number of rows of a batch, and the batch."""
        for places, batch in self.job.train.batches(self.args.per_device_train_batch_size or 1):
            if "lists" in batch:  # each passage is a row of its own
                batch["places"] = torch.arange(len(places))[:, None]
                del batch["lists"]
            yield len(places), self._on_device(batch)

    def loss(self, batch: Batch) -> Tensor:
        """Return the sum of the losses of the rows of a batch: see `row_losses`."""
        objective = self.args.ranking_objective() if self.args.ranks else self.args.objective()
        return row_losses(TaskStep(self.model, objective), batch)

    def score(self, model: PreTrainedModel) -> tuple[float, dict[str, Any], dict[str, Any]]:
        """Return the score of a model on the dev rows, its metrics, and the figures of each label."""
        size = self.args.per_device_eval_batch_size
        found = self.job.data.score(lambda rows: predict(model, rows, size), self.job.dev)
        details = {name: found.pop(name) for name in DETAILS if name in found}
        if "threshold" in found:  # from which probability on a label is meant
            model.config.threshold = found["threshold"]
        return found.pop("score"), found, details

    def requests(self, count: int) -> list[Batch]:
        """Return the inputs of single dev rows, spread over their lengths, without padding."""
        rows = next(iter(self.job.dev.values()))
        order = rows.lengths.argsort(kind="stable")
        chosen = [int(order[number * len(order) // count]) for number in range(min(count, len(order)))]
        found = []
        for place in chosen:
            length = int(rows.lengths[place])
            batch = rows.__getitems__([place])
            found.append(self._on_device({name: batch[name][:, :length] for name in ("attention_mask", *rows.tokens)}))
        return found

    def _on_device(self, batch: Batch) -> Batch:
        return {name: tensor.to(self.args.device) for name, tensor in batch.items()}


def row_losses(step: TaskStep, batch: Batch) -> Tensor:
    """Return the sum of the losses of the rows of a batch.

    The loss of a row is what fine-tuning minimises: its cross-entropy, its squared error, the mean over its labels, or
    the mean of start and end. For tags it is the sum over the tokens of the row that have one.
    """
    labels = batch.get("labels")
    by_token = labels is not None and labels.dim() == 2 and not labels.is_floating_point()
    count = (labels != NO_TAG).sum().clamp(min=1) if by_token and labels is not None else len(batch["input_ids"])
    return step(**batch)["loss"] * count
