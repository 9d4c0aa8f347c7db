"""The leader board in docs/results/paper.md."""

from __future__ import annotations

from statistics import median
from typing import Any

from potstill.report.markdown import NOTHING, code, plain
from reproduce.render_conditions import measured_with
from reproduce.render_tables import count, millions, number, percent, table


def leader_board(found: dict[str, Any]) -> str:
    """Return a table for each board, the newest first."""
    introduction = (
        "Minutes on one GPU until a student is as good as that of the first row: its held-out loss and its KL to the "
        "teacher are no worse. Blocks have the length of most steps; a column for long blocks stands beside it. All "
        "students of a board start from the same layers of the same teacher. Minutes are those of training, with "
        "compilation. By the clock they include the start and the saving."
    )
    return "\n\n".join([introduction, *(_board(board) for board in found["boards"])])


def _board(board: dict[str, Any]) -> str:
    tasks = board["tasks"]
    columns = [] if tasks is None else [task for task in tasks["titles"] if task not in tasks["absent"]]
    teacher = board["teacher_held_out"]["own"]
    longer = next((where for where in board["teacher_held_out"] if where != "own"), None)
    blank = [NOTHING] * 4
    rows = [["the teacher", *blank, number(teacher["loss"], 3), NOTHING, percent(teacher["accuracy"])]]
    rows[0] += [number(board["teacher_held_out"][longer]["loss"], 3), NOTHING] if longer else []
    rows[0] += [NOTHING, *(_score(tasks, "teacher", task) for task in columns)]
    reference, *entries = board["rows"]
    for name in [reference, *sorted(entries, key=lambda name: board["rows"][name]["minutes"])]:
        row = board["rows"][name]
        metrics = {metric: [of["own"][metric] for of in row["held_out"]] for metric in ("loss", "kl", "accuracy")}
        cells = [
            plain(name),
            f"{row['minutes']:g}",
            f"{row['by_the_clock']:.1f}",
            millions(row["tokens"]),
            count(row["tokens_per_second"]),
            _spread(metrics["loss"]),
            _spread(metrics["kl"]),
            percent(median(metrics["accuracy"])),
        ]
        if longer:
            cells += [_spread([of[longer][metric] for of in row["held_out"]]) for metric in ("loss", "kl")]
        cells.append(NOTHING if name == reference else "yes" if board["reached"][name] else "no")
        rows.append(cells + [_score(tasks, name, task) for task in columns])
    titles = [plain(tasks["titles"][task]) for task in columns] if tasks else []
    header = ["", "minutes", "by the clock", "tokens", "tokens/s", "held-out loss", "KL", "accuracy"]
    header += [f"{metric}, {longer.removeprefix('own, ')}" for metric in ("loss", "KL")] if longer else []
    header.append("reached")
    shape, conditions = board["teacher"], board["conditions"]
    pretrained = sum(stage["cost"]["gpu_minutes"] for session in board["sessions"] for stage in session["stages"])
    of = f", {pretrained:.1f} GPU-minutes of pre-training" if pretrained else ""
    where = (
        f"{conditions['gpus']} × {plain(conditions['hardware'])}"
        if conditions["gpus"]
        else plain(conditions["hardware"])
    )
    commit = f", commit {conditions['commit']}" if conditions["commit"] else ""
    title = f"**{conditions['date']}**, {where}{commit}."
    title += f" Teacher: {shape['layers']} layers, {shape['hidden_size']} wide{of}."
    recipes = "\n".join(f"- {plain(name)}: {_options(row['recipe'])}" for name, row in board["rows"].items())
    seeds = f" Scores on tasks: medians of {len(tasks['seeds'])} seeds" if tasks else ""
    if tasks:
        rows_of_task, rates = tasks.get("max_train_samples"), tasks.get("searched")
        seeds += f", trained on at most {count(rows_of_task)} rows of a task" if rows_of_task else ""
        seeds += f", with the best of {len(rates)} learning rates for each model and task." if rates else "."
    made = measured_with(conditions)
    return f"{title}{seeds}\n\n{table([*header, *titles], rows)}\n\n{recipes}\n\n{made}"


def _options(recipe: dict[str, str]) -> str:
    return ", ".join(code(f"{name}: {value}") for name, value in recipe.items())


def _spread(values: list[float]) -> str:
    text = f"{median(values):.3f}"
    return f"{text} ({min(values):.3f}–{max(values):.3f})" if len(values) > 1 else text


def _score(tasks: dict[str, Any] | None, model: str, task: str) -> str:
    figures = ((tasks or {"models": {}})["models"].get(model) or {"tasks": {}})["tasks"].get(task)
    if not figures:
        return NOTHING
    return f"{figures['value']:.1f} ({figures['min']:.1f}–{figures['max']:.1f})"
