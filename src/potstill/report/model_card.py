"""The model card of a training run. The run that writes the card measured every figure in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from potstill.corpus import Manifest
from potstill.report.averaged_weights import averaged_section
from potstill.report.held_out import held_out_section, layer_search_section, nearness_section, teachers_section
from potstill.report.hub_metadata import emissions_field, licence_of, model_index
from potstill.report.markdown import code, front_matter, name_of, names_of, plain, table
from potstill.student import family_of
from potstill.wording import counted


def model_card(
    config: PreTrainedConfig,
    recipe: dict[str, Any],
    results: dict[str, Any],
    manifest: Manifest,
    same_class: bool = False,
    headless: bool = False,
) -> str:
    """Return a model card in the hub's format: YAML header, then Markdown.

    Args:
        config: config of the trained model.
        recipe: options of the run, as `recipe_values` returns them.
        results: measured figures, as `run_results` returns them.
        manifest: manifest of the corpus.
        same_class: whether a student has the class of its teacher, with segment embeddings.
        headless: whether it is an encoder without a language-model head.
    """
    teacher = recipe.get("teacher")
    causal = family_of(config).causal
    teachers, held_out = results.get("teachers", []), results["held_out"]
    header = {
        "library_name": "transformers",
        "pipeline_tag": "feature-extraction" if headless else "text-generation" if causal else "fill-mask",
        "tags": ["potstill", "distillation" if teacher else "causal-lm" if causal else "masked-lm"],
        **licence_of(teacher),
        **_index(recipe, results, headless),
        **emissions_field(results.get("emissions"), results["cost"]["hardware"], "pre-training"),
    }
    sections = [
        front_matter(header, teacher),
        _summary(config, recipe, results, same_class, headless),
        nearness_section(held_out, recipe)
        if headless
        else held_out_section(held_out, bool(teacher), bool(teachers), causal, recipe.get("short_block_size")),
        teachers_section(teachers, held_out["final"] or {}, recipe),
        averaged_section(results),
        size_section(recipe, results),
        layer_search_section(results.get("layer_search")),
        recipe_table(recipe, results.get("changed_on_resume")),
        _corpus(manifest),
        _cost(results),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _index(recipe: dict[str, Any], results: dict[str, Any], headless: bool) -> dict[str, Any]:
    """Return the held-out figures of a language model in the form of the hub; none of an encoder without a head."""
    final = results["held_out"]["final"]
    if final is None or headless:
        return {}
    teacher = recipe.get("teacher")
    first = teacher if isinstance(teacher, str) else teacher[0] if teacher else None
    name = f"{Path(first).name or first}-student" if first else "pretrained"
    task = "text-generation" if "perplexity" in final else "fill-mask"
    metrics = {metric: final[metric] for metric in ("accuracy", "loss", "perplexity") if metric in final}
    return model_index(name, task, "held-out", metrics, "held-out text of the corpus")


def _summary(
    config: PreTrainedConfig, recipe: dict[str, Any], results: dict[str, Any], same_class: bool, headless: bool
) -> str:
    causal = family_of(config).causal
    shape = (
        f"{config.num_hidden_layers} layers, {config.hidden_size} wide, vocabulary of {config.vocab_size:,}, "
        f"{results['parameters']:,} parameters{'' if headless else ' with its language-model head'}"
    )
    lines = []
    if "teacher" in recipe:
        lines += [
            f"# A student of {names_of(recipe['teacher'])}",
            "",
            f"An encoder for fine-tuning, without a head: a {code(config.model_type)} of {shape}, distilled with "
            "potstill by its teacher's hidden states and attention."
            if headless
            else f"A {code(config.model_type)} of {shape}, distilled with potstill by the "
            "method of DistilBERT (Sanh et al. 2019, arXiv 1910.01108).",
            "",
        ]
        if recipe["initialise"] == "random":
            lines.append("It started from random weights.")
        else:
            if "sizes" in results:
                rest = _narrowed(recipe, results["sizes"])
            elif same_class:
                rest = "Everything outside of the layers was copied unchanged."
            elif recipe["fold_token_types"]:
                rest = (
                    "The teacher's segment-0 embedding was added into the position embeddings, so that single-segment "
                    "text has the same embeddings as in the teacher."
                )
            else:
                rest = "The teacher's segment embeddings were dropped."
            whose = "the teacher's" if isinstance(recipe["teacher"], str) else "the first teacher's"
            lines.append(f"It started from {whose} layers{_by_rule(recipe.get('layers'))}. {rest}")
    else:
        lines += [
            f"# A {plain(config.model_type)} of {config.num_hidden_layers} layers",
            "",
            f"A {code(config.model_type)} of {shape}, pre-trained by {'causal' if causal else 'masked'} LM "
            "with potstill.",
        ]
    usage = [
        "",
        "```python",
        *(_ENCODE if headless else _GENERATE if causal else _FILL),
        "```",
    ]
    return "\n".join(lines + usage)


def _narrowed(recipe: dict[str, Any], sizes: dict[str, dict[str, int]]) -> str:
    """Return a sentence on what a narrower student has kept of its teacher."""
    teacher, student = sizes["teacher"], sizes["student"]
    kept = ", ".join(
        f"{student[name]:,} of {teacher[name]:,} {what}"
        for name, what in (
            ("hidden_size", "dimensions of the hidden states"),
            ("num_attention_heads", "attention heads of each layer"),
            ("intermediate_size", "feed-forward neurons of each layer"),
        )
    )
    how = "chosen at random" if recipe["narrow_by"] == "random" else "the most important ones (arXiv 2407.14679)"
    return f"Of every tensor it has {kept}: {how}."


def size_section(recipe: dict[str, Any], results: dict[str, Any]) -> str:
    """Return the section on a shape that was chosen by `max_size`; "" if none was."""
    if "max_size" not in results:
        return ""
    estimate, written = results["max_size"]["estimate"], results["max_size"]["file_bytes"]
    return (
        f"## Size\n\nDepth and width were chosen to keep to {code(recipe['max_size'])}. The weights have "
        f"{written:,} bytes on disk, and {estimate['file_bytes']:,} were estimated before training. By its FLOPs per "
        f"token the student is about {estimate['speed_up']:.2f} times faster than its teacher, which is an estimate."
    )


def _by_rule(layers: str | None) -> str:
    if layers is None:  # a checkpoint without a record of them was resumed
        return ""
    return f" {layers}, counted from 0" if re.fullmatch(r"[\d, ]+", layers) else f" by the rule {code(layers)}"


_ENCODE = (
    "from transformers import AutoModel, AutoTokenizer",
    "",
    'folder = "path/of/this/folder"',
    "tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)",
    'hidden = model(**tokenizer("Some text", return_tensors="pt")).last_hidden_state',
    "```",
    "",
    "```bash",
    "potstill finetune --model path/of/this/folder --task sst2 --output_dir sst2",
)
_FILL = (
    "from transformers import pipeline",
    "",
    'fill = pipeline("fill-mask", model="path/of/this/folder")',
    'fill(f"The capital of France is {fill.tokenizer.mask_token}.")',
)
_GENERATE = (
    "from transformers import pipeline",
    "",
    'generate = pipeline("text-generation", model="path/of/this/folder")',
    'generate("The capital of France is", max_new_tokens=10)',
)


def recipe_table(recipe: dict[str, Any], changes: list[dict[str, Any]] | None = None) -> str:
    """Return the section of a card that lists the options of the run.

    Args:
        recipe: options by name, with their values at the end of the run.
        changes: for each resumption that changed options, the step, and option → value before and value after.
    """
    rows = [[code(name, cell=True), code(value, cell=True)] for name, value in recipe.items()]
    changed = [
        f"{code(name)} was {code(values[0])} until step {change['step']:,}"
        for change in changes or []
        for name, values in change.items()
        if name != "step"
    ]
    sentence = "`recipe.yaml` in this folder reruns the training."
    if changed:
        sentence = (
            "The run was interrupted and continued with other options, so `recipe.yaml` in this folder alone does not "
            f"rerun it: {'; '.join(changed)}."
        )
    return "\n\n".join(["## Recipe", sentence, table(["option", "value"], rows)])


def _corpus(manifest: Manifest) -> str:
    splits = [
        [plain(name), f"{split.documents:,}", f"{split.blocks:,}", f"{split.blocks * manifest.block_size:,}"]
        for name, split in manifest.splits.items()
    ]
    sources = [
        [name_of(source.name), f"{source.documents:,}", code((source.sha256 or "")[:16])] for source in manifest.sources
    ]
    cut = ""
    if (whole := manifest.whole_tokenizer) is not None:
        cut = (
            f" The vocabulary of {name_of(whole.name)} was cut to the {manifest.tokenizer.vocab_size:,} of its "
            f"{whole.vocab_size:,} tokens that the corpus needs."
        )
    sampled = ""
    if manifest.language_exponent is not None:
        sampled = (
            f" Each of its {len(manifest.languages):,} languages was read in proportion to its size to the power of "
            f"{manifest.language_exponent:g}."
        )
    return "\n\n".join(
        [
            "## Corpus",
            f"Blocks of {manifest.block_size} tokens, without padding.{cut}{sampled}",
            table(["split", "documents", "blocks", "tokens"], splits),
            table(["source", "documents", "SHA-256, first 16"], sources),
        ]
    )


def _cost(results: dict[str, Any]) -> str:
    cost, versions = results["cost"], results["versions"]
    hardware = plain(f"{cost['hardware']}; {', '.join(f'{name} {number}' for name, number in versions.items())}.")
    return (
        f"## Cost\n\n{counted(cost['steps'], 'step')}, {cost['tokens']:,} tokens, {cost['seconds']:,.0f} seconds on "
        f"{cost['processes']} × {hardware}"
    )
