"""The embedded teacher on real STS-B, eager and compiled, where POTSTILL_TEST_DATA names a folder with `glue`."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.bench.inference.models import Form
from potstill.bench.inference.requests import read_requests
from potstill.bench.inference.runners import TorchRunner
from potstill.cli import main
from potstill.demo.demo import demo

DATA = os.environ.get("POTSTILL_TEST_DATA")
TEACHER = Path(demo.__code__.co_filename).parent / "assets" / "teacher"
pytestmark = [
    pytest.mark.skipif(DATA is None, reason="POTSTILL_TEST_DATA names no folder of real data"),
    pytest.mark.usefixtures("signals_restored", "no_hub"),
]


def glue() -> str:
    return str(Path(DATA or "", "glue"))


def test_table_3_has_its_1500_pairs() -> None:
    requests = read_requests("stsb", glue(), None)
    assert len(requests) == 1500
    assert requests.texts is not None
    assert requests.texts[0] == ("A man with a hard hat is dancing.", "A man wearing a hard hat is dancing.")


@pytest.mark.timeout(900)
def test_compiled_and_eager(tmp_path: Path, small_machine: None) -> None:
    options = ["--data", "stsb", "--task_data", glue(), "--max_requests", "40", "--batch_size", "1", "4"]
    file = tmp_path / "bench.json"
    assert main(["bench", "inference", "--models", f"teacher={TEACHER}", *options, "--output", str(file)]) == 0
    eager, compiled = json.loads(file.read_text())["rows"]
    assert eager["flops_by_length"] == compiled["flops_by_length"]
    assert eager["lengths"] == compiled["lengths"]
    assert 10 < eager["lengths"]["median"] < 60
    for row in (eager, compiled):
        assert row["latency"]["p99"] > row["latency"]["median"] > 0
        assert row["throughput"][1]["per_second"] > 0


def test_one_graph_serves_all_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    compilations: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compilations.append(len(inputs))
        return graph.forward

    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **options: compile(model, backend=backend, **options))
    torch._dynamo.reset()
    runner = TorchRunner(Form("a", "PyTorch, compiled", "compiled", str(TEACHER), "text-classification", num_labels=1))
    requests = read_requests("stsb", glue(), 20)
    rows = [runner.encode(text, None) for text in requests.texts or ()]
    for row in rows:
        runner.run(runner.prepare([row]))
    assert len({row["input_ids"].shape[1] for row in rows}) > 5
    assert len(compilations) == 1
    for size in (2, 4, 8):
        runner.run(runner.prepare(rows[:size]))
    assert len(compilations) == 2
