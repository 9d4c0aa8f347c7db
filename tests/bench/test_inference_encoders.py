"""Sentence encoders in the bench: whole, with pooling and Dense modules, in PyTorch and in the runtimes of exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoder_samples import LENGTH

from potstill.bench.inference.bench import _counted
from potstill.bench.inference.models import ENCODING, forms_of, read_models
from potstill.bench.inference.runners import open_runner
from potstill.sentences import MODES


def test_encoders_run_whole_in_every_form(pooled_encoder: Path, exported_encoder: Path) -> None:
    models = read_models([("teacher", str(pooled_encoder)), ("onnx", str(exported_encoder))], None)
    assert [model.task for model in models] == [ENCODING, ENCODING]
    assert models[1].bytes_on_disk() == (exported_encoder / "onnx" / "model.onnx").stat().st_size
    found: list[Any] = []
    for model in models:
        (form,) = forms_of(model, compiled=False)
        runner: Any = open_runner(form, 1)
        assert runner.longest == LENGTH
        rows = [runner.encode((text, None), None) for text in ("bola kir", "dom lun mes bola")]
        batch = runner.prepare(rows)
        runner.run(batch)  # as it is timed
        with torch.inference_mode():
            found.append(runner._model(**batch).numpy() if model.exported is None else runner._runtime.run(batch))
    np.testing.assert_allclose(found[1]["sentence_embedding"], found[0], atol=1e-4)


def test_the_operations_of_an_export_are_counted(pooled_encoder: Path, exported_encoder: Path) -> None:
    teacher, onnx = read_models([("teacher", str(pooled_encoder)), ("onnx", str(exported_encoder))], None)
    pooler, dense = 2 * 32 * 32, 2 * len(MODES) * 32 * 16
    counted = _counted(onnx, [5, 9])
    # transformers' own pooler runs in PyTorch, and the export leaves it out.
    for length, flops in _counted(teacher, [5, 9]).flops.items():
        assert counted.flops[length] == flops - pooler + dense
