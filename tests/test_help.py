"""What `--help` shows, and the table that it is shown from."""

import json
from pathlib import Path

import pytest

from potstill import option_table
from potstill.cli import VERBS, main
from potstill.command_line import Option, Verb
from potstill.help_text import SECTIONS, full_help, short_help
from potstill.option_table import TABLE, as_text, function_of, table_of, verb_of
from potstill.signatures import apply, describe

pytestmark = pytest.mark.usefixtures("signals_restored")


def shown(verb: str, flag: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main([*verb.split(), flag]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


def test_the_table_is_what_the_signatures_say() -> None:
    """If this fails, options have changed: `make options` makes the table anew."""
    assert TABLE.read_text(encoding="utf-8") == as_text(table_of({name: where for name, (where, _) in VERBS.items()}))


@pytest.mark.parametrize("verb", VERBS)
def test_help_fits_on_a_screen_and_says_what_is_needed(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = shown(verb, "--help", capsys)
    lines = text.splitlines()
    assert len(lines) <= 60
    assert lines[0].startswith(f"usage: potstill {verb} ")
    assert lines[0].endswith("[options]")
    assert all(len(line) <= 80 for line in lines[1:] if "{" not in line)
    for option in describe(function_of(VERBS[verb][0])).options:
        if option.required:
            assert f"--{option.name} " in text or option.positional
            assert option.name in lines[0].lower()
    assert "Required." in text or verb in ("bench train", "serve", "demo")
    assert "--config" in text


@pytest.mark.parametrize("verb", VERBS)
def test_all_help_shows_every_option_that_is_not_refused(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(verb, "--help-all", capsys).splitlines()
    names = [line.split()[0] for line in lines if line.startswith("  --")]
    options = describe(function_of(VERBS[verb][0])).options
    assert sorted(names) == sorted([*(f"--{option.name}" for option in options if option.offered), "--config"])


def test_what_a_verb_refuses_is_not_offered_but_explained(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for verb, name in (("distill", "neftune_noise_alpha"), ("evaluate", "teacher"), ("evaluate", "task")):
        assert f"--{name} " not in shown(verb, "--help-all", capsys)
    words = ["--teacher", "t", "--corpus", "c", "--output_dir", str(tmp_path), "--label_smoothing_factor", "0.1"]
    assert main(["distill", *words]) == 1
    assert "--label_smoothing_factor is 0.1: it has no meaning for this objective" in capsys.readouterr().err


def test_resuming_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--help", "--help-all"):
        text = " ".join(shown("distill", flag, capsys).split())
        assert "auto: from the newest good checkpoint, or from the start if there is none; or a folder." in text


def test_sections_name_options_that_there_are() -> None:
    for name, sections in SECTIONS.items():
        options = {option.name: option for option in describe(function_of(VERBS[name][0])).options}
        names = [option for section in sections.values() for option in section]
        assert len(names) == len(set(names))
        assert all(options[option].offered for option in names if option != "config")
        assert {option.name for option in options.values() if option.required} <= set(names)


def test_help_is_for_the_width_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    verb = Verb("Does something.", (Option("text", "str", "word " * 40, "a", required=True), Option("on", "bool", "")))
    for columns, longest in (("20", 80), ("100", 100), ("500", 120)):
        monkeypatch.setenv("COLUMNS", columns)
        lines = full_help("try", verb).splitlines()
        assert longest - 5 <= max(map(len, lines)) <= longest
    assert short_help("try", verb) == full_help("try", verb)
    assert "usage: potstill try --text TEXT [options]" in full_help("try", verb)


def test_a_table_that_is_out_of_date_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = VERBS["compare"][0]
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    fresh = verb_of("compare", where)
    monkeypatch.setattr(option_table, "_from_signature", lambda _: "made anew")
    assert verb_of("compare", where) == fresh
    monkeypatch.setattr(option_table, "TABLE", tmp_path / "table.json")
    assert verb_of("compare", where) == "made anew"
    entry = table["verbs"]["compare"]
    for stale in (
        table | {"transformers": "4.0.0"},
        table | {"verbs": {"compare": entry | {"files": dict.fromkeys(entry["files"], "0" * 16)}}},
        table | {"verbs": {"compare": entry | {"files": {"gone.py": "0" * 16}}}},
        {},
    ):
        (tmp_path / "table.json").write_text(json.dumps(stale))
        assert verb_of("compare", where) == "made anew"
    monkeypatch.undo()
    assert describe(function_of(where)) == fresh


def test_what_is_not_given_is_left_to_the_signature() -> None:
    def verb(a: int, b: float | None = None, c: bool = True) -> tuple[object, ...]:
        """Do nothing."""
        return a, b, c

    assert apply(verb, {"a": 1}) == (1, None, True)
    found = {option.name: option for option in describe(verb).options}
    assert (found["a"].required, found["b"].kind, found["c"].negatable) == (True, "float", True)
