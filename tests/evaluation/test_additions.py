"""A task, a metric and a format that are declared in one place go through the whole chain, and change nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_samples import Flags, write_task
from samples import WORDS
from sklearn.metrics import balanced_accuracy_score
from transformers import pipeline

from potstill import compare
from potstill.cli import main
from potstill.errors import PotstillError
from potstill.export.executorch import one_row_program, run_rows
from potstill.export.export import export
from potstill.export.format import Format, Target
from potstill.export.formats import FORMATS
from potstill.export.runtime import ExportedFolder
from potstill.export.source import Arrays, Source
from potstill.tasks.labels import ClassNames
from potstill.tasks.metrics import METRICS, Metric
from potstill.tasks.questions import QuestionTask
from potstill.tasks.registry import TASKS, find_task, suites
from potstill.tasks.sentence import SentenceTask, Table
from potstill.tasks.task import Defaults

pytestmark = pytest.mark.usefixtures("signals_restored", "no_hub", "own_cache")


# A metric: a function, and an entry in METRICS.


def balanced(predictions: Any, references: Any) -> float:
    """Mean over the classes of the share that is found."""
    return 100 * float(balanced_accuracy_score(references, predictions))


# A task: an entry in TASKS.

CLASSES = ("billing", "other", "technical")
TABLE = Table("message", None, "category", ClassNames(CLASSES))
TICKETS = SentenceTask(
    "tickets", "Tickets", CLASSES, ("accuracy", "balanced"), TABLE, TABLE, defaults=Defaults(1e-3, 8, 2, 24)
)

# A format: a way to write and a way to open, and an entry in FORMATS.


class Program:
    """A graph of torch.export, one row at a time."""

    def __init__(self, file: Path, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        self.module, self.inputs, self.outputs = torch.export.load(file).module(), inputs, outputs

    def run(self, inputs: Arrays) -> Arrays:
        """Return the logits."""
        return dict(zip(self.outputs, run_rows(inputs, self.inputs, self._row), strict=True))

    def _row(self, row: Arrays) -> list[Any]:
        return [logits.detach().numpy() for logits in self.module(*map(torch.from_numpy, row.values()))]


def write_program(source: Source, file: Path, target: Target, examples: Iterator[Arrays] | None) -> None:
    """Write the graph."""
    torch.export.save(one_row_program(source), file)


GRAPH = Format(
    "graph",
    "torch.export",
    "model.pt2",
    "graph",
    ("torch",),
    "torch.export",
    write_program,
    lambda file, inputs, outputs, threads: Program(file, inputs, outputs),
)


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    """The three of them."""
    monkeypatch.setitem(METRICS, "balanced", Metric(balanced, "bal. acc"))
    monkeypatch.setitem(TASKS, "tickets", TICKETS)
    monkeypatch.setitem(FORMATS, "graph", GRAPH)


@pytest.fixture
def tickets(tmp_path: Path) -> Path:
    """SST-2 and RTE as others have them, and tickets whose second word tells the class."""
    folder = tmp_path / "data"
    for task in ("sst2", "rte"):
        write_task(folder, task)
    rng = np.random.default_rng(0)
    (folder / "tickets").mkdir()
    for split, count in (("train", 24), ("dev", 12)):
        lines = [
            {"message": f"{rng.choice(WORDS)} {('bol', 'kim', 'met')[n % 3]}", "category": CLASSES[n % 3]}
            for n in range(count)
        ]
        (folder / "tickets" / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def said(capsys: pytest.CaptureFixture[str], *argv: str, status: int = 0) -> str:
    assert main([*argv]) == status
    printed = capsys.readouterr()
    return printed.err if status else printed.out


@pytest.mark.usefixtures("added")
def test_a_task_and_a_metric_are_fine_tuned_on_compared_and_exported(
    make_teacher: Callable[..., Path], tickets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = []
    for name, layers, more in (("big", 2, ()), ("small", 1, ("--teacher", str(tmp_path / "big")))):
        model = str(make_teacher(num_hidden_layers=layers))
        words = ["--model", model, "--task", "tickets", "--task_data", str(tickets), "--use_cpu", *more]
        text = said(capsys, "finetune", *words, "--output_dir", str(tmp_path / name))
        assert "tickets: accuracy " in text
        assert "balanced " in text
        folders.append(str(tmp_path / name))
    result = json.loads((tmp_path / "small" / "results.json").read_text())
    settings = result["hyperparameters"]
    names = ("learning_rate", "per_device_train_batch_size", "num_train_epochs", "max_length")
    assert tuple(settings[name] for name in names) == TICKETS.defaults
    assert (result["title"], result["suite"]) == ("Tickets", "tickets")
    assert result["score"] == pytest.approx(sum(result["metrics"].values()) / 2)
    assert result["metrics"].keys() == {"accuracy", "balanced"}
    assert pipeline("text-classification", model=str(tmp_path / "big"))("bol")[0]["label"] in CLASSES
    assert 'pipeline("text-classification"' in (tmp_path / "big" / "README.md").read_text()

    text = said(capsys, "compare", *folders)
    assert "Tickets" in text
    assert "acc/bal. acc" in text
    assert [line.split()[0] for line in text.splitlines() if line.startswith((" big", " small"))] == [
        *("big", "small", "small", "big", "small")  # scores, retention, metrics
    ]
    check = {"task": "tickets", "check_data": str(tickets)}
    exported = export(str(tmp_path / "small"), "graph", str(tmp_path / "exported"), **check)
    assert exported.file.name == "model.pt2"
    assert exported.agreement is not None
    assert exported.agreement.same == 1
    assert exported.scores is not None
    assert exported.scores.before == exported.scores.after
    assert exported.scores.before["score"] == pytest.approx(result["score"])
    found = ExportedFolder.read(tmp_path / "exported")  # as `bench inference` reads it
    assert (found.title, found.weight_bits, found.package) == ("torch.export", 32, "torch")
    inputs = {name: np.ones((2, 5), np.int64) for name in found.inputs}
    assert found.open(threads=1).run(inputs)["logits"].shape == (2, 3)
    serve = said(capsys, "serve", "--model", str(tmp_path / "exported"), status=1)
    assert "is an export for torch.export; browsers run ONNX" in serve


def test_the_macro_score_of_glue_is_what_it_was(
    flags: Flags,
    tickets: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = str(tmp_path / "results")
    common: dict[str, Any] = {"task_data": tickets, "report_to": "none"}
    said(capsys, *flags(suite="glue:sst2,rte", **common))
    before = json.loads(compare(folder, "json"))
    request.getfixturevalue("added")
    text = said(capsys, *flags(suite=["glue:sst2,rte", "tickets"], **common))
    after = json.loads(compare(folder, "json"))
    assert after["plan"]["tasks"] == ["sst2", "rte", "tickets"]
    assert after["macro_tasks"] == before["macro_tasks"] == {"GLUE macro": ["sst2", "rte"]}
    for model in ("teacher", "student"):
        assert after["models"][model]["macros"] == before["models"][model]["macros"]
        assert after["models"][model]["tasks"]["tickets"]["n"] == 2
    assert (
        "over 2 of the 9 tasks, for all models: SST-2, RTE. Not included, because incomplete or not in GLUE: Tickets."
        in " ".join(text.split())
    )


def test_a_suite_has_the_tasks_that_declare_it(monkeypatch: pytest.MonkeyPatch) -> None:
    glue = suites()["glue"]
    assert glue == ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli")
    assert [*suites()][:4] == ["glue", "imdb", "squad", "squad_v2"]
    monkeypatch.setitem(TASKS, "tickets", TICKETS)
    assert suites()["glue"] == glue
    assert suites()["tickets"] == ("tickets",)
    for name in ("one", "two"):
        monkeypatch.setitem(TASKS, name, SentenceTask(name, name, (), ("pearson",), TABLE, TABLE, suite="own"))
    assert suites()["own"] == ("one", "two")


def test_what_is_not_declared_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PotstillError, match=r"no task 'sst-2'; the tasks are cola, .*; the nearest is sst2\.$"):
        find_task("sst-2")
    words = ["--model", "m", "--output_dir", str(tmp_path / "out")]
    assert "There is no task 'tickets'; the tasks are cola, " in said(
        capsys, "finetune", *words, "--task", "tickets", status=1
    )
    text = said(
        capsys, "evaluate", "--models", "a=b", "--output_dir", str(tmp_path / "out"), "--suite", "sst2", status=1
    )
    assert "no suite 'sst2'; the suites are glue, imdb, squad, squad_v2" in text
    assert "(sst2 is a task of glue: give glue:sst2)" in text
    with pytest.raises(PotstillError, match=r"no format 'onx'; the formats are onnx, .*; the nearest is onnx\.$"):
        export("m", "onx", str(tmp_path / "out"))


@pytest.mark.parametrize("task", [TICKETS, QuestionTask("faq", "FAQ", None, ("1.1",))])
def test_a_task_without_a_dataset_on_the_hub_asks_for_data(
    task: SentenceTask | QuestionTask,
    monkeypatch: pytest.MonkeyPatch,
    make_teacher: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(TASKS, task.name, task)
    words = ["--model", str(make_teacher()), "--task", task.name, "--output_dir", str(tmp_path / "out"), "--use_cpu"]
    text = said(capsys, "finetune", *words, "--max_length", "24", status=1)
    assert text == f"potstill finetune: {task.title} has no dataset on the hub: name its data with --task_data.\n"
