"""The record of a run in each of its checkpoints. It is compared when the run is resumed.

Options that decide what is learned, or in which order, may not change during a run: a new value is an error that names
the option. Other options may change. Their new values apply from the resumption on, and the checkpoint records the
change.
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
from transformers import TrainingArguments

from potstill.arguments import RunArguments
from potstill.errors import PotstillError
from potstill.wording import counted

PLACES = {"output_dir", "overwrite_output_dir", "resume_from_checkpoint", "corpus", "teacher", "tokenizer", "task_data"}
PLACES |= {"model", "bilstm", "augment", "train_data", "eval_data", "unlabelled"}
"""Paths. The contents of these paths are compared by fingerprints."""

LENGTH = {"max_steps", "num_train_epochs", "max_train_minutes"}
OPTIMISER = {"learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay"}
OPTIMISER |= {"adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"}
BATCH = {"per_device_train_batch_size", "gradient_accumulation_steps"}
"""May change as long as their product with the number of processes stays the same."""

HARDWARE = {"bf16", "fp16", "tf32", "use_cpu", "torch_compile", "torch_compile_backend", "torch_compile_mode"}
HARDWARE |= {"cuda_graphs", "activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing"}
HARDWARE |= {"gradient_checkpointing_kwargs", "torch_empty_cache_steps", "ddp_find_unused_parameters", "use_cache"}
HARDWARE |= {"ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend", "ddp_timeout"}
HARDWARE |= {"dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers", "local_rank"}
HARDWARE |= {"dataloader_prefetch_factor", "dataloader_multiprocessing_context", "accelerator_config"}
HARDWARE |= {"teacher_embeddings"}  # whether they are computed in each step or before
HARDWARE |= {"full_determinism", "average_tokens_across_devices", "ignore_data_skip"}

LOGGING = {"logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter", "log_on_each_node"}
LOGGING |= {"log_level", "log_level_replica", "disable_tqdm", "report_to", "run_name", "project", "debug"}
LOGGING |= {"trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "include_num_input_tokens_seen"}
LOGGING |= {"skip_memory_metrics", "logging_dir"}

EVALUATION = {"eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "per_device_eval_batch_size"}
EVALUATION |= {"prediction_loss_only", "eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object"}
EVALUATION |= {"include_for_metrics", "batch_eval_metrics", "max_eval_samples", "load_best_model_at_end"}
EVALUATION |= {"metric_for_best_model", "greater_is_better", "do_train", "do_eval", "do_predict"}
EVALUATION |= {"layers_seconds", "without_teacher_too", "n_best", "null_threshold", "max_answer_length"}
EVALUATION |= {"without_unlabelled_too"}

SAVING = {"save_strategy", "save_steps", "save_total_limit", "save_only_model", "save_on_each_node"}
SAVING |= {"enable_jit_checkpoint", "push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy"}
SAVING |= {"hub_always_push", "hub_revision", "restore_callback_states_from_checkpoint"}

FAULTS = {"on_nan", "max_skipped_steps", "break_lock"}

NAMES = {"shape"}
"""Short for other options, which are compared."""

MAY_CHANGE = PLACES | LENGTH | OPTIMISER | BATCH | HARDWARE | LOGGING | EVALUATION | SAVING | FAULTS | NAMES
"""Any other option, and so any new one, may not change when a run is resumed."""


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """The record of a run in a checkpoint.

    Attributes:
        options: name → value of the options that may not change, and of those of the optimiser and of the length.
        batch: rows or blocks that a step of the optimiser takes, over all processes.
        fingerprints: name → hash of the contents that the run reads: ``corpus``, ``teacher`` and so on.
        processes: number of processes that trained together.
        changes: one entry for each resumption that changed an option or the number of processes: the step, and
            option → [value before, after].
    """

    options: dict[str, Any]
    batch: int
    fingerprints: dict[str, str]
    processes: int
    changes: tuple[dict[str, Any], ...] = ()

    @classmethod
    def of(cls, args: RunArguments, fingerprints: dict[str, str]) -> RunRecord:
        """Return the record of a new run."""
        names = {field.name for field in dataclasses.fields(args)}
        compared = names - (MAY_CHANGE - OPTIMISER - LENGTH - args.decide_order)
        options = {
            field.name: plain(getattr(args, field.name))
            for field in dataclasses.fields(args)
            if field.init and field.name in compared
        }
        if options.get("layers", "") is None:  # the student was built by other means than the options
            del options["layers"]
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return cls(options, batch, fingerprints, args.world_size)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> RunRecord | None:
        """Return the record in the state of a checkpoint; None if an earlier version wrote the checkpoint."""
        record = state.get("run")
        if record is None:
            return None
        return cls(**{field.name: record[field.name] for field in dataclasses.fields(cls)})

    def resumed(self, before: RunRecord, step: int, where: str, defaults: Mapping[str, Any]) -> RunRecord:
        """Return the record of this run after it resumes from a checkpoint.

        Args:
            before: record in the checkpoint.
            step: step of the checkpoint.
            where: folder of the checkpoint, for messages.
            defaults: see `own_defaults`. An option that the checkpoint does not know had its default.

        Raises:
            PotstillError: something changed that may not change; the message names it.
        """
        if self.batch != before.batch:
            raise PotstillError(
                f"Cannot resume from {where}: a step took {counted(before.batch, 'row')} and would now take "
                f"{self.batch}. Keep "
                "the product of --per_device_train_batch_size, --gradient_accumulation_steps and the number of "
                f"processes, which was {before.processes} and is {self.processes}."
            )
        earlier = {**defaults, **before.options}
        changed = {
            name: [earlier[name], value]
            for name, value in self.options.items()
            if name in earlier and earlier[name] != value
        }
        refused = [name for name in changed if name not in OPTIMISER | LENGTH]
        if refused:
            differences = "; ".join(f"--{name} was {changed[name][0]} and is {changed[name][1]}" for name in refused)
            raise PotstillError(
                f"Cannot resume from {where} with other options: {differences}. Give the value that the run began "
                "with, or start a new run in another --output_dir."
            )
        # Check these after the options: an option may decide whether a run reads something, such as a teacher.
        for name in sorted(self.fingerprints.keys() | before.fingerprints.keys()):
            new, old = self.fingerprints.get(name), before.fingerprints.get(name)
            if new != old:
                raise PotstillError(f"Cannot resume from {where}: {_difference(name, new, old)}")
        if self.processes != before.processes:
            changed["processes"] = [before.processes, self.processes]
        return dataclasses.replace(self, changes=(*before.changes, *([{"step": step, **changed}] if changed else [])))

    def changed_since(self, before: RunRecord) -> set[str]:
        """Return the options of the optimiser and of the length that have a new value."""
        return {name for name in OPTIMISER | LENGTH if self.options.get(name) != before.options.get(name)}


def own_defaults(kind: type[RunArguments]) -> dict[str, Any]:
    """Return the defaults of the options that potstill adds to those of `TrainingArguments`.

    Those without one value for all runs are left out: the layers, which are found, and what is None by default.
    """
    inherited = {field.name for field in dataclasses.fields(TrainingArguments)}
    return {
        field.name: plain(field.default)
        for field in dataclasses.fields(kind)
        if field.name not in inherited and field.default is not dataclasses.MISSING and field.default is not None
    }


def _difference(name: str, new: str | None, old: str | None) -> str:
    restart = "start a new run in another --output_dir."
    if new is None:
        return f"the run began with a {name}, but now there is none. Give it, or {restart}"
    if old is None:
        return f"the run began without a {name}, but now there is one. Leave it out, or {restart}"
    return f"the {name} is not the one that the run began with (its contents differ). Give that one, or {restart}"


def plain(value: Any) -> Any:
    """Return a value in the form that JSON would give back."""
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
