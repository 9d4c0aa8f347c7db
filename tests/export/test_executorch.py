"""ExecuTorch: one text of any length, matrix products by XNNPACK, the same answers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_samples import DISTIL
from transformers import DistilBertConfig, DistilBertForTokenClassification

from potstill.errors import PotstillError
from potstill.export.executorch import ExecutorchModel, write_executorch
from potstill.export.export import export
from potstill.export.runtime import ExportedFolder
from potstill.export.source import Source


def test_a_program_says_what_its_source_says(new_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    config = DistilBertConfig(vocab_size=len(tiny_tokenizer), max_position_embeddings=40, num_labels=3, **DISTIL)
    model = new_model(DistilBertForTokenClassification, config)
    exported = export(str(model), "executorch", str(tmp_path / "out"))
    assert exported.agreement is not None
    assert exported.agreement.same == 1
    assert b"XnnpackBackend" in exported.file.read_bytes()
    source, found = Source.open(str(model)), ExportedFolder.read(tmp_path / "out").open(threads=1)
    for rows, length in ((1, 2), (3, 17), (1, 32)):
        ids = np.random.default_rng(np.random.randint(2**31)).integers(len(tiny_tokenizer), size=(rows, length))
        mask = np.ones_like(ids)
        mask[0, length // 2 + 1 :] = 0
        inputs = {"input_ids": ids, "attention_mask": mask}
        inside = mask.astype(bool)
        expected, mine = source.run(inputs)["logits"][inside], found.run(inputs)["logits"][inside]
        np.testing.assert_allclose(mine, expected, atol=1e-4)
    long = {name: np.ones((1, 33), np.int64) for name in source.inputs}
    with pytest.raises(PotstillError, match="cannot run a batch of 1 with 33 tokens"):
        found.run(long)
    cut = tmp_path / "cut.pte"
    cut.write_bytes(exported.file.read_bytes()[:100])
    with pytest.raises(PotstillError, match="cannot be run by ExecuTorch"):
        ExecutorchModel(cut, source.inputs, source.head.outputs)


def test_versions_that_do_not_go_together(classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "executorch.backends.xnnpack.partition.xnnpack_partitioner", None)
    monkeypatch.setattr("potstill.export.executorch.version", lambda name: "1.0.0")
    with pytest.raises(
        PotstillError, match=r"executorch 1\.0\.0 cannot be used with .*executorch 1\.5 with torch 2\.13"
    ):
        write_executorch(Source.open(str(classifier)), tmp_path / "model.pte")
    assert list(tmp_path.iterdir()) == []
