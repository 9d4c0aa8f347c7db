"""Fixtures of the tests of the scripts."""

from __future__ import annotations

import pytest

from potstill.cli import main as potstill
from reproduce import held_out, runs
from reproduce.common import run

SCRIPTS = {"held_out": held_out.main}


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Have commands run here; returns the verbs that were."""
    ran: list[list[str]] = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # which reproduce.held_out would choose one of for good

    def run_command(words: list[str], environment: dict[str, str], prefix: str) -> int:
        if words[2] != "potstill":
            return run(SCRIPTS[words[2].removeprefix("reproduce.")], words[3:])
        ran.append(words[3:])
        return potstill(words[3:])

    monkeypatch.setattr(runs, "run_command", run_command)
    return ran
