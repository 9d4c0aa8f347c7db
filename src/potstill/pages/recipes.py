"""The part of a page on how the models were made: the options of each run, and in which they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from potstill.pages.folders import Found
from potstill.report import html
from potstill.report.markdown import NOTHING

PLACES = ("output_dir", "run_name", "logging_dir")
"""Options that differ between any two runs and tell nothing."""


def recipes(found: Sequence[Found]) -> list[str]:
    """Return the table of the options in which runs differ, and all options of each run behind a click."""
    made = [(one.name, one.recipe) for one in found if one.recipe]
    sections = []
    differing = differences([recipe for _, recipe in made])
    if len(made) > 1 and differing:
        header = ["option", *(name for name, _ in made)]
        rows = [[option, *(_text(recipe, option) for _, recipe in made)] for option in differing]
        sections.append(html.table(header, rows, "Options in which the runs differ", texts=True))
    for name, recipe in made:
        rows = [[option, _text(recipe, option)] for option in recipe]
        sections.append(html.details(f"All options of {name}", [html.table(["option", "value"], rows, texts=True)]))
    return sections


def differences(recipes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the options that do not have the same value in all recipes, in the order of the recipes."""
    names = {name: None for recipe in recipes for name in recipe if name not in PLACES}
    return [
        name
        for name in names
        if any(recipe.get(name, _MISSING) != recipes[0].get(name, _MISSING) for recipe in recipes)
    ]


def _text(recipe: Mapping[str, Any], option: str) -> str:
    return str(recipe[option]) if option in recipe else NOTHING


_MISSING = object()
