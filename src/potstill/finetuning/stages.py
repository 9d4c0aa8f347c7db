"""Stages of pre-trained distillation (Turc et al. 2019): which there are, and the options of each.

Every stage is an ordinary run of the verb `pretrain` or `finetune`. This module turns the options of
`finetune --stages` into the options of these runs, and refuses what cannot be, before anything is done.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from potstill.arguments import RunArguments
from potstill.command_line import Verb, parse
from potstill.errors import PotstillError
from potstill.finetuning.finetune import finetune
from potstill.finetuning.finetune_arguments import FinetuneArguments
from potstill.recipe import PretrainingArguments
from potstill.signatures import describe
from potstill.training.checkpoints import is_resuming
from potstill.training.pretrain import pretrain
from potstill.training.run_record import HARDWARE, LOGGING, SAVING
from potstill.yaml_files import parse_yaml

ORDER = ("pretrain", "distill", "finetune")

INITIAL = "0-initial"
"""Folder of a new model with random weights, if it is not pre-trained."""

OF_STAGES = {"stages", "shape", "corpus", "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "model"}
OF_STAGES |= {"push_to_hub", "hub_model_id", "hub_token", "hub_private_repo", "hub_revision"}
"""Options that no stage has of its own."""

OF_DISTILLING = {"teacher", "teacher_heads", "teacher_weights", "unlabelled", "unlabelled_columns"}
OF_DISTILLING |= {"alpha_ce", "alpha_cos", "temperature", "soft_loss"}
"""Options of the stage distill alone."""

OF_LABELS = {"class_weights", "max_train_samples"}
"""Options of the stage finetune alone."""

OF_LAYERS = {"num_hidden_layers", "layers"}

OF_MODEL = OF_LAYERS | {"bilstm"}
"""Options of the first stage that reads `--model`."""

TRANSFER_ONLY: dict[str, Any] = {"max_train_samples": 0, "alpha_task": 0.0, "alpha_ce": 1.0}
"""The soft targets of the unlabelled texts alone teach."""


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: one of `ORDER`.
        folder: its folder.
        verb: the verb that runs it.
        args: the options of its run.
        own: those of them that `--stages` gives it.
    """

    name: str
    folder: Path
    verb: Callable[[Any], Any]
    args: RunArguments
    own: dict[str, Any]


def planned_stages(args: FinetuneArguments) -> list[Stage]:
    """Return the stages that the options ask for, in order.

    Raises:
        PotstillError: a stage is unknown, in a wrong place, or lacks something; or an option belongs to none of them.
    """
    wanted = _wanted(args.stages)
    _check(args, wanted)
    folder = Path(args.output_dir or "").expanduser()
    model = args.model if args.shape is None else str(folder / INITIAL)
    stages: list[Stage] = []
    for number, (name, options) in enumerate(wanted.items(), 1):
        place = folder / f"{number}-{name}"
        verb: Callable[[Any], Any] = pretrain if name == "pretrain" else finetune
        try:
            own = _values(describe(verb), options, f"potstill {verb.__name__}")
            _check_own(name, own)
            if name == "pretrain":
                stage_args: RunArguments = _pretraining(args, place, own)
            else:
                stage_args = _task_run(args, name, place, model or "", own, first=not stages)
        except PotstillError as error:
            error.args = (f"The stage {name}: {error}", *error.args[1:])
            raise
        stages.append(Stage(name, place, verb, stage_args, own))
        model = str(place)
    return stages


def new_model_options(args: FinetuneArguments) -> PretrainingArguments:
    """Return the options of a new model of `args.shape` that is not pre-trained."""
    return PretrainingArguments(output_dir=args.output_dir, shape=args.shape, use_cpu=args.use_cpu, seed=args.seed)


def _wanted(stages: Any) -> dict[str, dict[str, Any]]:
    """Return the options of each stage by its name."""
    if isinstance(stages, str):
        text = stages if stages.lstrip().startswith(("{", "[")) else f"[{stages}]"
        try:
            stages = parse_yaml(text)
        except (yaml.YAMLError, ValueError) as error:
            raise PotstillError(f"--stages cannot be read: {' '.join(str(error).split())}.") from error
    if isinstance(stages, list | tuple):
        twice = next((name for name in stages if stages.count(name) > 1), None)
        if twice is not None:
            raise PotstillError(f"--stages names {twice} twice: leave one out.")
        stages = {str(name): None for name in stages}
    known = ", ".join(ORDER)
    if not isinstance(stages, dict) or not stages:
        raise PotstillError(f"--stages names no stage: give some of {known}, with commas between.")
    for name, options in stages.items():
        if name not in ORDER:
            raise PotstillError(f"--stages has no stage {name!r}: the stages are {known}.")
        if options is not None and not isinstance(options, dict):
            raise PotstillError(f"--stages: {name} is {options!r}: it must be a mapping of options, or empty.")
    names = list(stages)
    if names != sorted(names, key=ORDER.index):
        raise PotstillError(f"--stages is {','.join(names)}, but their order can only be {known}: change it.")
    if names == ["pretrain"]:
        raise PotstillError("--stages pretrain alone trains no task: add a stage, or use `potstill pretrain`.")
    return {name: dict(options or {}) for name, options in stages.items()}


def _check(args: FinetuneArguments, wanted: dict[str, dict[str, Any]]) -> None:
    """Refuse options that lack something, contradict each other, or belong to a stage that is not there."""
    given, pretrains, distils = args.given, "pretrain" in wanted, "distill" in wanted

    def refuse(name: str, rule: str) -> None:
        raise PotstillError(f"--{name} is {given[name]!r}: {rule}.")

    if pretrains and not args.corpus:
        raise PotstillError("--corpus is missing: the stage pretrain reads a folder written by `potstill prepare`.")
    if not pretrains and args.corpus:
        refuse("corpus", "it is for the stage pretrain, which is not among --stages: leave it out")
    if distils:
        for name, what in (
            ("teacher", "a model that is fine-tuned on the task"),
            ("unlabelled", "texts to learn from"),
        ):
            if not getattr(args, name):
                raise PotstillError(f"--{name} is missing: the stage distill needs {what}.")
    for name in sorted(OF_DISTILLING & given.keys()) if not distils else ():
        refuse(name, "it is for the stage distill, which is not among --stages: leave it out")
    for name in sorted(OF_LABELS & given.keys()) if "finetune" not in wanted else ():
        refuse(name, "it is for the stage finetune, which is not among --stages: leave it out")
    sizes = {"shape", "num_hidden_layers", "hidden_size", "config"} & wanted.get("pretrain", {}).keys()
    if pretrains and args.shape is None and not sizes:
        raise PotstillError("--shape is missing: the stage pretrain makes a new model; give its shape, such as mini.")
    if args.model and (pretrains or args.shape is not None):
        other = "the stage pretrain makes" if pretrains else "--shape asks for"
        refuse("model", f"{other} a new model: leave one of the two out")
    if not pretrains and not args.model:
        if args.shape is None:
            raise PotstillError("--model is missing: without the stage pretrain, name the model to start from.")
        if not distils:
            raise PotstillError(
                "--shape makes a new model, which needs a tokenizer: add the stage pretrain or distill."
            )
    for name in sorted(OF_LAYERS & given.keys()) if not args.model else ():
        refuse(name, "it chooses layers of --model, but the model is a new one: give its --shape")
    for name in sorted({"alpha_task", "unlabelled_ratio"} & given.keys()):
        refuse(name, "the stage distill learns from the unlabelled texts alone: leave it out")
    if args.freeze_encoder:
        refuse("freeze_encoder", "the stages train the encoder: leave it out")
    if is_resuming(args.resume_from_checkpoint) and str(args.resume_from_checkpoint).lower() not in ("true", "auto"):
        refuse("resume_from_checkpoint", "stages continue by themselves if the command is repeated: leave it out")


def _check_own(stage: str, own: dict[str, Any]) -> None:
    """Refuse options of one stage that all stages share, or that the stage decides."""
    decided = (OF_STAGES - {"shape"} if stage == "pretrain" else OF_STAGES) | {"task"}
    decided |= TRANSFER_ONLY.keys() - {"alpha_ce"} if stage == "distill" else set()
    for name in own:
        if name in decided:
            raise PotstillError(f"{name} cannot be an option of one stage: give --{name}, or leave it out.")


def _pretraining(args: FinetuneArguments, folder: Path, own: dict[str, Any]) -> PretrainingArguments:
    names = {field.name for field in fields(PretrainingArguments)} & (HARDWARE | LOGGING | SAVING) - OF_STAGES
    shared = {name: value for name, value in args.given.items() if name in names}
    precision = {} if {"bf16", "fp16"} & own.keys() else {"bf16": args.bf16}
    fixed = {"corpus": args.corpus, "shape": args.shape, "seed": args.seed, "output_dir": str(folder)}
    return PretrainingArguments(**shared | precision | fixed | own)


def _task_run(
    args: FinetuneArguments, stage: str, folder: Path, model: str, own: dict[str, Any], first: bool
) -> FinetuneArguments:
    left_out = OF_STAGES | (OF_LABELS if stage == "distill" else OF_DISTILLING) | (set() if first else OF_MODEL)
    shared = {name: value for name, value in args.given.items() if name not in left_out}
    fixed: dict[str, Any] = {"model": model, "output_dir": str(folder)}
    fixed |= {"without_teacher_too": False, "without_unlabelled_too": False}
    if stage == "distill":
        fixed |= TRANSFER_ONLY | {name: shared[name] for name in ("alpha_ce",) if name in shared}
    run = FinetuneArguments(**shared | fixed | own)
    run.check_effects()  # before the stages ahead of it are run
    return run


def _values(verb: Verb, options: dict[str, Any], prog: str) -> dict[str, Any]:
    """Return options of a stage as the command line would read them; `config` names a recipe file."""
    kinds = {option.name: option for option in verb.options}
    flags: list[str] = []
    for name, value in options.items():
        option = kinds.get(name)
        if isinstance(value, bool):  # YAML reads `eval_strategy: no` as false
            value = ("yes" if value else "no") if option and option.kind == "str" else str(value).lower()
        elif isinstance(value, dict):
            value = json.dumps(value)
        elif isinstance(value, list | tuple) and option is not None and option.many:
            flags += [f"--{name}", *map(str, value)]
            continue
        elif isinstance(value, list | tuple):
            value = ",".join(map(str, value))
        if value is not None:
            flags.append(f"--{name}={value}")
    return parse(replace(verb, options=tuple(replace(one, required=False) for one in verb.options)), prog, flags)
