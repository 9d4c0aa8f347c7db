from __future__ import annotations

import sys

import pytest

from reproduce.common import run
from reproduce.papers import __main__ as papers


def test_each_script_gets_the_options_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, list[str]] = {}
    monkeypatch.setattr(papers, "run_script", lambda name, options: given.update({name: options}))
    words = [
        "--model",
        "encoder",
        "--squad",
        "xquad.json",
        "--text",
        "a.jsonl",
        "b.jsonl",
        "--gpus",
        "0",
        "--no-latency",
    ]
    assert run(papers.main, words) == 0
    assert list(given) == [f"papers.{script}" for script in papers.SCRIPTS]
    assert given["papers.questions"] == words[:-1]
    assert given["papers.bilstm"] == ["--model", "encoder", "--gpus", "0", "--no-latency"]
    assert given["papers.precision"] == ["--model", "encoder", "--text", "a.jsonl", "b.jsonl", "--gpus", "0"]


def test_an_option_of_no_script_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(papers, "run_script", lambda *call: sys.exit("a script ran"))
    assert run(papers.main, ["--model", "encoder", "--learning", "3"]) == 1
    assert "No script has the option --learning 3" in capsys.readouterr().err
