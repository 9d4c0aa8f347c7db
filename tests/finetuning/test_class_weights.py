"""Balanced weights of classes, against scikit-learn, and in a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from potstill.finetuning.class_weights import balanced_weights, positive_weights
from potstill.finetuning.job import Job
from potstill.finetuning.trainer import FinetuneTrainer


def test_as_scikit_learn_balances(capsys: pytest.CaptureFixture[str]) -> None:
    labels = np.random.default_rng(np.random.randint(2**31)).choice(4, size=200, p=[0.7, 0.2, 0.1, 0.0])
    labels[:3] = [0, 1, 2]
    found = balanced_weights(labels, "abcd")
    np.testing.assert_allclose(found[:3], compute_class_weight("balanced", classes=np.arange(3), y=labels), rtol=1e-6)
    assert found[3] == 1  # no row has it
    assert found[torch.from_numpy(labels)].mean().item() == pytest.approx(1, abs=1e-5)
    assert "the weights go from" in capsys.readouterr().err


def test_several_labels_weigh_as_much_where_they_are_as_where_they_are_not() -> None:
    labels = (np.random.default_rng(np.random.randint(2**31)).random((50, 4)) < [0.1, 0.5, 0.9, 0.0]).astype(np.float32)
    labels[:2, :3] = [[1, 1, 1], [0, 0, 0]]
    found = positive_weights(labels, "abcd").numpy()
    np.testing.assert_allclose((found * labels.sum(0))[:3], (1 - labels).sum(0)[:3], rtol=1e-5)
    assert found[3] == 1


def test_in_a_run(bert: Path, glue: Path, new_job: Callable[..., Job]) -> None:
    options: dict[str, Any] = {"model": str(bert), "task": "sst2", "task_data": str(glue), "max_train_samples": 7}
    job, plain = new_job(**options, class_weights="balanced"), new_job(**options)
    labels = torch.from_numpy(job.train.values["labels"])
    counts = torch.bincount(labels)
    assert counts[0] != counts[1]
    losses = {}
    for name, one in (("weighted", job), ("plain", plain)):
        step = FinetuneTrainer(one.new_model(), one).model.eval()
        losses[name] = [step(**one.train.__getitems__([row]))["loss"].item() for row in range(7)]
    weights = (7 / (2 * counts))[labels]
    np.testing.assert_allclose(losses["weighted"], weights * torch.tensor(losses["plain"]), rtol=1e-5)
