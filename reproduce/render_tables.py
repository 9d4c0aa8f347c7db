"""The tables of docs/results/paper.md. Each comes from the JSON file of a script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from potstill.errors import PotstillError
from potstill.report.markdown import NOTHING, plain
from reproduce.training import lengths

ROWS = {
    "teacher": "teacher",
    "student": "student, distilled",
    "student (D)": "student, second distillation",
    "alone": "student, without the teacher",
    "initialised": "student as initialised",
    "full": "the full method",
    "no-ce": "without L_ce",
    "no-cos": "without L_cos",
    "no-mlm": "without L_mlm",
    "ELMo-shaped": "ELMo's shape, random weights",
    "random": "all losses, random initialisation",
    "masked": "L_ce at masked tokens only",
    "first": "layers `first`",
    "alternate": "layers `alternate`",
}

PAPER_CHANGES = {"no-ce": -2.96, "no-cos": -1.46, "no-mlm": -0.31, "random": -3.69}
"""Change of the macro score over nine tasks against the full method (Sanh et al. 2019, table 4)."""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows))


def teacher(found: dict[str, Any]) -> str:
    """Return how the teacher was trained, and its results."""
    shape, corpus = found["teacher"], found["corpus"]
    rows = []
    for number, session in enumerate(found["sessions"], 1):
        for stage in session["stages"]:
            cost = stage["cost"]
            rows.append(
                [
                    f"session {number}, {lengths(stage)}",
                    f"{cost['gpu_minutes']:.1f}",
                    millions(cost["tokens"]),
                    count(cost["tokens_per_second"]),
                    *_masked_lm(stage["held_out"]),
                ]
            )
    for where, measured in found["held_out"].items():
        what = where.replace("own", "held-out text").replace("other", "text of another source")
        rows.append([f"**the teacher**, {what}", "", "", "", *_masked_lm(measured)])
    documents, tokens = corpus["documents"], corpus["tokens"]
    summary = (
        f"The teacher has {shape['layers']} layers, is {shape['hidden_size']} wide, and has {found['parameters']:,} "
        f"parameters and a vocabulary of {shape['vocab_size']:,}. It was trained on {documents['train']:,} documents "
        f"({millions(tokens['train'])} tokens). {documents['validation']:,} documents "
        f"({millions(tokens['validation'])} tokens) are held out. Held-out masks are uniform."
    )
    return f"{summary}\n\n{table(['', 'GPU-minutes', 'tokens', 'tokens/s', 'held-out loss', 'accuracy'], rows)}"


def students(found: dict[str, Any]) -> str:
    """Return the results of the students next to those of their teacher."""
    rows = []
    teacher_accuracy = found["rows"]["teacher"]["held_out"]["own"]["accuracy"]
    for name, row in found["rows"].items():
        cost, own, other = row.get("cost") or {}, row["held_out"]["own"], row["held_out"].get("other")
        whole: dict[str, float] = next((of for where, of in row["held_out"].items() if where.startswith("own, ")), {})
        is_student = name != "teacher"
        rows.append(
            [
                _label(name),
                number(cost.get("gpu_minutes"), 1),
                millions(cost.get("tokens")),
                *_masked_lm(own),
                percent(own["accuracy"] / teacher_accuracy if teacher_accuracy and is_student else None),
                number(own.get("kl") if is_student else None, 3),
                percent(own.get("agreement") if is_student else None),
                number(whole.get("loss"), 3),
                number((other or {}).get("loss"), 3),
            ]
        )
    recipe = found["recipe"]
    summary = (
        f"Recipe: layers {recipe['layers']} of the teacher, {recipe['masking']} masks in training, soft targets at "
        f"{recipe['soft_targets']} tokens. All students start from the same layers."
    )
    header = ["", "GPU-minutes", "tokens", "held-out loss", "accuracy", "of the teacher's", "KL", "agreement"]
    return f"{summary}\n\n{table([*header, 'loss on whole blocks', 'loss on another source'], rows)}"


def glue(found: dict[str, Any]) -> str:
    """Return scores on GLUE, retention, and the macro scores."""
    paper = "In the paper the student keeps 96.9 % of the macro score over nine tasks, and 96.2 % without WNLI."
    return f"{_scores(found)}\n\n{_retention(found)}\n\n{_settings(found)} {paper}"


def tasks(found: dict[str, Any]) -> str:
    """Return IMDb and question answering in one table."""
    imdb, squad = found["imdb"], found["squad"]
    rows = []
    for name in dict.fromkeys([*imdb["models"], *squad["models"]]):
        review = (imdb["models"].get(name) or {"tasks": {}})["tasks"].get("imdb")
        answer = (squad["models"].get(name) or {"tasks": {}})["tasks"].get("squad")
        exact = (answer or {"metrics": {}})["metrics"].get("exact")
        rows.append([_label(name), _cell(review), number(exact, 1), _cell(answer)])
    notes = [f"{title}: {_settings(part)}" for title, part in (("IMDb", imdb), ("Questions", squad))]
    notes.append(
        "The paper's student loses 0.6 points on IMDb. On SQuAD it loses 3.5 and 2.7 points, and with the second "
        "distillation 2.1 and 1.6 points."
    )
    return "\n\n".join([table(["", "IMDb, accuracy", "questions, exact match", "F1"], rows), *notes])


def speed(found: dict[str, Any]) -> str:
    """Return sizes and the time of a pass on the CPU."""
    rows = []
    for name, row in found["rows"].items():
        for form, measured in row["forms"].items():
            low, high = measured["quartiles"]
            ratio = "1"
            if measured["ratio"] is not None:
                ratio = "{:.2f} × ({:.2f}–{:.2f})".format(*measured["ratio"])
            rows.append(
                [
                    _label(name),
                    plain(form),
                    f"{row['encoder_parameters'] / 1e6:.1f} M",
                    count(row["bytes"]),
                    f"{row['flops'] / 1e9:.3g}",
                    f"{measured['milliseconds']:.1f} ({low:.1f}–{high:.1f})",
                    f"{measured['seconds_of_a_pass']:.1f}",
                    ratio,
                ]
            )
    where = f"{plain(found['hardware'])} ({plain(found['disturbance'])})"
    summary = (
        f"The models read {found['pairs']:,} dev pairs of STS-B, one at a time and in turns, with {found['threads']} "
        f"threads on {where}. Times are medians with quartiles. Speed is that against the first row: the median over "
        "turns, with the percentiles 10 and 90. Parameters are those of the encoder, and bytes those of the task model."
    )
    header = ["", "form", "parameters", "bytes", "GFLOPs", "ms a pair", "seconds of a pass", "speed"]
    return f"{summary}\n\n{table(header, rows)}"


def ablation(found: dict[str, Any]) -> str:
    """Return the macro scores of students with one change each, the effect of the change, and their masked LM."""
    scored = found["tasks"]
    columns = list(scored["macro_tasks"])
    full = scored["models"]["full"]["macros"]
    rows = []
    for name in scored["models"]:
        macros = scored["models"][name]["macros"]
        cells = [_label(name)]
        for column in columns:
            change = NOTHING
            if name != "full" and _known(macros[column]) and _known(full[column]):
                mark = "\\*" if macros[column].get("beyond_spread") else ""
                change = f"{mark}{macros[column]['value'] - full[column]['value']:+.2f}"
            cells += [_cell(macros[column]), change]
        paper = PAPER_CHANGES.get(name)
        rows.append([*cells, NOTHING if paper is None else f"{paper:+.2f}"])
    header = ["", *(cell for column in columns for cell in (column, "change")), "the paper's"]
    summary = (
        f"{_teacher_of(found)} "
        f"Each student had {found['minutes']:g} GPU-minutes of distillation on one GPU. \\* marks a score whose range "
        f"over the seeds does not overlap with that of the first row{_by_chance(scored)}. The spread comes from "
        "fine-tuning alone, because each student was distilled once."
    )
    parts = [summary, table(header, rows), _ablated_masked_lm(found["rows"])]
    return "\n\n".join([*parts, _scores(scored, tasks_only=True), _settings(scored)])


def _teacher_of(found: dict[str, Any]) -> str:
    """Return a sentence on the teacher of a table that may have its own teacher."""
    shape, sessions = found["teacher"], found.get("sessions", [])
    minutes = sum(stage["cost"]["gpu_minutes"] for session in sessions for stage in session["stages"])
    training = f", after {minutes:.1f} GPU-minutes of pre-training" * bool(sessions)
    return f"The teacher of this table: {shape['layers']} layers, {shape['hidden_size']} wide{training}."


def _by_chance(scored: dict[str, Any]) -> str:
    """Return how often chance alone separates the ranges of two equal models."""
    figures = [of for model in scored["models"].values() for of in model["macros"].values()]
    chance = next((of["chance_beyond_spread"] for of in figures if of.get("chance_beyond_spread")), None)
    return f" (by chance alone this happens in {percent(chance)} of comparisons)" if chance else ""


def _ablated_masked_lm(students: dict[str, Any]) -> str:
    """Return held-out masked LM of students before and after training, and how close each is to the teacher."""
    rows = []
    for name, row in students.items():
        found = row["held_out"] or {}
        prefix = _prefix(found)
        start, _ = _masked_lm(row["held_out_at_start"])
        closeness = [number(found.get(f"{prefix}kl"), 3), percent(found.get(f"{prefix}agreement"))]
        rows.append([_label(name), f"{row['cost']['steps']:,}", start, *_masked_lm(found), *closeness])
    full = students["full"]["held_out"]
    rows.append(["teacher", NOTHING, NOTHING, *_masked_lm(full, "teacher_"), NOTHING, NOTHING])
    title = "Held-out text in short blocks, as in most steps:" if _prefix(full or {}) else "Held-out text:"
    header = ["", "steps", "loss before", "loss after", "accuracy", "KL", "agreement"]
    return f"{title}\n\n{table(header, rows)}"


def cost(found: dict[str, Any]) -> str:
    """Return the cost of every row, and that of the paper's budget."""
    rows = []
    for row in found["rows"]:
        bound = "" if row["kwh_is_measured"] else "≤ "
        rows.append(
            [
                _cost_label(row["title"]),
                f"{row['gpu_minutes_by_the_clock']:.1f}",
                number(row["gpu_minutes"], 1),
                millions(row["tokens"]),
                f"{row['flops']:.3g}" if row["flops"] else NOTHING,
                NOTHING if row["kwh"] is None else f"{bound}{row['kwh']:.3f}",
                NOTHING if row["grams_co2"] is None else f"{bound}{row['grams_co2']:.0f}",
            ]
        )
    notes = [
        f"Electricity is that of the GPUs alone, from their own sensors. ≤ marks a bound from {found['watts']:g} W per "
        f"GPU. CO₂ is computed with {found['grams_per_kwh']:g} g/kWh (436 is the world's mean of 2022: Ember, Global "
        "Electricity Review 2023). GPU-minutes by the clock include the start of a run. FLOPs are counted, not "
        "measured. The hardware of each row is named below the table of its experiment."
    ]
    paper = found["extrapolation"]
    if paper is not None:
        speed = found["speed"]
        of = speed["conditions"]
        where = f", {plain(of['hardware'])}, {of['date']}, commit {of['commit']}" if of else ""
        notes.append(
            f"**The paper's budget**, 3 epochs of 3.3 billion words, is {paper['tokens'] / 1e9:.1f} billion tokens of "
            f"this vocabulary ({paper['tokens_per_word']:.2f} a word). At {count(speed['tokens_per_second'])} tokens/s "
            f"({speed['source']}{where}) one such GPU would need {paper['gpu_hours']:.1f} hours, at most "
            f"{paper['kwh_at_most']:.1f} kWh and {paper['grams_co2_at_most'] / 1000:.1f} kg of CO₂. This is an "
            "extrapolation. The paper reports about 90 hours on eight V100s."
        )
    header = ["", "GPU-minutes by the clock", "of training", "tokens", "FLOPs", "kWh", "g CO₂"]
    return "\n\n".join([notes[0], table(header, rows), *notes[1:]])


def _label(name: str) -> str:
    """Return the label of a row, as Markdown."""
    return ROWS.get(name) or plain(name)


def _cost_label(title: str) -> str:
    """Return the label of a row of the cost. Its title may end with the name of a student after its purpose."""
    *purpose, name = title.split(", ")
    return ", ".join([*map(plain, purpose), _label(name)])


def curves(found: dict[str, Any]) -> str:
    """Return how long each step takes to reach the same loss."""
    names = {"plain": "plain step", "potstill": "potstill's step", "potstill-short": "potstill's, in less time"}
    slow = found["minutes_to_level"].get("plain")
    rows = []
    for name, curve in found["curves"].items():
        last, needed = curve["points"][-1], found["minutes_to_level"].get(name)
        ratio = f"{slow / needed:.2f} ×" if slow and needed else NOTHING
        rows.append(
            [
                names[name],
                f"{last['minutes']:.2f}",
                f"{last['step']:,}",
                number(last["loss"], 3),
                number(needed, 2),
                ratio,
            ]
        )
    summary = (
        f"{_teacher_of(found)} potstill's step and the plain step run the same recipe, each on one GPU. The third run "
        "does its whole schedule in less time. Minutes of training include compilation, but not evaluation."
    )
    level = f"minutes to a loss of {found['level']:.3f}"
    header = ["", "minutes", "steps", "held-out loss", level, "faster"]
    plot = "![Held-out loss over GPU-minutes](../../reproduce/results/time-to-quality.svg)"
    return "\n\n".join([summary, table(header, rows), plot])


def _scores(found: dict[str, Any], tasks_only: bool = False) -> str:
    columns = [] if tasks_only else list(found["macro_tasks"])
    columns += [task for task in found["titles"] if task not in found["absent"]]
    rows = []
    for model, figures in found["models"].items():
        cells = [_cell((figures["macros"] | figures["tasks"]).get(column)) for column in columns]
        rows.append([_label(model), *cells])
    return table(["", *(plain(found["titles"].get(column, column)) for column in columns)], rows)


def _retention(found: dict[str, Any]) -> str:
    """Return percent of the reference's score. A mark shows that the ranges over seeds do not overlap."""
    columns = [*found["macro_tasks"], *(task for task in found["titles"] if task not in found["absent"])]
    rows = []
    for model, figures in found["models"].items():
        if model == found["reference"]:
            continue
        cells = []
        for column in columns:
            measured = (figures["macros"] | figures["tasks"]).get(column) or {}
            mark = "\\*" if measured.get("beyond_spread") else ""
            cells.append(mark + number(measured.get("retention"), 1))
        rows.append([_label(model), *cells])
    header = [
        f"percent of the {plain(found['reference'])}'s",
        *(plain(found["titles"].get(column, column)) for column in columns),
    ]
    return table(header, rows)


def _settings(found: dict[str, Any]) -> str:
    """Return a description of the fine-tuning."""
    text = f"Medians of {len(found['seeds'])} seeds, with the lowest and the highest score."
    used = sorted(
        {
            rate
            for model in found["models"].values()
            for task in model["tasks"].values()
            for rate in task["learning_rate"]
        }
    )
    rates = ", ".join(f"{rate:g}" for rate in found["searched"] or used)
    choice = f"the best of {rates} for each model and task, chosen with the first seed" if found["searched"] else rates
    text += f" Learning rate: {choice}"
    epochs = sorted(set(found["epochs"].values()))
    text += f"; epochs: {', '.join(f'{value:g}' for value in epochs)}."
    if found.get("max_train_samples"):
        text += f" At most {count(found['max_train_samples'])} training rows per task."
    macros = [figures for model in found["models"].values() for figures in model["macros"].values()]
    if macros and len(found["seeds"]) > 1:
        text += " A macro score is the mean over the tasks for one seed; the table shows the "
        text += (
            "median, with the lowest and the highest."
            if all(_known(macro) for macro in macros)
            else "range over the seeds, because only the lowest and the highest macro score were kept."
        )
    if found["absent"]:
        text += f" No data for {', '.join(plain(found['titles'].get(task, task)) for task in found['absent'])}."
    if found["missing"]:
        text += f" {len(found['missing'])} cells lack seeds."
    return text


def _cell(figures: dict[str, Any] | None) -> str:
    if not figures:
        return NOTHING
    spread = f"{figures['min']:.1f}–{figures['max']:.1f}"
    if not _known(figures):
        return spread
    if not figures["min"] <= figures["value"] <= figures["max"]:
        raise PotstillError(
            f"A score of {figures['value']:.1f} lies outside its range {spread}, so the two come from different seeds: "
            "run the script of its table again."
        )
    return f"{figures['value']:.1f}" + f" ({spread})" * (figures["n"] > 1)


def _known(figures: dict[str, Any]) -> bool:
    """Return whether the median over seeds was kept. Old results of table 1 lack it for macro scores."""
    return figures["value"] is not None


def _masked_lm(measured: dict[str, float] | None, owner: str = "") -> list[str]:
    """Return loss and accuracy of the student, or of another model; on short blocks if most steps read them."""
    found = measured or {}
    prefix = _prefix(found) + owner
    return [number(found.get(f"{prefix}loss"), 3), percent(found.get(f"{prefix}accuracy"))]


def _prefix(found: dict[str, float]) -> str:
    """Return the prefix of the metrics on short blocks, or "" if there are none."""
    return "short_" if "short_loss" in found else ""


def number(value: float | None, digits: int) -> str:
    """Return a number with `digits` decimals."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """Return a share as percent."""
    return NOTHING if value is None else f"{100 * value:.1f} %"


def count(value: float | None) -> str:
    """Return a large number with separators between thousands."""
    return NOTHING if value is None else f"{value:,.0f}"


def millions(value: float | None) -> str:
    """Return a large number in millions."""
    return NOTHING if value is None else f"{value / 1e6:,.1f} M"
