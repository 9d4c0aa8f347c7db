"""The pages on files and on results have every field that the code writes, and none that it does not."""

import ast
import dataclasses
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from potstill.compress.prune import _result
from potstill.compress.pruning import Point
from potstill.corpus.manifest import LanguageRecord, Manifest, SourceRecord, SplitRecord, TokenizerRecord
from potstill.evaluation.results import Plan
from potstill.export import export as exporting
from potstill.export.check import Agreement
from potstill.finetuning.result import RunResult
from potstill.finetuning.staged import _figures
from potstill.sentences import distill as of_sentences
from potstill.student.sizing import Estimate
from potstill.training import output
from potstill.training.averaging import WeightAverage
from potstill.training.emissions import measured_emissions
from potstill.training.layer_scores import LayerScore
from potstill.training.layer_search import LayerSearch
from potstill.training.loss_watch import LossWatch, Spike
from potstill.training.resumable import ResumableTrainer
from potstill.training.run_record import RunRecord
from potstill.training.teachers import Time

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
RESULTS = (REFERENCE / "results.md").read_text(encoding="utf-8")
FORMATS = (REFERENCE / "formats.md").read_text(encoding="utf-8")


def section(page: str, title: str) -> str:
    return page.split(f"# {title}\n")[1].split("\n## ")[0].split("\n### ")[0]


def rows(text: str) -> set[str]:
    """Return the fields that the tables of a text have rows for."""
    cells = re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def named(page: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", page))


def written_by(function: Callable[..., Any]) -> set[str]:
    """Return the names of fields in the source of a function that builds a result."""
    tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(function)))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            found |= {key.value for key in node.keys if isinstance(key, ast.Constant)}
        elif (
            isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store) and isinstance(node.slice, ast.Constant)
        ):
            found.add(node.slice.value)
    return {name for name in found if isinstance(name, str)}


def test_each_field_of_a_run_has_its_row() -> None:
    fields = {field.name for field in dataclasses.fields(RunResult)} | {"format_version"}
    assert rows(section(RESULTS, "A run of a task")) == fields


def test_each_field_of_a_training_has_its_row() -> None:
    written = written_by(output.run_results) | written_by(output.write_output) | written_by(of_sentences._write_output)
    written |= written_by(LossWatch.record) | written_by(output._narrowed) | written_by(output._quantized)
    of_parts = {"initial", "final", "steps", "tokens", "seconds", "processes", "hardware", "teacher", "student"}
    of_parts |= {"quantization", "held_out_in_float"}
    written |= {"quantized"}
    assert rows(section(RESULTS, "A training: `distill`, `pretrain`")) == written - of_parts
    assert of_parts <= named(RESULTS)


@pytest.mark.parametrize(
    "kind", [Spike, LayerSearch, LayerScore, Estimate, Time, Point], ids=lambda kind: kind.__name__
)
def test_parts_of_results_are_named(kind: Any) -> None:
    fields = set(kind._fields if hasattr(kind, "_fields") else [field.name for field in dataclasses.fields(kind)])
    fields -= {"sizes", "num_hidden_layers"} if kind is Estimate else set()  # the shape
    assert fields - named(RESULTS) == set()


@pytest.mark.parametrize(
    "function",
    [
        *(output.teachers_of, output.compared_size, WeightAverage.record, measured_emissions, _figures),
        ResumableTrainer._how_far,
    ],
    ids=lambda function: function.__qualname__,
)
def test_what_functions_write_is_named(function: Callable[..., Any]) -> None:
    assert written_by(function)
    assert written_by(function) - named(RESULTS) == set()


def test_the_record_of_pruning_has_its_rows() -> None:
    found = written_by(_result)
    measured = {"score", "metrics", "seconds", "preparing", "pruning", "steps", "hyperparameters", "max_length"}
    assert rows(section(RESULTS, "What `prune` adds")) == found - measured


def test_the_manifest_has_its_rows() -> None:
    fields = {field.name for field in dataclasses.fields(Manifest)} | {"fingerprint"}
    assert fields <= rows(section(FORMATS, "The corpus: `prepare`"))
    parts = {field.name for kind in (SourceRecord, SplitRecord, LanguageRecord, TokenizerRecord)
             for field in dataclasses.fields(kind)}  # fmt: skip
    assert parts - {"class_name"} <= named(FORMATS)


def test_plan_checkpoint_and_export_have_their_rows() -> None:
    assert {field.name for field in dataclasses.fields(Plan)} | {"format_version"} == rows(
        section(FORMATS, "An evaluation: `evaluate`")
    )
    assert {field.name for field in dataclasses.fields(RunRecord)} <= named(section(FORMATS, "A checkpoint"))
    assert {field.name for field in dataclasses.fields(Agreement)} <= named(section(FORMATS, "An export: `export`"))
    assert rows(section(FORMATS, "An export: `export`")) == written_by(exporting._summary)
