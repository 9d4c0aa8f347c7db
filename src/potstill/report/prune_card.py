"""The card of a model that was pruned. The run that writes the card measured every figure in it."""

from __future__ import annotations

from typing import Any

from potstill.report.label_card import label_section
from potstill.report.markdown import NOTHING, front_matter, name_of, plain, table
from potstill.report.model_card import recipe_table
from potstill.report.task_card import card_header, card_results, usage
from potstill.student.pruned import IMPORT
from potstill.tasks.own import is_task_file
from potstill.tasks.task import Task

PLOT = "pruning"
"""Name of the files with the plot, without the ending: `.svg` and `.png`."""


def prune_card(recipe: dict[str, Any], results: dict[str, Any], task: Task, pruned: bool) -> str:
    """Return a model card in the hub's format: YAML header, then Markdown.

    Args:
        recipe: options of the run.
        results: measured figures, as in `RunResult`, with `pruning`.
        task: the task of the model.
        pruned: whether it is of a class of potstill because its layers differ in heads or neurons.
    """
    what = plain(task.name if is_task_file(recipe["task"]) else recipe["task"])
    sections = [
        front_matter(card_header(task) | card_results(recipe, results, task, recipe["model"]), recipe["model"]),
        f"# {name_of(recipe['model'])} on {what}, pruned",
        _how(results["pruning"]),
        _loading(pruned),
        usage(task, results["metrics"], first=IMPORT if pruned else None),
        _curve(results),
        _layers(results["pruning"]),
        *label_section(results),
        recipe_table(recipe, None),
        _cost(results),
    ]
    return "\n\n".join(sections) + "\n"


def _how(pruning: dict[str, Any]) -> str:
    last, first = pruning["curve"][-1], pruning["curve"][0]
    removed = [
        f"{last[name]:,} of {pruning[f'{name}_before']:,} {words} ({last[f'{name}_share']:.1%})"
        for name, words in (("heads", "attention heads"), ("neurons", "feed-forward neurons"))
        if last[name]
    ]
    return (
        f"{' and '.join(removed)} were removed with potstill, those that matter least by the gradient of the loss with "
        "respect to their masks (Michel et al. 2019, arXiv 1905.10650). Nothing was trained. "
        f"{last['parameters']:,} of {first['parameters']:,} parameters are left, and in the layers "
        f"{last['layer_parameters']:,} of {first['layer_parameters']:,}. `potstill finetune --model FOLDER --teacher "
        "MODEL`, with the model from before as the teacher, wins back what was lost."
    )


def _loading(pruned: bool) -> str:
    if not pruned:
        return "The model loads in transformers without potstill."
    return (
        "No config of transformers can say how many heads or neurons the layers have. So the model has a class of "
        "potstill, which has to be installed. One import lets the Auto classes of transformers load it. Exports "
        "(`potstill export`) run without potstill."
    )


def _curve(results: dict[str, Any]) -> str:
    pruning, curve = results["pruning"], results["pruning"]["curve"]
    timed = curve[-1]["milliseconds"] is not None
    header = ["heads removed", "neurons removed", "score", "parameters"] + ["milliseconds a text", "speed"] * timed
    rows = []
    for point in curve:
        row = [f"{point[name]:,} ({point[f'{name}_share']:.0%})" for name in ("heads", "neurons")]
        row += [f"{point['score']:.2f}", f"{point['parameters']:,}"]
        if timed:
            row += [f"{point['milliseconds']:.2f}", f"{point['whole_milliseconds'] / point['milliseconds']:.2f} ×"]
        rows.append(row)
    parts = ["## Scores", table(header, rows, figures=True)]
    if timed:
        parts.append(
            f"Latency: median of {pruning['timed_rows']} dev rows, one at a time, on {plain(results['hardware'])}. "
            "Each model took turns with the whole one, and the speed is a multiple of that one's."
        )
    parts.append(f"![Score and latency against the share removed]({PLOT}.png)")
    if pruning["stopped"] is not None:
        parts.append(f"The next step would have lost more than was allowed: its score was {pruning['stopped']:.2f}.")
    return "\n\n".join(parts)


def _layers(pruning: dict[str, Any]) -> str:
    rows = [
        [str(number), str(heads), " ".join(map(str, kept)) or NOTHING, f"{neurons:,}"]
        for number, (heads, kept, neurons) in enumerate(
            zip(pruning["heads_of_layers"], pruning["kept_heads"], pruning["neurons_of_layers"], strict=True)
        )
    ]
    return "\n\n".join(["## Layers", table(["layer", "heads", "which", "neurons"], rows)])


def _cost(results: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    seconds = sum(results["seconds"].values())
    return f"## Cost\n\n{seconds:,.0f} seconds on {plain(results['hardware'])}; {plain(versions)}."
