"""Versions that are recorded tell one build from another."""

import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import ModuleType

import torch
from packaging.requirements import Requirement
from packaging.version import Version

import potstill
from potstill.versions import version, versions


def test_torch_says_which_build_it_is(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda package: "2.13.0")  # as of the wheel that PyPI gives everybody
    monkeypatch.setattr(torch, "__version__", "2.13.0+cu130")
    assert version("torch") == "2.13.0+cu130"
    assert versions("potstill", "torch", "transformers") == {
        "potstill": "2.13.0",
        "torch": "2.13.0+cu130",
        "transformers": "2.13.0",
    }


def test_versions_of_this_environment():
    found = versions("torch", "transformers", "tokenizers")
    assert found["torch"] == torch.__version__
    assert type(found["torch"]) is str  # and not torch's own type, which JSON and YAML do not know
    assert found["transformers"] == metadata.version("transformers")
    assert found["tokenizers"] == metadata.version("tokenizers")


def test_a_package_of_another_name_speaks_for_itself(monkeypatch):
    runtime, silent = ModuleType("made_up_runtime"), ModuleType("made_up_silent")
    runtime.__version__ = "1.2.3+gpu"
    monkeypatch.setitem(sys.modules, "made_up_runtime", runtime)
    monkeypatch.setitem(sys.modules, "made_up_silent", silent)
    assert versions("made_up_runtime", "made_up_silent") == {
        "made_up_runtime": "1.2.3+gpu",
        "made_up_silent": "unknown",
    }


def test_nothing_records_a_version_otherwise():
    root = Path(potstill.__file__).parent
    asking = [file.relative_to(root).as_posix() for file in root.rglob("*.py") if "metadata" in file.read_text()]
    others = [name for name in asking if "importlib.metadata import" in (root / name).read_text()]
    # The first and last print versions, the second compares that of transformers; none of them may import torch.
    assert sorted(others) == ["cli.py", "option_table.py", "version.py"]


def test_the_oldest_versions_are_those_that_are_promised():
    root = Path(__file__).parents[1]
    promised = map(Requirement, tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"])
    lowest = {one.name: Version(part.version) for one in promised for part in one.specifier if part.operator == ">="}
    lines = [line for line in (root / "requirements-oldest.txt").read_text().splitlines() if line[0] != "#"]
    tested = {name: Version(number) for name, number in (line.split("==") for line in lines)}
    del lowest["torch"]  # TORCH in the Makefile names its version
    assert tested == lowest
