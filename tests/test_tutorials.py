"""The tutorials run as they are written, and print what the pages show. Every command of the pages has known options.

The figures of a page are those of one machine, so any number may stand where the page has a number.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

from potstill.cli import VERBS
from potstill.option_table import verb_of

ROOT = Path(__file__).parents[1]
TUTORIALS = ROOT / "docs" / "tutorials"
LESSONS = {
    "first-student": ["first-student"],
    "own-language": ["own-language"],
    "sentence-encoder": ["sentence-encoder"],
    "own-csv": ["own-csv", "production-cpu", "browser"],  # the later ones use the models of the first
}
"""Name of a test → the pages that it runs in one folder, in order."""

BLOCK = re.compile(r"^```(bash|python|text)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e-\d+)?")
EVERYWHERE = {"config", "help", "help_all"}


PROCESSOR = "on AMD EPYC, 1 thread"
"""What the pages show of the machine on which they were written; another one has another name, and other threads."""


def pattern_of(line: str) -> str:
    """Return a pattern of a printed line in which each number may be another one, and spaces may be more or less.

    The processor may be another one too.
    """
    if line.endswith(PROCESSOR):
        return pattern_of(line.removesuffix(PROCESSOR)) + r"\s+on\s+\S.*threads?\b"
    words = [r"\S+".join(map(re.escape, NUMBER.split(word))) for word in line.split()]
    return r"\s+".join(words)


def run_page(page: Path, folder: Path, environment: dict[str, str]) -> None:
    printed = ""
    for language, code in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "text":
            for line in filter(str.strip, code.splitlines()):
                assert re.search(pattern_of(line), printed), (
                    f"{page.name} shows {line!r}, but this was printed:\n{printed}"
                )
        elif code.startswith("potstill serve "):
            printed = served(shlex.split(code), folder, environment)
        else:
            program = ["bash", "-ec"] if language == "bash" else [sys.executable, "-c"]
            done = subprocess.run([*program, code], cwd=folder, env=environment, capture_output=True, text=True)
            printed = done.stdout + done.stderr
            assert done.returncode == 0, f"{code}\n{printed}"


def served(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    """Start the server, open its page, end it as Ctrl-C does, and return what it printed first."""
    process = subprocess.Popen(
        [*command, "--port", "0"], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        printed = process.stdout.readline()
        with urlopen(re.search(r"http://\S+", printed)[0]) as page:  # type: ignore[index]
            assert b"<html" in page.read()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
    return printed


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("lesson", LESSONS)
def test_a_tutorial_prints_what_it_shows(lesson: str, tmp_path: Path) -> None:
    (tmp_path / "src").symlink_to(ROOT / "src", target_is_directory=True)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
        "POTSTILL_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "120",
    }
    for page in LESSONS[lesson]:
        run_page(TUTORIALS / f"{page}.md", tmp_path, environment)


def test_every_tutorial_is_run() -> None:
    pages = {page.stem for page in TUTORIALS.glob("*.md")} - {"index"}
    assert pages == {page for lesson in LESSONS.values() for page in lesson}


def commands() -> list[tuple[str, str]]:
    """Return (page, command) for each command of potstill in the README and in docs/, with its continued lines."""
    found = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        found += [(page.name, line) for line in re.findall(r"^(?: {4})?\s*(potstill .*)$", text, re.MULTILINE)]
    return found


def test_every_command_of_the_pages_has_known_options() -> None:
    known: dict[str, set[str]] = {}
    wrong = []
    for page, command in commands():
        words = command.split()[1:]
        verb = next((verb for verb in VERBS if words[: len(verb.split())] == verb.split()), None)
        if verb is None:
            continue  # a sentence that begins with the name
        if verb not in known:
            names = {option.name for option in verb_of(verb, VERBS[verb][0]).options}
            known[verb] = names | {f"no_{name}" for name in names} | EVERYWHERE
        options = re.findall(r"(?<=\s)--([a-zA-Z][\w-]*)", command.split(" #")[0])
        wrong += [(page, verb, name) for name in options if name.replace("-", "_") not in known[verb]]
    assert not wrong
    assert len(known) > 8


def test_a_line_that_is_not_printed_is_found() -> None:
    assert re.search(pattern_of("loss 3.1 · 2,555 blocks"), "step 4\nloss 12.75 ·   7 blocks and more")
    assert not re.search(pattern_of("loss 3.1 · 2,555 blocks"), "accuracy 12.75 · 7 blocks")
