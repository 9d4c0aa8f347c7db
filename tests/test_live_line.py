"""How far the work is: one line that changes on a terminal, a line now and then elsewhere. Pseudo-terminals show it."""

import re
import sys
from pathlib import Path

import pytest
from terminals import CODE, HIDES_CURSOR, Terminal, scrolled

from potstill import live_line
from potstill.live_line import LiveLine


def test_a_terminal_changes_one_line_and_others_scroll_above_it(terminal: Terminal) -> None:
    written = terminal()
    long_path = "/".join(["a-long-name"] * 12)
    with LiveLine() as line:
        for number in range(50):
            line.update(number / 50, [f"live {number}"])
            if number == 20:
                print(f"lasting {long_path}", file=sys.stderr)
    shown = written()
    assert "live 0" in shown
    assert "live 49" in shown
    assert "━" in shown
    assert HIDES_CURSOR not in shown
    assert scrolled(shown) == [f"lasting {long_path}"]  # without line ends inside
    assert shown.endswith("\x1b[1A\x1b[2K")  # the live line is gone
    assert sys.stderr.isatty()
    print("after", file=sys.stderr, flush=True)
    assert written() == "after\n"


def test_what_does_not_fit_into_the_terminal_is_left_out(terminal: Terminal) -> None:
    written = terminal()
    with LiveLine() as line:
        line.update(0.5, ["first", "x" * 107, "y" * 80])
        assert CODE.sub("", written()).strip("\r") == "first · " + "x" * 107  # too little room for a bar
        line.update(0.5, ["z" * 200])
        assert CODE.sub("", written()).strip("\r") == "z" * 118 + "…"


def test_work_inside_other_work_is_shown_on_its_line(terminal: Terminal) -> None:
    written = terminal()
    with LiveLine() as outer:
        outer.update(0.5, ["live 1 of 2 runs"])
        with LiveLine() as inner:
            inner.update(0.25, ["step 3"])
        assert "live 1 of 2 runs · step 3" in CODE.sub("", written())
        outer.update(1.0, ["live 2 of 2 runs"])
        assert "step 3" not in written()


def test_an_error_leaves_a_clean_terminal(terminal: Terminal) -> None:
    written = terminal()
    before = sys.stderr

    def interrupted() -> None:
        with LiveLine() as line:
            line.update(0.5, ["live"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert sys.stderr is before
    shown = written()
    assert HIDES_CURSOR not in shown
    assert shown.endswith("\x1b[1A\x1b[2K")
    with LiveLine() as line:  # the next one is not shown on the line of the one that failed
        line.update(0.5, ["again"])
    assert "again" in written()


def test_no_color_is_respected(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    written = terminal()
    monkeypatch.setenv("NO_COLOR", "1")
    with LiveLine() as line:
        line.update(0.5, ["live"])
    shown = written()
    assert "live" in shown
    assert not re.findall(r"\x1b\[[\d;]*m", shown)


@pytest.mark.parametrize("kind", ["dumb", "pipe"])
def test_lines_elsewhere_have_no_codes(
    kind: str, terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written = terminal()
    monkeypatch.setenv("TERM", "dumb" if kind == "dumb" else "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")  # as CI sets it
    file = (tmp_path / "log").open("w+")
    if kind == "pipe":
        monkeypatch.setattr(sys, "stderr", file)
    with LiveLine(wait=False) as line:
        for number in range(1000):
            line.update(number / 1000, [f"number {number}", "more"])
        line.flush()
        line.flush()
    file.seek(0)
    assert (written() if kind == "dumb" else file.read()) == "number 0 · more\nnumber 999 · more\n"


def test_lines_come_at_intervals(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 100.0
    monkeypatch.setattr(live_line.time, "monotonic", lambda: now)
    with LiveLine() as line:
        for second in range(35):
            now = 100.0 + second
            line.update_count(second, 34, "texts", "logits: ")
    assert capsys.readouterr().err.splitlines() == [
        "logits: 10 of 34 texts (29%) · 0:24 left · 1 texts/s",
        "logits: 20 of 34 texts (59%) · 0:14 left · 1 texts/s",
        "logits: 30 of 34 texts (88%) · 0:04 left · 1 texts/s",
    ]
