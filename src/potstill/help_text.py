"""What `--help` shows: the options that most people need, by what they are for. `--help-all` shows every option."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable

from potstill.command_line import Option, Verb

NARROWEST, WIDEST = 80, 120
INDENT = 26
"""Column at which the text of an option begins."""

CONFIG = Option("config", "str", "YAML recipe: options by name; flags overrule it.")

_TRAINING = ("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps")
_RESUME = ("resume_from_checkpoint", "save_steps")

SECTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "prepare": {
        "What goes in": ("text", "tokenizer", "train_tokenizer", "config"),
        "What comes out": ("output_dir", "overwrite_output_dir", "block_size", "validation_fraction"),
        "Which text": ("text_column", "sample_by", "on_bad_text"),
        "Time and memory": ("num_proc",),
    },
    "distill": {
        "What goes in": ("teacher", "corpus", "config"),
        "What comes out": ("output_dir", "overwrite_output_dir", "report_to"),
        "The student": ("num_hidden_layers", "layers"),
        "The losses": ("alpha_ce", "alpha_mlm", "alpha_cos", "temperature", "soft_targets"),
        "Time and memory": (*_TRAINING, "max_train_minutes", "learning_rate", "bf16", "use_cpu"),
        "Resume": _RESUME,
    },
    "pretrain": {
        "What goes in": ("corpus", "tokenizer", "model", "config"),
        "What comes out": ("output_dir", "overwrite_output_dir", "report_to"),
        "The model": ("num_hidden_layers", "hidden_size", "num_attention_heads", "max_position_embeddings", "grow"),
        "Time and memory": (*_TRAINING, "max_train_minutes", "learning_rate", "bf16", "use_cpu"),
        "Resume": _RESUME,
    },
    "finetune": {
        "What goes in": ("model", "task", "task_data", "max_length", "config"),
        "What comes out": ("output_dir", "overwrite_output_dir"),
        "A teacher of the task": ("teacher", "alpha_ce", "alpha_task", "alpha_cos", "temperature"),
        "Time and memory": (
            *("num_train_epochs", "per_device_train_batch_size", "learning_rate", "max_train_samples"),
            *("max_eval_samples", "freeze_encoder", "bf16", "use_cpu", "seed"),
        ),
        "Resume": ("resume_from_checkpoint", "save_strategy"),
    },
    "evaluate": {
        "What goes in": ("models", "suite", "task_data", "config"),
        "What comes out": ("output_dir",),
        "How it is measured": ("seeds", "search", "second_distillation", "max_train_samples", "max_eval_samples"),
        "Time and memory": (
            *("num_train_epochs", "per_device_train_batch_size", "learning_rate", "runs_per_gpu"),
            *("bf16", "use_cpu"),
        ),
    },
    "export": {
        "What goes in": ("model", "config"),
        "What comes out": ("format", "output_dir", "overwrite_output_dir"),
        "Fewer bits": ("quantization", "weight_bits", "calibration_data"),
        "How near it must be": ("task", "check_data", "tolerance", "min_agreement", "score_tolerance"),
    },
    "bench train": {
        "What goes in": ("teacher", "corpus", "pretrain", "config"),
        "What comes out": ("json",),
        "What is measured": ("bench_steps", "bench_warmup", "baseline"),
        "Time and memory": (
            *("per_device_train_batch_size", "gradient_accumulation_steps", "block_size", "bf16", "torch_compile"),
            *("cuda_graphs", "use_cpu"),
        ),
    },
}
"""Verb → title → names of options. A verb that is not here has few enough options to show them all."""


def short_help(name: str, verb: Verb) -> str:
    """Return what `--help` prints: the options that most people need."""
    known = {option.name: option for option in (*verb.options, CONFIG)}
    sections = {title: [known[one] for one in names] for title, names in SECTIONS.get(name, {}).items()}
    if not sections:
        return full_help(name, verb)
    rest = sum(option.offered for option in verb.options) - sum(map(len, sections.values())) + 1
    closing = f"--help-all shows {rest} more options. [What holds where an option is not given.]"
    return _page(name, verb, sections, closing)


def full_help(name: str, verb: Verb) -> str:
    """Return what `--help-all` prints: every option that the verb takes."""
    known = {option.name: option for option in (*verb.options, CONFIG)}
    sections = {title: [known[one] for one in names] for title, names in SECTIONS.get(name, {}).items()}
    shown = {option.name for options in sections.values() for option in options}
    rest = [option for option in known.values() if option.offered and option.name not in shown]
    sections["More options" if sections else "Options"] = [option for option in rest if not option.inherited]
    sections["Options of transformers.TrainingArguments"] = [option for option in rest if option.inherited]
    return _page(name, verb, sections, "[What holds where an option is not given.]")


def _page(name: str, verb: Verb, sections: dict[str, list[Option]], closing: str) -> str:
    width = max(NARROWEST, min(WIDEST, shutil.get_terminal_size((NARROWEST, 0)).columns))
    needed = [option for option in verb.options if option.required]
    words = [
        option.name.upper() + " ..." * option.many if option.word else f"--{option.name} {_value(option)}"
        for option in needed
    ]
    lines = [f"usage: potstill {name} {' '.join([*words, '[options]'])}", *textwrap.wrap(verb.summary, width)]
    for title, options in sections.items():
        if options:
            lines += ["", title, *_lines(options, width)]
    return "\n".join([*lines, "", closing])


def _lines(options: Iterable[Option], width: int) -> list[str]:
    lines = []
    for option in options:
        head = f"  --{option.name} {_value(option)}".rstrip()
        default = f" [{option.default}]" if option.default not in ("", "false") else ""
        text = f"{'Required. ' if option.required else ''}{option.help}{default}"
        wrapped = textwrap.wrap(text, width - INDENT, break_on_hyphens=False) or [""]
        if len(head) < INDENT - 1:
            lines.append(f"{head:<{INDENT}}{wrapped[0]}")
            wrapped = wrapped[1:]
        else:
            lines.append(head)
        lines += [" " * INDENT + line for line in wrapped]
    return lines


def _word(option: Option) -> str:
    return f"{option.name.upper()} ..." if option.many else option.name.upper()


def _value(option: Option) -> str:
    """Return what stands for an option's value."""
    if option.kind == "bool":
        return ""
    one = {"int": "N", "float": "X"}.get(option.kind, "TEXT")
    if option.choices and len(option.choices) < 7:
        one = "{" + ",".join(option.choices) + "}"
    return f"{one} ..." if option.many else one
