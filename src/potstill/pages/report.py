"""The verb `report`: one HTML page of any runs, evaluations, exports and measurements."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from potstill.errors import PotstillError
from potstill.files import check_output_file, write_text
from potstill.pages import forms, tasks, training
from potstill.pages.folders import Found, Kind, checked, find
from potstill.pages.recipes import recipes
from potstill.report import html
from potstill.signatures import Positionals

FOOTER = "Written by potstill report. Every figure was measured by the runs that wrote these folders."

Sections = dict[str, list[str]]
"""Title of a section → its parts; a section without parts is left out."""


def report(
    folders: Positionals,
    output: str = "report.html",
    title: str | None = None,
    reference: str | None = None,
    texts: list[str] | None = None,
) -> Path:
    """Write one self-contained HTML page of any runs: curves, tables, labels, latency, cost and recipes.

    The page loads nothing from the network. It suits a phone, a desktop and print, and is dark where the reader's
    system is.

    Args:
        folders: Folders that distill, pretrain, finetune, prune, evaluate or export wrote, and JSON files of bench
            train or bench inference. A folder of such folders stands for all of them. NAME=FOLDER gives a name.
        output: File to write the page to.
        title: Title of the page; the names of the folders if not given.
        reference: Name of the task model that the others are compared with; the first if not given.
        texts: Texts to run the distilled or pre-trained models and their teachers on. Masked LMs fill {mask} in a
            text; sentence encoders compare each two texts. No model is loaded if not given.

    Returns:
        The file.

    Raises:
        PotstillError: a folder holds no results, or they are damaged; no task model is called `reference`; no model can
            run on `texts`; or `output` cannot be written.
    """
    file = check_output_file(output, "--output")
    found = find([folders] if isinstance(folders, str) else folders)
    if reference is not None and not _of(found, Kind.TASK, Kind.EVALUATION):
        raise PotstillError("--reference is for task models, and no folder holds one: leave it out.")
    names = ", ".join(one.name for one in found[:3])
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    write_text(file, page_of(found, title or f"{names}{more}", reference=reference, texts=texts))
    return file


def page_of(
    found: Sequence[Found],
    title: str,
    first: Sections | None = None,
    reference: str | None = None,
    texts: Sequence[str] | None = None,
    footer: str = FOOTER,
) -> str:
    """Return the page.

    Args:
        found: what the page is of.
        title: its title.
        first: sections before all others.
        reference: see `report`.
        texts: see `report`.
        footer: the last line of the page.

    Raises:
        PotstillError: see `report`.
    """
    sections = dict(first or {})
    runs, speeds = _of(found, Kind.TRAINING), _of(found, Kind.SPEED)
    sections["At a glance"] = _glance(found)
    costs: list[list[str]] = []
    history: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        checked(run, partial(training.held_out, [run]))
        history[run.name] = checked(run, partial(training.log_of, run))
        costs += checked(run, partial(training.costs, [run]))
    if runs:
        sections["Held-out text"] = training.held_out(runs)
    if texts:
        from potstill.pages.texts import on_texts

        sections["The models on texts"] = on_texts(found, texts)
    if scored := _of(found, Kind.TASK, Kind.EVALUATION):
        comparison = tasks.comparison_of(scored, reference)
        sections |= {
            "Scores": tasks.scores(comparison),
            "Labels": tasks.labels(comparison),
            "Confusions": tasks.confusions(comparison),
            "Pruning": tasks.pruning(comparison.runs),
        }
        costs += tasks.costs(comparison.runs)
        history |= tasks.histories(comparison.runs)
    sections["Curves"] = training.plots(history)
    for kind, build in ((Kind.EXPORT, forms.exports), (Kind.SPEED, forms.speed)):
        for one in _of(found, kind):
            checked(one, partial(build, [one]))
    if exported := _of(found, Kind.EXPORT):
        sections["Exports"] = forms.exports(exported)
    sections["Latency"] = [
        part for one in _of(found, Kind.INFERENCE) for part in checked(one, partial(forms.inference, one))
    ]
    if speeds:
        sections["Speed of training"] = forms.speed(speeds)
    if costs:
        header = ["", "steps", "read", "time", "hardware", "versions"]
        sections["Cost"] = [html.table(header, costs, texts=True)]
    sections["Recipes"] = recipes(found)
    shown = {name: [part for part in parts if part] for name, parts in sections.items()}
    shown = {name: parts for name, parts in shown.items() if parts}
    body = [html.contents({name: html.anchor(name) for name in shown})]
    for name, parts in shown.items():
        body += [html.heading(name, html.anchor(name)), *parts]
    return html.page(title, body, footer)


def _glance(found: Sequence[Found]) -> list[str]:
    rows = []
    for one in found:
        verb, says = one.kind.value, ""
        if one.kind is Kind.TRAINING:
            verb = "distill" if one.recipe.get("teacher") else "pretrain" if one.recipe else verb
            says = checked(one, partial(training.glance, one))
        elif one.kind is Kind.TASK:
            verb = "prune" if one.record.get("pruning") else "finetune"
            says = checked(one, partial(_score, one))
        rows.append([one.name, says, verb, str(one.path)])
    return [html.table(["", "result", "written by", "where"], rows, texts=True)]


def _score(one: Found) -> str:
    return f"{one.record['task']}: score {one.record['score']:.2f}"


def _of(found: Sequence[Found], *kinds: Kind) -> list[Found]:
    return [one for one in found if one.kind in kinds]
