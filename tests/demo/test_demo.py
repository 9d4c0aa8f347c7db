"""The demo on what comes with the package: short, but the real thing."""

import gzip
import itertools
import json
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from potstill.cli import main
from potstill.demo.demo import demo
from potstill.student import load_masked_lm
from potstill.training.layer_search import Choices

ASSETS = files("potstill.demo") / "assets"


def megabytes(path) -> float:
    return sum(p.stat().st_size for p in [Path(str(path)), *Path(str(path)).rglob("*")] if p.is_file()) / 1e6


def test_assets_are_small_and_say_where_they_are_from() -> None:
    assert megabytes(ASSETS / "teacher") <= 10
    with gzip.open(str(ASSETS / "simple-wikipedia.jsonl.gz"), "rt", encoding="utf-8") as file:
        lines = file.readlines()
    assert sum(len(line.encode()) for line in lines) <= 1.5e6
    assert all(json.loads(line)["text"] for line in lines)
    assert "CC BY-SA 4.0" in (ASSETS / "ATTRIBUTION.md").read_text()
    assert "potstill pretrain" in (ASSETS / "teacher" / "README.md").read_text()


def test_the_teacher_is_a_twelve_layer_bert_of_its_own_vocabulary() -> None:
    teacher = load_masked_lm(str(ASSETS / "teacher"))
    assert (teacher.config.model_type, teacher.config.num_hidden_layers) == ("bert", 12)
    assert (teacher.config.hidden_size, teacher.config.vocab_size) == (128, 8192)
    assert teacher.config.max_position_embeddings == 512
    assert next(teacher.parameters()).dtype == torch.float32


@pytest.fixture(scope="module")
def shorter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's folder of the demo, with 2 of 5 texts."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "assets").mkdir()
    (folder / "assets" / "teacher").symlink_to(str(ASSETS / "teacher"))
    name = "simple-wikipedia.jsonl.gz"
    with gzip.open(str(ASSETS / name), "rb") as whole, gzip.open(folder / "assets" / name, "wb") as cut:
        cut.writelines(line for number, line in enumerate(whole) if number % 5 < 2)
    return folder


def some_near(choices: Choices, layers: Sequence[int], near=Choices.near) -> Iterator[tuple[int, ...]]:
    """The first exchanges of a layer: `tests/training/test_layer_search.py` has the search of all."""
    return itertools.islice(near(choices, layers), 5)


@pytest.fixture(scope="module")
def shown(shorter: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("demo") / "demo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("potstill.demo.demo.files", lambda package: shorter)
        patch.setattr(Choices, "near", some_near)
        lines: list[str] = []
        patch.setattr("rich.console.Console.file", property(lambda self: _Lines(lines), lambda self, file: None))
        patch.setenv("COLUMNS", "200")
        demo(str(folder), steps=6)
    return folder, "".join(lines)


class _Lines:
    """A text file that keeps what is written to it."""

    encoding = "utf-8"

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines

    def write(self, text: str) -> int:
        self.lines.append(text)
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return False


def test_it_prints_the_figures_that_its_runs_measured(shown: tuple[Path, str]) -> None:
    folder, text = shown
    for run, keys in (("student", ("final", "initial")), ("without-teacher", ("final",))):
        results = json.loads((folder / run / "results.json").read_text())
        for key in keys:
            assert f"{results['held_out'][key]['loss']:.3f}" in text
            assert f"{results['held_out'][key]['accuracy']:.1%}" in text
    for name in ("teacher", "student, initialised", "student, distilled", "student, no teacher"):
        assert name in text
    assert text.count("[MASK]") == 3


def test_the_student_keeps_what_the_teacher_knows(shown: tuple[Path, str]) -> None:
    held_out = {
        run: json.loads((shown[0] / run / "results.json").read_text())["held_out"]
        for run in ("student", "without-teacher")
    }
    initial, final = held_out["student"]["initial"], held_out["student"]["final"]
    assert final["accuracy"] >= 0.9 * final["teacher_accuracy"]
    assert final["loss"] < initial["loss"]
    assert final["kl"] < min(initial["kl"], held_out["without-teacher"]["final"]["kl"])


def test_both_students_start_from_the_layers_that_were_measured_on_other_blocks(shown: tuple[Path, str]) -> None:
    folder, _ = shown
    results = json.loads((folder / "student" / "results.json").read_text())
    search = results["layer_search"]
    assert not search["evaluated_too"]
    assert search["blocks"] == 32
    layers = ",".join(map(str, search["tried"][0]["layers"]))
    for run in ("student", "without-teacher"):
        assert f"layers: {layers}\n" in (folder / run / "recipe.yaml").read_text()
    assert f"the teacher's layers {layers}, counted from 0" in (folder / "report.html").read_text().replace(
        "&#x27;", "'"
    )


def test_two_students_differ_in_nothing_but_the_teacher(shown: tuple[Path, str]) -> None:
    folder, _ = shown
    recipes = [(folder / run / "recipe.yaml").read_text().splitlines() for run in ("student", "without-teacher")]
    assert {line.split(":")[0] for line in set(recipes[0]) ^ set(recipes[1])} == {"alpha_ce", "alpha_cos"}


def test_report_is_whole(shown: tuple[Path, str]) -> None:
    page = (shown[0] / "report.html").read_text()
    assert page.count("<figure>") == page.count("</figure>") > 4  # the curves of both runs
    assert "Soft targets" in page
    assert "student, no teacher" in page


def test_it_does_not_write_over_what_is_there(shown: tuple[Path, str], capsys: pytest.CaptureFixture) -> None:
    assert main(["demo", "--output_dir", str(shown[0])]) == 1
    assert "not empty" in capsys.readouterr().err
