"""What a run is: recorded in each of its checkpoints, and compared when it is resumed.

Whatever decides what is learned, and in which order, may not change in mid-run: another value is refused by name. What
may change is used from then on, and the checkpoint says that it changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from potstill.arguments import RunArguments
from potstill.errors import PotstillError

PLACES = {"output_dir", "overwrite_output_dir", "resume_from_checkpoint", "corpus", "teacher", "tokenizer", "task_data"}
PLACES |= {"model"}
"""Where things are. What lies there is compared by its fingerprint."""

LENGTH = {"max_steps", "num_train_epochs", "max_train_minutes"}
OPTIMISER = {"learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay"}
OPTIMISER |= {"adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"}
BATCH = {"per_device_train_batch_size", "gradient_accumulation_steps"}
"""May change as long as their product with the number of processes does not."""

HARDWARE = {"bf16", "fp16", "tf32", "use_cpu", "torch_compile", "torch_compile_backend", "torch_compile_mode"}
HARDWARE |= {"cuda_graphs", "activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing"}
HARDWARE |= {"gradient_checkpointing_kwargs", "torch_empty_cache_steps", "ddp_find_unused_parameters", "use_cache"}
HARDWARE |= {"ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend", "ddp_timeout"}
HARDWARE |= {"dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers", "local_rank"}
HARDWARE |= {"dataloader_prefetch_factor", "dataloader_multiprocessing_context", "accelerator_config"}
HARDWARE |= {"full_determinism", "average_tokens_across_devices", "ignore_data_skip"}

LOGGING = {"logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter", "log_on_each_node"}
LOGGING |= {"log_level", "log_level_replica", "disable_tqdm", "report_to", "run_name", "project", "debug"}
LOGGING |= {"trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "include_num_input_tokens_seen"}
LOGGING |= {"skip_memory_metrics", "logging_dir"}

EVALUATION = {"eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "per_device_eval_batch_size"}
EVALUATION |= {"prediction_loss_only", "eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object"}
EVALUATION |= {"include_for_metrics", "batch_eval_metrics", "max_eval_samples", "load_best_model_at_end"}
EVALUATION |= {"metric_for_best_model", "greater_is_better", "do_train", "do_eval", "do_predict"}
EVALUATION |= {"without_teacher_too", "n_best", "null_threshold", "max_answer_length"}

SAVING = {"save_strategy", "save_steps", "save_total_limit", "save_only_model", "save_on_each_node"}
SAVING |= {"enable_jit_checkpoint", "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy"}
SAVING |= {"hub_always_push", "hub_revision", "restore_callback_states_from_checkpoint"}

MAY_CHANGE = PLACES | LENGTH | OPTIMISER | BATCH | HARDWARE | LOGGING | EVALUATION | SAVING
"""An option that is not among these, a new one too, may not change when a run is resumed."""


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What a checkpoint says of its run.

    Attributes:
        options: by name, those that may not change and those of the optimiser.
        batch: rows or blocks that a step of the optimiser takes, over all processes.
        fingerprints: what is read → a hash of its contents: ``corpus``, ``teacher`` and so on.
        processes: that trained together.
        changes: one for each resumption that changed something: the step, and option → its value before and after.
    """

    options: dict[str, Any]
    batch: int
    fingerprints: dict[str, str]
    processes: int
    changes: tuple[dict[str, Any], ...] = ()

    @classmethod
    def of(cls, args: RunArguments, fingerprints: dict[str, str]) -> RunRecord:
        """Return the record of a run that begins."""
        options = {
            field.name: plain(getattr(args, field.name))
            for field in dataclasses.fields(args)
            if field.init and (field.name not in MAY_CHANGE or field.name in OPTIMISER | LENGTH)
        }
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return cls(options, batch, fingerprints, args.world_size)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> RunRecord | None:
        """Return the record in a checkpoint's state; None where an earlier version wrote it."""
        record = state.get("run")
        if record is None:
            return None
        return cls(**{field.name: record[field.name] for field in dataclasses.fields(cls)})

    def resumed(self, before: RunRecord, step: int, where: str) -> RunRecord:
        """Return the record of this run, going on from a checkpoint of `before`.

        Args:
            before: what the checkpoint says.
            step: of the checkpoint.
            where: the checkpoint's folder, for messages.

        Raises:
            PotstillError: something that may not change is another one; it is named.
        """
        if self.batch != before.batch:
            raise PotstillError(
                f"Cannot resume from {where}: a step took {before.batch} rows and would now take {self.batch}. Keep "
                "the product of --per_device_train_batch_size, --gradient_accumulation_steps and the number of "
                "processes."
            )
        changed = {
            name: [before.options[name], value]
            for name, value in self.options.items()
            if name in before.options and before.options[name] != value
        }
        refused = [name for name in changed if name not in MAY_CHANGE]
        if refused:
            told = "; ".join(f"--{name} was {changed[name][0]} and is {changed[name][1]}" for name in refused)
            raise PotstillError(
                f"Cannot resume from {where} with other options: {told}. Give the value that the run began with, or "
                "start a new run in another --output_dir."
            )
        # After the options, which may be why a run reads something, say a teacher, or does not.
        for what in sorted(self.fingerprints.keys() | before.fingerprints.keys()):
            mine, other = self.fingerprints.get(what), before.fingerprints.get(what)
            if mine != other:
                raise PotstillError(f"Cannot resume from {where}: {_differs(what, mine, other)}")
        return dataclasses.replace(self, changes=(*before.changes, *([{"step": step, **changed}] if changed else [])))

    def changed_since(self, before: RunRecord) -> set[str]:
        """Return the options of the optimiser and of the length that have another value now."""
        return {name for name in OPTIMISER | LENGTH if self.options.get(name) != before.options.get(name)}


def _differs(what: str, mine: str | None, other: str | None) -> str:
    new = "start a new run in another --output_dir."
    if mine is None:
        return f"the run began with a {what}, and none is given now. Give it, or {new}"
    if other is None:
        return f"the run began without a {what}, and one is given now. Leave it out, or {new}"
    return f"the {what} is not the one that the run began with (its contents are others). Give that one, or {new}"


def plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def weights_hash(model: nn.Module) -> str:
    """Return a SHA-256, in hexadecimal, of a model's parameters: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        tensor = parameter.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def table_hash(columns: Mapping[str, Any]) -> str:
    """Return a SHA-256, in hexadecimal, of named arrays: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, column in sorted(columns.items()):
        array = np.ascontiguousarray(column)
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def model_fingerprint(folder: str | Path) -> str:
    """Return a SHA-256, in hexadecimal, of a model's config and weights."""
    digest = hashlib.sha256()
    for file in sorted([*Path(folder).glob("*.safetensors"), Path(folder) / "config.json"]):
        digest.update(file.name.encode())
        with open(file, "rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
