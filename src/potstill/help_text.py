"""The texts of `--help` and `--help-all`. `--help` shows common options, grouped by purpose; `--help-all` shows all."""

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
        "Input": ("text", "tokenizer", "train_tokenizer", "config"),
        "Output": ("output_dir", "overwrite_output_dir", "block_size", "validation_fraction"),
        "Text": ("text_column", "sample_by", "on_bad_text"),
        "Time and memory": ("num_proc",),
    },
    "distill": {
        "Input": ("teacher", "corpus", "config"),
        "Output": ("output_dir", "overwrite_output_dir", "report_to"),
        "The student": ("num_hidden_layers", "layers", "hidden_size", "max_size"),
        "The losses": ("alpha_ce", "alpha_mlm", "alpha_cos", "temperature", "soft_targets"),
        "Time and memory": (*_TRAINING, "max_train_minutes", "learning_rate", "bf16", "use_cpu"),
        "Resume": _RESUME,
    },
    "pretrain": {
        "Input": ("corpus", "tokenizer", "model", "config"),
        "Output": ("output_dir", "overwrite_output_dir", "report_to"),
        "The model": ("num_hidden_layers", "hidden_size", "num_attention_heads", "max_position_embeddings", "grow"),
        "Time and memory": (*_TRAINING, "max_train_minutes", "learning_rate", "bf16", "use_cpu"),
        "Resume": _RESUME,
    },
    "finetune": {
        "Input": ("model", "task", "task_data", "train_data", "eval_data", "config"),
        "Output": ("output_dir", "overwrite_output_dir"),
        "The student": ("num_hidden_layers",),
        "A teacher of the task": ("teacher", "unlabelled", "alpha_ce", "alpha_task"),
        "Time and memory": (
            *("num_train_epochs", "per_device_train_batch_size", "learning_rate", "max_train_samples"),
            *("bf16", "use_cpu", "seed"),
        ),
        "Resume": ("resume_from_checkpoint", "save_strategy"),
    },
    "evaluate": {
        "Input": ("models", "suite", "task_data", "sts_data", "retrieval_data", "rerank_data", "config"),
        "Output": ("output_dir",),
        "Measurement": ("seeds", "search", "second_distillation", "max_train_samples", "max_eval_samples"),
        "Time and memory": (
            *("num_train_epochs", "per_device_train_batch_size", "learning_rate", "runs_per_gpu"),
            *("bf16", "use_cpu"),
        ),
    },
    "prune": {
        "Input": ("model", "task", "task_data", "train_data", "eval_data", "config"),
        "Output": ("output_dir", "overwrite_output_dir"),
        "What is removed": ("heads", "neurons", "steps", "uniform", "max_loss"),
        "Time and memory": ("max_train_samples", "max_eval_samples", "timed_rows", "use_cpu"),
    },
    "export": {
        "Input": ("model", "config"),
        "Output": ("format", "output_dir", "overwrite_output_dir"),
        "Quantization": ("quantization", "weight_bits", "calibration_data"),
        "Check against the source": ("task", "check_data", "tolerance", "min_agreement", "score_tolerance"),
    },
    "bench train": {
        "Input": ("teacher", "corpus", "pretrain", "config"),
        "Output": ("json",),
        "Measurement": ("bench_steps", "bench_warmup", "baseline"),
        "Time and memory": (
            *("per_device_train_batch_size", "gradient_accumulation_steps", "block_size", "bf16", "torch_compile"),
            *("cuda_graphs", "use_cpu"),
        ),
    },
}
"""Verb → title → names of options. A verb that is missing here has few options, so help shows them all."""

CLOSING = "Values in [brackets] are defaults."


def short_help(name: str, verb: Verb) -> str:
    """Return the text of `--help`: the options that most people need."""
    known = {option.name: option for option in (*verb.options, CONFIG)}
    sections = {title: [known[one] for one in names] for title, names in SECTIONS.get(name, {}).items()}
    if not sections:
        return full_help(name, verb)
    rest = sum(option.offered for option in verb.options) - sum(map(len, sections.values())) + 1
    closing = f"--help-all shows {rest} more options. {CLOSING}"
    return _page(name, verb, sections, closing)


def full_help(name: str, verb: Verb) -> str:
    """Return the text of `--help-all`: every option that the verb offers."""
    known = {option.name: option for option in (*verb.options, CONFIG)}
    sections = {title: [known[one] for one in names] for title, names in SECTIONS.get(name, {}).items()}
    shown = {option.name for options in sections.values() for option in options}
    rest = [option for option in known.values() if option.offered and option.name not in shown]
    sections["More options" if sections else "Options"] = [option for option in rest if not option.inherited]
    sections["Options of transformers.TrainingArguments"] = [option for option in rest if option.inherited]
    return _page(name, verb, sections, CLOSING)


def _page(name: str, verb: Verb, sections: dict[str, list[Option]], closing: str) -> str:
    width = max(NARROWEST, min(WIDEST, shutil.get_terminal_size((NARROWEST, 0)).columns))
    needed = [option for option in verb.options if option.required]
    words = [
        option.name.upper() + " ..." * option.many if option.positional else f"--{option.name} {_value(option)}"
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


def _value(option: Option) -> str:
    """Return the placeholder for an option's value."""
    if option.kind == "bool":
        return ""
    one = {"int": "N", "float": "X"}.get(option.kind, "TEXT")
    if option.choices and len(option.choices) < 7:
        one = "{" + ",".join(option.choices) + "}"
    return f"{one} ..." if option.many else one
