"""The part of a task model's card about the stages that it was trained in."""

from __future__ import annotations

from typing import Any

from potstill.report.markdown import NOTHING, figure, name_of, names_of, plain, table
from potstill.wording import counted


def how_in_stages(recipe: dict[str, Any], results: dict[str, Any]) -> str:
    """Return the sentence that says how the model was made.

    Args:
        recipe: options of the command; `model` is the name of what the first stage started from.
        results: measured figures, with `stages`.
    """
    names = [stage["stage"] for stage in results["stages"]]
    new = "shape" in recipe
    start = f"A new model of the shape {plain(recipe['shape'])}" if new else f"{name_of(recipe['model'])} was"
    parts = {
        "pretrain": "pre-trained by masked LM",
        "distill": f"taught by the soft targets of {names_of(recipe.get('teacher', ''))} on texts without labels",
        "finetune": "fine-tuned on the labels",
    }
    done = ", then ".join(parts[name] for name in names)
    more = "" if names[0] == "pretrain" or not new else ", without pre-training"
    return f"{start}{f', {done}' if new else f' {done}'}{more}, with potstill (Turc et al. 2019, arXiv 1908.08962)."


def stages_section(results: dict[str, Any]) -> list[str]:
    """Return the section with a table of the stages; nothing if the model was trained in one run."""
    if not results.get("stages"):
        return []
    header = ["stage", "read", "steps", "seconds", "afterwards"]
    return ["## Stages", table(header, [_row(stage) for stage in results["stages"]])]


def _row(stage: dict[str, Any]) -> list[str]:
    if stage["stage"] == "pretrain":
        read, held_out = f"{stage['tokens']:,} tokens", stage["held_out"]
        after = f"held-out loss {figure(held_out['loss'], '.2f')}" if "loss" in held_out else NOTHING
    else:
        read = counted(stage["texts"], "text") if "texts" in stage else counted(stage["rows"], "row")
        after = f"score {figure(stage['score'], '.2f')}"
    return [plain(stage["stage"]), read, f"{stage['steps']:,}", f"{stage['seconds']:,.0f}", after]
