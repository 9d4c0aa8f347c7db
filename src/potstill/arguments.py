"""What all training has in common: `TrainingArguments` with defaults that suit potstill's trainers, checked.

Every option is a field, a flag of the command line and a key of a YAML file, by the same name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, ClassVar

import torch
import yaml
from transformers import TrainingArguments

from potstill.errors import PotstillError
from potstill.processes import launched, meet_anew

RECIPE = "recipe.yaml"
"""In the folder of a run: the options that rerun it."""


def option(default: Any, help: str, required: bool = False, several: bool = False) -> Any:
    """Declare a field with its default and the sentence that `--help` shows.

    A required one is asked for by the command line. From Python it is the verb that misses it, so it has a default.
    One of the type `list[str] | str | None`, in this order, takes several values on the command line too.
    """
    told = ({"required": True} if required else {}) | ({"nargs": "+"} if several else {})
    return field(default=default, metadata={"help": help} | told)


@dataclass
class RunArguments(TrainingArguments):
    """Options of every training run. A subclass gives all of its own a default: `output_dir` alone makes one of it.

    Raises:
        PotstillError: a value that cannot be, named by its field.
    """

    output_dir: str | None = option(None, "Folder to write to.", required=True)
    cuda_graphs: bool = option(
        False,
        "Record what the GPU does in a step and replay it: several times faster for models so small that the GPU "
        "waits for Python, of no use to large ones. For a single process.",
    )
    overwrite_output_dir: bool = option(False, "Write into --output_dir although it has something in it.")

    resume_from_checkpoint: str | None = option(
        None,
        "true: from the newest checkpoint; auto: from the newest good checkpoint, or from the start if there is "
        "none; or a folder.",
    )
    logging_steps: float = option(20, "Log every so many steps.")
    logging_first_step: bool = option(True, "Log the first step too.")
    logging_nan_inf_filter: bool = option(False, "Hide losses that are NaN; potstill stops at the first one instead.")
    save_total_limit: int | None = option(2, "Checkpoints to keep; the oldest go first.")
    disable_tqdm: bool | None = option(True, "Progress is one line per logging step; false adds a bar.")
    remove_unused_columns: bool = option(False, "What is read has no column to remove.")
    ddp_find_unused_parameters: bool | None = option(False, "Every parameter is used in every step.")

    not_offered: ClassVar[frozenset[str]] = frozenset(
        {"label_smoothing_factor", "neftune_noise_alpha", "bf16_full_eval", "fp16_full_eval", "auto_find_batch_size"}
    )
    """Options that help does not show, for they are refused."""

    # What an error says where not even a batch of one fits into memory.
    smallest_batch = "one row is the least it can take, so shorten the rows"

    def __post_init__(self) -> None:
        if not self.output_dir:  # `TrainingArguments` would write to a folder of its own choice
            raise PotstillError("--output_dir is missing: name the folder to write to.")
        for name in ("label_smoothing_factor", "neftune_noise_alpha"):
            self._check(name, not getattr(self, name), "has no meaning for this objective; leave it out")
        for name in ("bf16_full_eval", "fp16_full_eval"):
            self._check(
                name, not getattr(self, name), "is not supported: the verb decides in which precision it measures"
            )
        rule = "would change the optimiser's batch; lower --per_device_train_batch_size and raise "
        rule += "--gradient_accumulation_steps instead"
        self._check("auto_find_batch_size", not self.auto_find_batch_size, rule)
        self._check("learning_rate", 0 < self.learning_rate < math.inf, "must be above 0")
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            self._check(name, getattr(self, name) > 0, "must be above 0")
        self._check("seed", self.seed >= 0, "must be 0 or more")
        if self.max_steps <= 0:
            self._check("num_train_epochs", 0 < self.num_train_epochs < math.inf, "must be above 0")
        if not torch.cuda.is_available():
            self.dataloader_pin_memory = False  # torch warns at every loader otherwise
        elif self.accelerator_config is None:  # type: ignore[has-type]
            # From pinned memory a batch can follow on the device's own time; otherwise each step waits for the last.
            self.accelerator_config = {"non_blocking": True}
        meet_anew()
        backend: str | None = self.ddp_backend  # type: ignore[has-type]
        if not launched():  # a recipe of several processes may be run by one, for which accelerate knows no back end
            self.ddp_backend = None
        try:
            super().__post_init__()
        except (ValueError, TypeError) as error:
            raise PotstillError(" ".join(str(error).split())) from error
        self.ddp_backend = backend

    @property
    def records(self) -> bool:
        """Whether steps are recorded as CUDA graphs."""
        # `DistributedDataParallel` has parts of autograd of its own, on another stream than the one recorded.
        return self.cuda_graphs and self.device.type == "cuda" and self.world_size == 1

    @property
    def minutes(self) -> float | None:
        """The budget of wall-clock minutes, None where steps alone end the run."""
        return None

    def steps_in_all(self, steps_per_epoch: int) -> int:
        """Return how many steps the run has at most: `max_steps`, or those of its epochs where that is not given."""
        return self.max_steps if self.max_steps > 0 else math.ceil(self.num_train_epochs * steps_per_epoch)

    def replaced(self) -> set[str]:
        """Return the names of options that have no meaning beside others that are given; a recipe leaves them out."""
        return set()

    def _check(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise PotstillError(f"--{name} is {getattr(self, name)!r}: it {rule}.")


def recipe_values(args: RunArguments) -> dict[str, Any]:
    """Return what reruns a recipe: every option of potstill's own, and of the rest those off their default.

    Left out is what belongs to one run alone: where it wrote, and what it resumed from.
    """
    plumbing = {"logging_first_step", "logging_nan_inf_filter", "disable_tqdm", "remove_unused_columns"}
    plumbing |= {"dataloader_drop_last", "ddp_find_unused_parameters", "gradient_checkpointing"}
    one_run = {"output_dir", "overwrite_output_dir", "resume_from_checkpoint", "logging_dir", "run_name"}
    own = {name for cls in type(args).__mro__ if issubclass(cls, RunArguments) for name in cls.__annotations__}
    own -= plumbing | args.replaced()
    # To make arguments sets up the devices anew: the same ones, and never while a trainer is at work with them.
    default = type(args)(output_dir=args.output_dir, use_cpu=args.use_cpu)
    default.use_cpu = False  # which is the default, so that a recipe says it where it is not
    values = {}
    for f in fields(args):
        value = _plain(getattr(args, f.name))
        secret = f.name.endswith("_token")  # the recipe and the card are there to be published
        if not f.init or secret or f.name in one_run or not isinstance(value, str | int | float | bool | list | dict):
            continue
        if f.name in own or value != _plain(getattr(default, f.name)):
            values[f.name] = value
    return values


def recipe_text(verb: str, args: RunArguments) -> str:
    """Return the recipe of a run as it is written, with the command that reruns it."""
    return f"# potstill {verb} --config {RECIPE} --output_dir …\n" + yaml.safe_dump(
        recipe_values(args), sort_keys=False
    )


def _plain(value: Any) -> Any:
    """Return an enumeration by its name, anything else as it is."""
    return value.value if isinstance(value, Enum) else value


def named_models(words: Sequence[str] | None) -> list[tuple[str, str]]:
    """Return name and folder of each model that `--models` names, in order.

    Raises:
        PotstillError: one is not written as NAME=FOLDER.
    """
    pairs = []
    for model in words or []:
        name, equals, folder = model.partition("=")
        if not (name and equals and folder):
            raise PotstillError(f"--models {model!r} is not NAME=FOLDER, as in student=out/student.")
        pairs.append((name, folder))
    return pairs
