"""What a report of a bug says of the machine, and that the files of a release agree with each other."""

import platform
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml

from potstill.cli import main
from potstill.version import extras

ROOT = Path(__file__).parents[2]


def test_verbose_version(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (["version", "--verbose"], ["--version", "--verbose"]):
        assert main(words) == 0
        lines = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
        assert lines["potstill"] == version("potstill")
        assert lines["torch"] == torch.__version__
        assert lines["Python"].startswith(platform.python_version())
        assert lines["GPUs"]
        assert lines["extra onnx"].startswith(("yes: onnx ", "no: "))
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"{version('potstill')}\n"
    assert main(["version", "--loud"]) == 2
    assert "'--loud' is unknown; there is --verbose" in capsys.readouterr().err


def test_extras_that_are_not_installed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("potstill.version.requires", lambda name: ["torch>=2", "no-such-thing>=1; extra == 'odd'"])
    assert extras() == {"odd": ["no-such-thing"]}
    assert main(["version", "--verbose"]) == 0
    assert "no: no-such-thing not installed" in capsys.readouterr().out


def test_the_files_of_a_release_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()
    for page in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"):
        for link in re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text()):
            assert link.startswith("https://") or (ROOT / link).exists(), link


def test_the_workflow_runs_on_every_python_that_the_package_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    pythons = workflow["jobs"]["tests"]["strategy"]["matrix"]["python"]
    names = "Programming Language :: Python :: "
    named = [one.removeprefix(names) for one in project["classifiers"] if one.startswith(f"{names}3.")]
    assert pythons == named
    assert project["requires-python"] == f">={pythons[0]}"
    makefile = (ROOT / "Makefile").read_text()
    torch_version = re.search(r"^TORCH \?= (\S+)", makefile, re.MULTILINE)
    assert torch_version is not None
    assert workflow["env"]["TORCH"].split()[0] == torch_version[1]
    assert f"ARG TORCH={torch_version[1]}\n" in (ROOT / "Dockerfile").read_text()


def test_the_dockerfile_copies_what_there_is() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY "):
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), source
                assert source not in ignored
