"""The options that all training verbs share: `TrainingArguments` with checks and potstill's own defaults.

Every option is a field of a dataclass, a flag of the command line and a key of a YAML file. The three have one name.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import yaml
from transformers import TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available, is_torch_xla_available

from potstill.errors import PotstillError
from potstill.precision.fixed_point import FixedPointFormats
from potstill.processes import launched, open_new_store
from potstill.wording import counted
from potstill.yaml_files import parse_yaml

RECIPE = "recipe.yaml"
"""Name of a file in the folder of a run. It holds the options that rerun the run."""


def option(default: Any, help: str, required: bool = False, several: bool = False) -> Any:
    """Declare a field with its default and the sentence that `--help` shows.

    The command line asks for a required option. From Python the verb itself reports that it is missing, so the field
    has a default all the same. With `several`, the command line takes one or more values; the type of the field is
    then `list[str] | str | None`, in this order.
    """
    for_parser = ({"required": True} if required else {}) | ({"nargs": "+"} if several else {})
    return field(default=default, metadata={"help": help} | for_parser)


@dataclass
class RunArguments(TrainingArguments):
    """Options of every training run.

    A subclass gives each option of its own a default, so that `output_dir` alone makes an instance.

    Raises:
        PotstillError: an option has an impossible value; the message names the option.
    """

    output_dir: str | None = option(None, "Folder to write to.", required=True)
    cuda_graphs: bool = option(
        False,
        "Record the work of the GPU in one step and replay it. This makes very small models several times faster, "
        "because the GPU then waits for Python. It does not help large models.",
    )
    fixed_point: dict | str | None = option(
        None,
        "Train in fixed-point numbers of few bits, such as '{weights: Q4.12, activations: Q6.10, gradients: Q-8.24, "
        "rounding: stochastic}': bits before the point with the sign, and after it; rounding is stochastic or nearest.",
    )
    overwrite_output_dir: bool = option(False, "Write into --output_dir although it is not empty.")
    break_lock: bool = option(
        False,
        "Take over the lock of --output_dir that a process of another machine left, as after that machine failed.",
    )

    resume_from_checkpoint: str | None = option(
        None,
        "true: from the newest checkpoint; auto: from the newest good checkpoint, or from the start if there is "
        "none; or a folder.",
    )
    on_nan: Literal["stop", "skip"] = option(
        "stop",
        "When the loss or the gradient of a step is not a finite number: stop, or skip the step, which then changes no "
        "weight and is counted in results.json.",
    )
    max_skipped_steps: int = option(100, "With --on_nan skip: stop after more skipped steps than this.")
    logging_steps: float = option(20, "Steps between two logs of the losses. Not each is a printed line.")
    logging_first_step: bool = option(True, "Log the first step too.")
    logging_nan_inf_filter: bool = option(False, "Hide losses that are NaN. potstill stops at the first NaN instead.")
    save_total_limit: int | None = option(2, "Checkpoints to keep; the oldest are deleted first.")
    push_to_hub: bool = option(False, "Upload the finished model to the Hugging Face hub, with its card and results.")
    hub_strategy: str = option("end", "When to upload with --push_to_hub; only the finished model is uploaded: end.")
    disable_tqdm: bool | None = option(True, "Leave out the bar of transformers. potstill shows the progress itself.")
    remove_unused_columns: bool = option(False, "Remove unused columns; potstill's data have none.")
    ddp_find_unused_parameters: bool | None = option(
        False, "Search for unused parameters; potstill uses all in each step."
    )

    not_offered: ClassVar[frozenset[str]] = frozenset(
        {"label_smoothing_factor", "neftune_noise_alpha", "bf16_full_eval", "fp16_full_eval", "auto_find_batch_size"}
    )
    """Options that help does not show, because they are refused."""

    # The advice of the error message if not even a batch of one row fits into memory.
    smallest_batch = "the batch is one row already, so shorten the rows"

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
        finished = str(_plain(self.hub_strategy)) == "end"
        self._check("hub_strategy", finished, "would upload models that are not finished; leave it out")
        self._check("learning_rate", 0 < self.learning_rate < math.inf, "must be above 0")
        for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
            self._check(name, getattr(self, name) > 0, "must be above 0")
        self._check("seed", self.seed >= 0, "must be 0 or more")
        self._check("on_nan", self.on_nan in ("stop", "skip"), "must be 'stop' or 'skip'")
        self._check("max_skipped_steps", self.max_skipped_steps >= 0, "must be 0 or more")
        self._read_fixed_point()
        if self.bf16 and not (self.use_cpu or is_torch_bf16_gpu_available() or is_torch_xla_available()):
            raise PotstillError(
                "--bf16 is given, but there is no GPU that computes in bfloat16: add --use_cpu to train on the CPU, or "
                "give --bf16 false."
            )
        if self.max_steps <= 0:
            self._check("num_train_epochs", 0 < self.num_train_epochs < math.inf, "must be above 0")
        if not torch.cuda.is_available():
            self.dataloader_pin_memory = False  # torch warns at every loader otherwise
        elif self.accelerator_config is None:  # type: ignore[has-type]
            # The copy of the next batch from pinned memory can overlap with the current step; otherwise each waits.
            self.accelerator_config = {"non_blocking": True}
        if str(vars(self)["fsdp"]).lower() in ("true", "false"):  # as the command line and a recipe write it
            self.fsdp = True if str(vars(self)["fsdp"]).lower() == "true" else None
        open_new_store()
        backend: str | None = self.ddp_backend  # type: ignore[has-type]
        if not launched():  # one process may run a recipe made for several; accelerate has no back end for one
            self.ddp_backend = None
        try:
            super().__post_init__()
        except (ValueError, TypeError) as error:
            raise PotstillError(" ".join(str(error).split())) from error
        self.ddp_backend = backend
        if self.fsdp_plugin_args is not None:
            self.fsdp_plugin_args["state_dict_type"] = "SHARDED_STATE_DICT"

    def _read_fixed_point(self) -> None:
        if self.fixed_point is None:
            return
        self.fixed_point = FixedPointFormats.read(parsed_mapping("fixed_point", self.fixed_point)).record
        # 16-bit floats cannot hold the numbers, and code that is compiled or recorded would round alike in every step.
        graphs = "cuda_graphs" if not type(self).cuda_graphs else ""  # finetune records by default, where it can
        for name in ("bf16", "fp16", "tf32", "fp8", "torch_compile", graphs):
            given = bool(name and getattr(self, name, None))
            self._check(name, not given, "does not go with --fixed_point: leave one of them out")

    @cached_property
    def _setup_devices(self) -> torch.device:
        """The device, as `TrainingArguments` chooses it, but without the number that it gives to a CPU.

        transformers before 5.18 loads the optimiser onto that device, and PyTorch knows no CPU with a number.
        """
        device: torch.device = super()._setup_devices
        return torch.device("cpu") if device.type == "cpu" else device

    @property
    def records(self) -> bool:
        """Whether steps are recorded as CUDA graphs."""
        return self.cuda_graphs and self.device.type == "cuda" and self.fixed_point is None

    @property
    def unrecorded(self) -> str:
        """Why `--cuda_graphs`, which was asked for, has no effect; empty if it has one, or was not asked for."""
        by_default = type(self).cuda_graphs  # finetune records where it can
        if by_default or not self.cuda_graphs or self.records:
            return ""
        return f"it records the work of an NVIDIA GPU, and this run is on {self.device.type}"

    @property
    def minutes(self) -> float | None:
        """The limit of wall-clock minutes; None if only the number of steps ends the run."""
        return None

    def steps_in_all(self, steps_per_epoch: int) -> int:
        """Return the largest number of steps of the run: `max_steps`, or the steps of the epochs if it is not given."""
        return self.max_steps if self.max_steps > 0 else math.ceil(self.num_train_epochs * steps_per_epoch)

    @property
    def decide_order(self) -> frozenset[str]:
        """Options of the batch that decide the order of the data, so that they may not change during a run."""
        return frozenset()

    def keep_batch(self, batch: int) -> None:
        """Take as many micro-batches as a step of a number of rows or blocks has on the processes of this run.

        Micro-batches become smaller only if the rows of a process are no multiple of them.

        Raises:
            PotstillError: the processes cannot share the rows equally. The message says how many can.
        """
        check_shares(batch, self.world_size)
        share = batch // self.world_size
        size = max(count for count in range(1, min(self.train_batch_size, share) + 1) if share % count == 0)
        self.gradient_accumulation_steps = share // size
        setattr(self, "per_device_train_batch_size", size)  # noqa: B010 (the type of the field is a subclass's own)

    def replaced(self) -> set[str]:
        """Return the names of the options that other given options replace. A recipe leaves these out."""
        return set()

    def _check_teachers(self, names: Sequence[str]) -> None:
        """Check that the folders or hub names of teachers are of different teachers."""
        places = [str(path.resolve()) if (path := Path(name).expanduser()).is_dir() else name for name in names]
        twice = next((name for name, place in zip(names, places, strict=True) if places.count(place) > 1), None)
        rule = f"names {twice!r} twice: name it once, and let it count for more with --teacher_weights"
        self._check("teacher", twice is None, rule)

    def _check(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            value = getattr(self, name)
            shown = value[0] if isinstance(value, list) and len(value) == 1 else value
            raise PotstillError(f"--{name} is {shown!r}: it {rule}.")


def check_shares(batch: int, processes: int) -> None:
    """Check that processes can share the rows of a step equally.

    Args:
        batch: rows or blocks that a step of the optimiser takes, over all processes.
        processes: their number.

    Raises:
        PotstillError: they cannot. The message says with how many they can.
    """
    if batch % processes == 0:
        return
    fitting = [count for count in range(1, batch + 1) if batch % count == 0]
    numbers = [count for count in fitting if count < processes][-1:] + [n for n in fitting if n > processes][:1]
    raise PotstillError(
        f"A step of this run takes {counted(batch, 'row')}, which {processes} processes cannot share equally: start "
        f"{' or '.join(map(str, numbers))}."
    )


def recipe_values(args: RunArguments, without: Collection[str] = ()) -> dict[str, Any]:
    """Return the values that rerun a recipe: all of potstill's own options, and inherited ones not at their defaults.

    Options of one run alone are left out: the output folder, and the checkpoint from which the run resumed.

    Args:
        args: options of the run.
        without: options that are left out too.
    """
    internal = {"logging_first_step", "logging_nan_inf_filter", "disable_tqdm", "remove_unused_columns", "push_to_hub"}
    internal |= {"dataloader_drop_last", "ddp_find_unused_parameters", "gradient_checkpointing"}
    one_run = {"break_lock", "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "logging_dir", "run_name"}
    own = {name for cls in type(args).__mro__ if issubclass(cls, RunArguments) for name in cls.__annotations__}
    own -= internal | args.replaced() | set(without)
    # Creating arguments sets up the devices again: use the same devices, and never while a trainer uses them.
    default = type(args)(output_dir=args.output_dir, use_cpu=args.use_cpu)
    default.use_cpu = False  # the default, so that a recipe names use_cpu only if it is true
    values = {}
    for f in fields(args):
        value = _plain(getattr(args, f.name))
        secret = f.name.endswith("_token")  # users publish the recipe and the card
        if not f.init or secret or f.name in one_run or not isinstance(value, str | int | float | bool | list | dict):
            continue
        if f.name in own or value != _plain(getattr(default, f.name)):
            values[f.name] = value
    return values


def recipe_text(verb: str, args: RunArguments, without: Collection[str] = ()) -> str:
    """Return the text of a run's recipe file, which begins with the command that reruns it. See `recipe_values`."""
    return as_recipe(verb, recipe_values(args, without))


def as_recipe(verb: str, values: dict[str, Any]) -> str:
    """Return the text of a recipe file with these options."""
    return f"# potstill {verb} --config {RECIPE} --output_dir …\n" + yaml.safe_dump(values, sort_keys=False)


def _plain(value: Any) -> Any:
    """Return the value of a member of an enumeration; return anything else unchanged."""
    return value.value if isinstance(value, Enum) else value


def parsed_losses(losses: Any) -> Any:
    """Return the value of `--losses`: a text of YAML is read, anything else stays as it is.

    Raises:
        PotstillError: the text is not YAML.
    """
    return parsed_mapping("losses", losses) or ({} if isinstance(losses, str) else losses)  # a later check refuses {}


def parsed_mapping(name: str, value: Any) -> Any:
    """Return the value of an option that takes YAML: a text is read, anything else stays as it is.

    Raises:
        PotstillError: the text is not YAML.
    """
    if not isinstance(value, str):
        return value
    try:
        return parse_yaml(value)
    except (yaml.YAMLError, ValueError) as error:
        raise PotstillError(f"--{name} cannot be read: {' '.join(str(error).split())}.") from error


def named_models(words: Sequence[str] | None) -> list[tuple[str, str]]:
    """Return the name and the folder of each model in `--models`, in order.

    Raises:
        PotstillError: an entry is not NAME=FOLDER.
    """
    pairs = []
    for model in words or []:
        name, equals, folder = model.partition("=")
        if not (name and equals and folder):
            raise PotstillError(f"--models {model!r} is not NAME=FOLDER: write it as in student=out/student.")
        pairs.append((name, folder))
    return pairs
