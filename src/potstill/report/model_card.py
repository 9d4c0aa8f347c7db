"""The model card: what a trained folder says of itself, every figure of it measured by the run that wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedConfig

from potstill.corpus import Manifest


def model_card(config: PreTrainedConfig, recipe: dict[str, Any], results: dict[str, Any], manifest: Manifest) -> str:
    """Return a model card in the hub's format: YAML header, then Markdown.

    Args:
        config: the trained model's.
        recipe: options of the run, as `recipe_values` returns them.
        results: what was measured, as `run_results` returns it.
        manifest: of the corpus.
    """
    teacher = recipe.get("teacher")
    header: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["potstill", "distillation"] if teacher else ["potstill", "masked-lm"],
    }
    if teacher and not Path(teacher).exists():  # a name of the hub, not a folder of the machine that trained it
        header["base_model"] = teacher
    sections = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
        _summary(config, recipe, results),
        _held_out(results["held_out"], bool(teacher), recipe.get("short_block_size")),
        _recipe(recipe),
        _corpus(manifest),
        _cost(results),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _summary(config: PreTrainedConfig, recipe: dict[str, Any], results: dict[str, Any]) -> str:
    shape = (
        f"{config.num_hidden_layers} layers, {config.hidden_size} wide, vocabulary of {config.vocab_size:,}, "
        f"{results['parameters']:,} parameters with its masked-LM head"
    )
    lines = []
    if "teacher" in recipe:
        lines += [
            f"# A student of {Path(recipe['teacher']).name}",
            "",
            f"A `{config.model_type}` of {shape}, distilled with potstill by the "
            "method of DistilBERT (Sanh et al. 2019, arXiv 1910.01108).",
            "",
        ]
        if recipe["initialise"] == "random":
            lines.append("It started from random weights.")
        else:
            folded = (
                "The teacher's segment-0 embedding was added into the position embeddings, so that single-segment "
                "text has the same embeddings as in the teacher."
                if recipe["fold_token_types"]
                else "The teacher's segment embeddings were dropped."
            )
            lines.append(f"It started from the teacher's layers by the rule `{recipe['layers']}`. {folded}")
    else:
        lines += [
            f"# A {config.model_type} of {config.num_hidden_layers} layers",
            "",
            f"A `{config.model_type}` of {shape}, pre-trained by masked LM with potstill.",
        ]
    usage = [
        "",
        "```python",
        "from transformers import pipeline",
        "",
        'fill = pipeline("fill-mask", model="path/of/this/folder")',
        'fill(f"The capital of France is {fill.tokenizer.mask_token}.")',
        "```",
    ]
    return "\n".join(lines + usage)


def _held_out(held_out: dict[str, Any], with_teacher: bool, short: int | None) -> str:
    final, initial = held_out["final"], held_out["initial"]
    if final is None:
        return "## Held-out text\n\nNot measured: the corpus has no held-out block."
    name = "student" if with_teacher else "model"
    rows = [
        "## Held-out text",
        "",
        "Masked LM on documents kept out of training, 15 % of the tokens masked uniformly, the same masks for every "
        "row. KL (teacher ‖ model, nats), agreement of the first choice: at the masked tokens. Cosine of the last "
        "hidden states: all tokens.",
        "",
        "| | loss (nats) | accuracy | KL | agreement | cosine |",
        "|---|---|---|---|---|---|",
    ]
    if "teacher_loss" in final:
        rows.append(f"| teacher | {final['teacher_loss']:.3f} | {final['teacher_accuracy']:.1%} | | | |")
    if initial:
        rows.append(_row(f"{name}, as initialised", initial))
    rows.append(_row(f"{name}, trained", final))
    if "short_loss" in final:
        at_short = {key.removeprefix("short_"): value for key, value in final.items() if key.startswith("short_")}
        rows.append(_row(f"{name}, trained, blocks cut to {short} tokens", at_short))
    if final.get("teacher_accuracy"):  # there is no share of nothing
        kept = final["accuracy"] / final["teacher_accuracy"]
        rows += ["", f"The student keeps {kept:.1%} of the teacher's accuracy."]
    return "\n".join(rows)


def _row(name: str, metrics: dict[str, float]) -> str:
    compared = [
        f"{metrics[key]:{form}}" if key in metrics else ""
        for key, form in (("kl", ".3f"), ("agreement", ".1%"), ("cosine", ".3f"))
    ]
    return f"| {name} | {metrics['loss']:.3f} | {metrics['accuracy']:.1%} | {' | '.join(compared)} |"


def _recipe(recipe: dict[str, Any]) -> str:
    rows = [f"| `{name}` | `{value}` |" for name, value in recipe.items()]
    return "\n".join(
        ["## Recipe", "", "`recipe.yaml` beside this card reruns it.", "", "| option | value |", "|---|---|", *rows]
    )


def _corpus(manifest: Manifest) -> str:
    splits = [
        f"| {name} | {split.documents:,} | {split.blocks:,} | {split.blocks * manifest.block_size:,} |"
        for name, split in manifest.splits.items()
    ]
    sources = [
        f"| {Path(source.name).name} | {source.documents:,} | `{(source.sha256 or '')[:16]}` |"
        for source in manifest.sources
    ]
    return "\n".join(
        [
            "## Corpus",
            "",
            f"Blocks of {manifest.block_size} tokens, without padding.",
            "",
            "| split | documents | blocks | tokens |",
            "|---|---|---|---|",
            *splits,
            "",
            "| source | documents | SHA-256, first 16 |",
            "|---|---|---|",
            *sources,
        ]
    )


def _cost(results: dict[str, Any]) -> str:
    cost, versions = results["cost"], results["versions"]
    return "\n".join(
        [
            "## Cost",
            "",
            f"{cost['steps']:,} steps, {cost['tokens']:,} tokens, {cost['seconds']:,.0f} seconds on "
            f"{cost['processes']} × {cost['hardware']}; {', '.join(f'{k} {v}' for k, v in versions.items())}.",
        ]
    )
