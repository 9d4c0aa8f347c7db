"""Recipes and declarations of tasks from a stranger: no code is run, and what unfolds without end is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from bounded import refused, sparse

from potstill.arguments import parsed_mapping
from potstill.errors import PotstillError
from potstill.recipe_file import read_recipe
from potstill.tasks.own import read_task

LETTERS = "abcdefghijklm"
LAUGHS = ["a: &a [x, x, x, x, x, x, x, x, x]"] + [
    f"{there}: &{there} [{', '.join([f'*{here}'] * 9)}]" for here, there in pairwise(LETTERS)
]
"""Each line stands for nine of the line before: the last one for 2.5 × 10¹² values."""
MERGES = ["a: &a {k: 1}"] + [
    f"{there}: &{there} {{<<: [{', '.join([f'*{here}'] * 9)}]}}" for here, there in pairwise(LETTERS)
]

HOSTILE = {
    "a billion laughs": ("\n".join(LAUGHS), "unfold to more than 100,000 values"),
    "laughs inside an option": ("losses:\n  " + "\n  ".join(LAUGHS), "unfold to more than 100,000 values"),
    "merges": ("\n".join(MERGES), "unfold to more than 100,000 values"),
    "a value in itself": ("losses: &a {x: *a}", "line 1 contains itself"),
    "all in itself": ("&a\nlosses: *a", "contains itself"),
    "merged into itself": ("&a\n<<: *a", "contains itself"),
    "nested lists": ("losses: " + "[" * 100_000, "nested too deeply"),
    "nested mappings": ("losses: " + "{a: " * 5000, "nested too deeply"),
    "code": ("losses: {a: !!python/object/apply:os.mkdir [ran]}", "could not determine a constructor"),
    "NUL": ("losses: \0", "cannot be read"),
    "a number without digits": ("losses: {a: 0b_}", "cannot be read"),
    "half a surrogate pair": ('losses: {a: "\\uD800"}', "surrogate"),
}
READERS: dict[str, Callable[[Path], object]] = {"recipe": read_recipe, "task": lambda file: read_task(str(file))}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, reader: str) -> None:
    monkeypatch.chdir(tmp_path)
    text, told = HOSTILE[name]
    (tmp_path / "a.yaml").write_text(text)
    message = refused(lambda: READERS[reader](tmp_path / "a.yaml"), 256)
    assert "a.yaml" in message
    # The reader of tasks may find another fault first: none of these is a task.
    assert told in message or (reader == "task" and "a field 'losses'" in message)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("text", ["{a: 0b_}", "[" * 50_000, "&a [*a]"])
def test_hostile_yaml_in_an_option(text: str) -> None:
    assert "--losses cannot be read" in refused(lambda: parsed_mapping("losses", text), 256)


@pytest.mark.parametrize("reader", READERS)
def test_a_file_of_10_gb(tmp_path: Path, reader: str) -> None:
    file = sparse(tmp_path / "a.yaml")
    assert "a.yaml is larger than 1 MiB" in refused(lambda: READERS[reader](file), 256)
    told = refused(lambda: READERS[reader](Path("/dev/zero")), 256)
    assert told.startswith(("/dev/zero is larger than 1 MiB", "/dev/zero is a device"))


def test_thousands_of_options(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("kind: x\n" + "".join(f"k{i}: 1\n" for i in range(4000)))
    assert len(read_recipe(tmp_path / "a.yaml")) == 4001
    with pytest.raises(PotstillError, match="a field 'k0'"):
        read_task(str(tmp_path / "a.yaml"))


def test_a_recipe_may_come_from_a_pipe_and_use_aliases(tmp_path: Path) -> None:
    here, there = os.pipe()
    os.write(there, b"losses: {a: &one {weight: 1}, b: *one}\n")
    os.close(there)
    assert read_recipe(Path(f"/dev/fd/{here}")) == {"losses": '{"a": {"weight": 1}, "b": {"weight": 1}}'}
    os.close(here)
