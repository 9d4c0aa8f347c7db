"""The sections of a model card on held-out text: the student, its teachers, and how their layers were chosen."""

from __future__ import annotations

from typing import Any

from potstill.json_files import not_finite
from potstill.report.markdown import figure, name_of, plain, table

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
_MEAN_OF_LOSSES = "The losses are weighted means of those for each teacher."
SHOWN_CHOICES = 10


def teachers_section(teachers: list[dict[str, Any]], final: dict[str, float], recipe: dict[str, Any]) -> str:
    """Return the section on several teachers: their weights, held-out figures and times; "" if there is one or none."""
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


def _mean_of(recipe: dict[str, Any]) -> str:
    return f"The soft targets are the weighted mean of the teachers' {plain(recipe['teacher_mean'])}."


def held_out_section(
    held_out: dict[str, Any], with_teacher: bool, several_teachers: bool, causal: bool, short: int | None
) -> str:
    """Return the section on the held-out figures of a language model.

    Args:
        held_out: the metrics of the `initial` and of the `final` model.
        with_teacher: whether the model is a student.
        several_teachers: whether it has several teachers.
        causal: whether the model is causal.
        short: tokens of the shorter blocks that the metrics were measured on too; None if there are none.
    """
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


def nearness_section(held_out: dict[str, Any], recipe: dict[str, Any]) -> str:
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
