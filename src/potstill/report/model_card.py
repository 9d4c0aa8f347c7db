"""The model card of a training run. The run that writes the card measured every figure in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from potstill.corpus import Manifest
from potstill.json_files import not_finite
from potstill.report.averaged_weights import averaged_section
from potstill.report.hub_metadata import emissions_field, licence_of, model_index
from potstill.report.markdown import code, figure, front_matter, name_of, names_of, plain, table
from potstill.student import family_of


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
    teachers = results.get("teachers", [])
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
        _nearness(results["held_out"], recipe)
        if headless
        else _held_out(results["held_out"], bool(teacher), bool(teachers), causal, recipe.get("short_block_size")),
        _teachers(teachers, results["held_out"]["final"] or {}, recipe),
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


def _teachers(teachers: list[dict[str, Any]], final: dict[str, float], recipe: dict[str, Any]) -> str:
    if not teachers:
        return ""
    rows = []
    for number, teacher in enumerate(teachers, 1):
        values = {name: final.get(f"teacher_{number}_{name}") for name in ("loss", "perplexity", "accuracy")} | teacher
        cells = [(values.get(key), form) for key, (_, form) in _OF_A_TEACHER.items()]
        rows.append(
            [name_of(teacher["name"]), *("" if value is None else figure(value, form) for value, form in cells)]
        )
    return "\n\n".join(
        [
            "## Teachers",
            f"{_MEAN_OF_LOSSES if recipe.get('headless') else _mean_of(recipe)} The last two columns give the time of "
            "each teacher in a training step, as medians over the measured steps.",
            _without_empty_columns(["teacher", *(heading for heading, _ in _OF_A_TEACHER.values())], rows),
        ]
    )


_MEAN_OF_LOSSES = "The losses are weighted means of those for each teacher."


def _mean_of(recipe: dict[str, Any]) -> str:
    return f"The soft targets are the weighted mean of the teachers' {plain(recipe['teacher_mean'])}."


def _held_out(
    held_out: dict[str, Any], with_teacher: bool, several_teachers: bool, causal: bool, short: int | None
) -> str:
    final, initial = held_out["final"], held_out["initial"]
    if final is None:
        return "## Held-out text\n\nNot measured: the corpus has no held-out block."
    name = "student" if with_teacher else "model"
    rows = []
    if "teacher_loss" in final:
        names = ("loss", "perplexity", "accuracy")
        taught = {name: final[f"teacher_{name}"] for name in names if f"teacher_{name}" in final}
        rows.append(_row("mean of the teachers" if several_teachers else "teacher", taught))
    if initial:
        rows.append(_row(f"{name}, as initialised", initial))
    rows.append(_row(f"{name}, trained", final))
    if "short_loss" in final:
        at_short = {key.removeprefix("short_"): value for key, value in final.items() if key.startswith("short_")}
        rows.append(_row(f"{name}, trained, blocks split to {short} tokens", at_short))
    paragraphs = [
        "## Held-out text",
        _MEASURED_CAUSAL if causal else _MEASURED_MASKED,
        _without_empty_columns(["", *(heading for heading, _ in HELD_OUT.values())], rows),
    ]
    paragraphs += no_figures({"as initialised": initial or {}, "trained": final})
    if final.get("teacher_accuracy"):  # a share of 0 is not defined
        kept = final["accuracy"] / final["teacher_accuracy"]
        whole = "accuracy of the teachers' mean" if several_teachers else "teacher's accuracy"
        paragraphs.append(f"The student keeps {figure(kept, '.1%')} of the {whole}.")
    return "\n\n".join(paragraphs)


def _nearness(held_out: dict[str, Any], recipe: dict[str, Any]) -> str:
    """Return the section on how near an encoder without a head is to its teacher."""
    final, initial = held_out["final"], held_out["initial"]
    if final is None:
        return "## Held-out text\n\nNot measured: the corpus has no held-out block."
    rows = [_row("student, as initialised", initial)] if initial else []
    rows.append(_row("student, trained", final))
    if "short_loss" in final:
        at_short = {key.removeprefix("short_"): value for key, value in final.items() if key.startswith("short_")}
        rows.append(_row(f"student, trained, blocks split to {recipe['short_block_size']} tokens", at_short))
    columns = {"loss": "loss", "cosine": "cosine"}
    return "\n\n".join(
        [
            "## Held-out text",
            _MEASURED_STATES,
            _without_empty_columns(["", *(columns.get(key, "") for key in HELD_OUT)], rows),
            *no_figures({"as initialised": initial or {}, "trained": final}),
        ]
    )


SHOWN_CHOICES = 10


def layer_search_section(search: dict[str, Any] | None) -> str:
    """Return the section on how the teacher's layers were chosen; "" if no search chose them."""
    if search is None:
        return ""
    tried = search["tried"]
    distance = "accuracy" not in tried[0]  # of an encoder without a head
    columns = ("loss",) if distance else ("loss", "accuracy", "kl")
    rows = [
        [
            ",".join(map(str, choice["layers"])),
            *(figure(choice[name], ".4f" if distance else HELD_OUT[name][1]) for name in columns),
        ]
        for choice in tried[:SHOWN_CHOICES]
    ]
    unit = search.get("unit", "tokens")
    blocks = "Some of these blocks are" if search["evaluated_too"] else "None of these blocks is"
    text = (
        f"The layers of the teacher were chosen by measurement: the students of {len(tried):,} choices of layers were "
        f"compared before any training, on {search['tokens']:,} {unit} of {search['blocks']:,} held-out blocks. "
        f"{blocks} among those that the figures above were measured on."
    )
    if not search["finished"]:
        text += " The time limit ended the search."
    if len(tried) > SHOWN_CHOICES:
        text += f" These are the best {SHOWN_CHOICES} choices; `results.json` has all."
    headings = ["layers", *("1 − cosine" if distance else HELD_OUT[name][0] for name in columns)]
    return "\n\n".join(["## Layers of the teacher", text, table(headings, rows, figures=True)])


_MEASURED_MASKED = (
    "Masked LM on documents that were not used for training. 15 % of the tokens are masked uniformly, with the same "
    "masks for every row. KL (teacher ‖ model, in nats) and agreement of the most likely token are measured at the "
    "masked tokens, the cosine of the last hidden states at all tokens."
)
_MEASURED_STATES = (
    "Measured on documents that were not used for training. The loss is the weighted sum of the losses in the recipe. "
    "The cosine compares the last hidden states of student and teacher, mean over all tokens. Where the student is "
    "narrower, its states first go through the projection that was trained with it."
)
_MEASURED_CAUSAL = (
    "Causal LM on documents that were not used for training. Perplexity is exp(loss), by tokens of this vocabulary. "
    "KL (teacher ‖ model, in nats) and agreement of the most likely token are measured at every token but the last of "
    "a block, the cosine of the last hidden states at all tokens."
)
HELD_OUT = {
    "loss": ("loss (nats)", ".3f"),
    "perplexity": ("perplexity", ".2f"),
    "accuracy": ("accuracy", ".1%"),
    "kl": ("KL", ".3f"),
    "agreement": ("agreement", ".1%"),
    "cosine": ("cosine", ".3f"),
}
"""Metric → heading and format of its column."""
_OF_A_TEACHER = {
    "weight": ("weight", ".3f"),
    "loss": HELD_OUT["loss"],
    "perplexity": HELD_OUT["perplexity"],
    "accuracy": HELD_OUT["accuracy"],
    "seconds": ("seconds per step", ".4f"),
    "share": ("share of a step", ".1%"),
}
"""Property of one of several teachers → heading and format of its column."""


def _row(name: str, metrics: dict[str, float]) -> list[str]:
    cells = [figure(metrics[key], form) if key in metrics else "" for key, (_, form) in HELD_OUT.items()]
    return [name, *cells]


def _without_empty_columns(headings: list[str], rows: list[list[str]]) -> str:
    kept = [number for number in range(len(headings)) if number == 0 or any(row[number] for row in rows)]
    return table([headings[number] for number in kept], [[row[number] for number in kept] for row in rows])


def no_figures(measured: dict[str, Any]) -> list[str]:
    """Return a sentence that names the figures that are not finite; nothing if all are finite."""
    names = not_finite(measured)
    return [f"**A dash means not finite (NaN or infinity): {plain(', '.join(names))}.**"] if names else []


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
        f"## Cost\n\n{cost['steps']:,} steps, {cost['tokens']:,} tokens, {cost['seconds']:,.0f} seconds on "
        f"{cost['processes']} × {hardware}"
    )
