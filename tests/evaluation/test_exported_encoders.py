"""Exported encoders and rerankers beside their sources: each is scored in its own runtime."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from samples import WORDS
from test_encoders import command, files, save, sentence  # noqa: F401 (fixtures)
from transformers import BertForSequenceClassification

from potstill.cli import main
from potstill.evaluation.scorers import Scorer
from potstill.export.export import export

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)

pytestmark = pytest.mark.usefixtures("signals_restored", "no_hub")


def results(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        f"{path.parts[-3]} {path.parts[-2]}": json.loads(path.read_text()) for path in folder.glob("*/*/seed-0.json")
    }


def test_an_exported_encoder_beside_its_source(
    files: Path,  # noqa: F811
    pooled_encoder: Path,
    exported_encoder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    models = {"teacher": pooled_encoder, "onnx": exported_encoder}
    argv = command(models, tmp_path / "results", "sts", "retrieval", "rerank", task_data=files)
    assert main(argv) == 0
    found = results(tmp_path / "results")
    assert len(found) == 8
    for name in ("STS13", "STS14", "wiki", "answers"):
        one, other = found[f"teacher {name}"], found[f"onnx {name}"]
        # Two texts that are as near to another, but for rounding, may change places.
        assert other["score"] == pytest.approx(one["score"], abs=1.5)
        assert other["hyperparameters"] == one["hyperparameters"] | {"runtime": "ONNX Runtime"}
        assert other["model_fingerprint"] != one["model_fingerprint"]
        assert "onnxruntime" in other["versions"]
    assert "onnx" in capsys.readouterr().out
    with (exported_encoder / "config.json").open("a") as config:
        config.write("\n")
    assert main(argv) == 1
    assert "the weights of onnx were different" in capsys.readouterr().err


def test_an_exported_reranker_scores_as_its_source(save: Callable[..., Path], tmp_path: Path) -> None:  # noqa: F811
    reranker = save(BertForSequenceClassification, num_labels=1)
    export(str(reranker), "onnx", str(tmp_path / "out"))
    source, exported = (Scorer(str(folder), None, 4) for folder in (reranker, tmp_path / "out"))
    assert not exported.embeds
    assert exported.settings == source.settings | {"runtime": "ONNX Runtime"}
    rng = random.Random(0)
    queries, passages = ([sentence(rng) for _ in range(9)] for _ in range(2))
    passages[0] = " ".join(WORDS)  # has to be cut
    assert exported.scores(queries, passages) == pytest.approx(source.scores(queries, passages), abs=1e-4)


def test_an_export_that_is_neither_is_refused(
    files: Path,  # noqa: F811
    exported_encoder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = tmp_path / "other"
    (other / "onnx").mkdir(parents=True)
    for name in ("config.json", "onnx/model.onnx"):
        (other / name).write_bytes((exported_encoder / name).read_bytes())
    summary = json.loads((exported_encoder / "potstill_export.json").read_text())
    (other / "potstill_export.json").write_text(json.dumps(summary | {"task": "token-classification"}))
    assert main(command({"x": other}, tmp_path / "results", "sts", task_data=files)) == 1
    told = capsys.readouterr().err
    assert "is for token-classification, so it is neither a sentence encoder nor a reranker" in told
    assert not (tmp_path / "results").exists()
