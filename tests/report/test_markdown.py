"""Markdown that shows any text as it is: rendered, and compared with the text."""

from __future__ import annotations

import math

import pytest
import yaml
from hostile import BROKEN, NAMES, front_matter, rendered
from hypothesis import given, settings
from hypothesis import strategies as st

from potstill.report import markdown
from potstill.report.markdown import code, figure, name_of, plain, table, visible

ANY = st.text(st.characters(blacklist_categories=["Cc", "Cs", "Zl", "Zp", "Cn"], blacklist_characters="\u202e"))
MARKED = st.text("|`*_<>[]()!#~$&;\\-+=.12ab :\"'{}/", min_size=1, max_size=20)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_as_it_is_wherever_it_stands(name: str) -> None:
    cells = table(["", plain(name)], [[plain(name), code(name, cell=True)]])
    shown = rendered(f"# {plain(name)}\n\n- {plain(name)}\n\n{code(name)}\n\n{cells}\n")
    assert shown.headings == [name]
    assert shown.tables == [[["", name], [name, name]]]
    assert shown.text.splitlines() == [name, name, name, "", name, name, name]
    assert (shown.html, shown.links) == ([], [])


@pytest.mark.parametrize("name", BROKEN)
def test_what_would_break_a_line_is_shown_by_its_escape(name: str) -> None:
    seen = visible(name)
    assert seen.isprintable()
    assert seen == name.translate({ord(char): ascii(char)[1:-1] for char in "\n\r\t\x1b\u2028\u202e"})
    assert rendered(f"- {plain(name)}\n- {plain(name)}\n").text.splitlines() == [seen, seen]
    assert rendered(table(["", ""], [[plain(name), code(name, cell=True)]])).tables[0][1] == [seen, seen]


def test_a_name_that_is_not_utf8_can_be_written() -> None:
    name = b"a\xe9".decode(errors="surrogateescape")
    assert plain(name).encode() == rb"a\\udce9"
    assert code(name).encode() == rb"`a\udce9`"


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.one_of(ANY, MARKED))
def test_any_text(name: str) -> None:
    shown = rendered(f"- {plain(name)}\n\n{table(['', ''], [[f'x{plain(name)}x', code(name, cell=True)]])}\n")
    assert shown.tables[0][1][0] == f"x{name}x"
    assert shown.tables[0][1][1].strip() == name.strip()
    assert (shown.html, shown.links) == ([], [])


def test_a_table_of_figures_is_set_at_the_right() -> None:
    assert table(["", "n"], [["a", "1"]], figures=True).splitlines() == ["|  | n |", "|---|--:|", "| a | 1 |"]


def test_what_is_no_number_is_a_dash() -> None:
    assert [figure(value, ".1%") for value in (0.5, math.nan, math.inf, -math.inf)] == ["50.0%", "–", "–", "–"]


@pytest.mark.parametrize("name", [*NAMES, *BROKEN, "../student", "a" * 5000, "a\0b", ""])
def test_only_what_can_be_a_name_of_the_hub_is_a_base_model(name: str) -> None:
    header, rest = front_matter(markdown.front_matter({"tags": [name]}, name) + "\n\nrest")
    assert header == {"tags": [name]}
    assert rest.strip() == "rest"


def test_a_folder_is_no_base_model(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("me/my-bert", "my-bert"):
        assert yaml.safe_load(markdown.front_matter({}, name).strip("-"))["base_model"] == name
    (tmp_path / "me" / "my-bert").mkdir(parents=True)
    assert "base_model" not in markdown.front_matter({}, "me/my-bert")


def test_a_model_is_called_by_the_last_part_of_its_name() -> None:
    assert [name_of(name) for name in ("me/my-bert", "/models/a|b/", ".", "/")] == ["my-bert", r"a\|b", ".", "/"]
