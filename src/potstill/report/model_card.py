"""The model card: what a trained folder says of itself, every figure of it measured by the run that wrote it."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from potstill.corpus import Manifest
from potstill.json_files import not_finite
from potstill.report.markdown import code, figure, front_matter, name_of, plain, table


def model_card(
    config: PreTrainedConfig,
    recipe: dict[str, Any],
    results: dict[str, Any],
    manifest: Manifest,
    same_class: bool = False,
) -> str:
    """Return a model card in the hub's format: YAML header, then Markdown.

    Args:
        config: the trained model's.
        recipe: options of the run, as `recipe_values` returns them.
        results: what was measured, as `run_results` returns it.
        manifest: of the corpus.
        same_class: whether a student is of its teacher's class, segment embeddings and all.
    """
    teacher = recipe.get("teacher")
    teachers = results.get("teachers", [])
    header = {
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["potstill", "distillation"] if teacher else ["potstill", "masked-lm"],
    }
    sections = [
        front_matter(header, teacher),
        _summary(config, recipe, results, same_class),
        _held_out(results["held_out"], bool(teacher), recipe.get("short_block_size"), bool(teachers)),
        _teachers(teachers, results["held_out"]["final"] or {}, recipe),
        recipe_table(recipe, results.get("changed_on_resume")),
        _corpus(manifest),
        _cost(results),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _summary(config: PreTrainedConfig, recipe: dict[str, Any], results: dict[str, Any], same_class: bool) -> str:
    shape = (
        f"{config.num_hidden_layers} layers, {config.hidden_size} wide, vocabulary of {config.vocab_size:,}, "
        f"{results['parameters']:,} parameters with its masked-LM head"
    )
    lines = []
    if "teacher" in recipe:
        lines += [
            f"# A student of {_names(recipe['teacher'])}",
            "",
            f"A {code(config.model_type)} of {shape}, distilled with potstill by the "
            "method of DistilBERT (Sanh et al. 2019, arXiv 1910.01108).",
            "",
        ]
        if recipe["initialise"] == "random":
            lines.append("It started from random weights.")
        else:
            if same_class:
                rest = "Everything outside of the layers was copied as it is."
            elif recipe["fold_token_types"]:
                rest = (
                    "The teacher's segment-0 embedding was added into the position embeddings, so that single-segment "
                    "text has the same embeddings as in the teacher."
                )
            else:
                rest = "The teacher's segment embeddings were dropped."
            of = "the teacher's" if isinstance(recipe["teacher"], str) else "the first teacher's"
            lines.append(f"It started from {of} layers by the rule {code(recipe['layers'])}. {rest}")
    else:
        lines += [
            f"# A {plain(config.model_type)} of {config.num_hidden_layers} layers",
            "",
            f"A {code(config.model_type)} of {shape}, pre-trained by masked LM with potstill.",
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


def _names(teacher: str | list[str]) -> str:
    if isinstance(teacher, str):
        return name_of(teacher)
    *others, last = (name_of(one) for one in teacher)
    return f"{', '.join(others)} and {last}"


def _teachers(teachers: list[dict[str, Any]], final: dict[str, float], recipe: dict[str, Any]) -> str:
    if not teachers:
        return ""
    rows = []
    for number, teacher in enumerate(teachers, 1):
        loss, accuracy = (final.get(f"teacher_{number}_{name}") for name in ("loss", "accuracy"))
        cells = [
            (teacher["weight"], ".3f"),
            (loss, ".3f"),
            (accuracy, ".1%"),
            (teacher.get("seconds"), ".4f"),
            (teacher.get("share"), ".1%"),
        ]
        shown = ["" if value is None else figure(value, form) for value, form in cells]
        rows.append([name_of(teacher["name"]), *shown])
    return "\n\n".join(
        [
            "## Teachers",
            f"The soft targets are the weighted mean of the teachers' {plain(recipe['teacher_mean'])}. The last two "
            "columns say what each teacher took of a training step; they are medians over the measured steps.",
            table(["teacher", "weight", "loss (nats)", "accuracy", "seconds a step", "share of a step"], rows),
        ]
    )


def _held_out(held_out: dict[str, Any], with_teacher: bool, short: int | None, several: bool) -> str:
    final, initial = held_out["final"], held_out["initial"]
    if final is None:
        return "## Held-out text\n\nNot measured: the corpus has no held-out block."
    name = "student" if with_teacher else "model"
    rows = []
    if "teacher_loss" in final:
        taught = {"loss": final["teacher_loss"], "accuracy": final["teacher_accuracy"]}
        rows.append(_row("teachers, their mean" if several else "teacher", taught))
    if initial:
        rows.append(_row(f"{name}, as initialised", initial))
    rows.append(_row(f"{name}, trained", final))
    if "short_loss" in final:
        at_short = {key.removeprefix("short_"): value for key, value in final.items() if key.startswith("short_")}
        rows.append(_row(f"{name}, trained, blocks cut to {short} tokens", at_short))
    said = [
        "## Held-out text",
        "Masked LM on documents kept out of training, 15 % of the tokens masked uniformly, the same masks for every "
        "row. KL (teacher ‖ model, nats), agreement of the first choice: at the masked tokens. Cosine of the last "
        "hidden states: all tokens.",
        table(["", *_HELD_OUT], rows),
    ]
    said += no_figures({"as initialised": initial or {}, "trained": final})
    if final.get("teacher_accuracy"):  # there is no share of nothing
        kept = final["accuracy"] / final["teacher_accuracy"]
        said.append(
            f"The student keeps {figure(kept, '.1%')} of the {'mean teacher' if several else 'teacher'}'s accuracy."
        )
    return "\n\n".join(said)


_HELD_OUT = {"loss (nats)": ".3f", "accuracy": ".1%", "KL": ".3f", "agreement": ".1%", "cosine": ".3f"}


def _row(name: str, metrics: dict[str, float]) -> list[str]:
    keys = ("loss", "accuracy", "kl", "agreement", "cosine")
    cells = [
        figure(metrics[key], form) if key in metrics else "" for key, form in zip(keys, _HELD_OUT.values(), strict=True)
    ]
    return [name, *cells]


def no_figures(measured: dict[str, Any]) -> list[str]:
    """Return a sentence, if there is need of one, on figures that are no finite numbers."""
    names = not_finite(measured)
    return [f"**Not finite (NaN or infinity), so a dash stands for it: {plain(', '.join(names))}.**"] if names else []


def recipe_table(recipe: dict[str, Any], changes: list[dict[str, Any]] | None = None) -> str:
    """Return the section of a card that lists the options of the run.

    Args:
        recipe: options by name, as they were at the end of the run.
        changes: for each resumption that changed options, its step, and option → its value before and after.
    """
    rows = [[code(name, cell=True), code(value, cell=True)] for name, value in recipe.items()]
    changed = [
        f"{code(name)} was {code(values[0])} until step {change['step']:,}"
        for change in changes or []
        for name, values in change.items()
        if name != "step"
    ]
    sentence = "`recipe.yaml` beside this card reruns it."
    if changed:
        sentence = (
            "The run was interrupted and went on with other options, so `recipe.yaml` beside this card alone does not "
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
    return "\n\n".join(
        [
            "## Corpus",
            f"Blocks of {manifest.block_size} tokens, without padding.",
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
