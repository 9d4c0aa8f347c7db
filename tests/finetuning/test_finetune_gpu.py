"""On a GPU: steps that are recorded learn what steps that are not recorded learn."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetuning_samples import finetuned

pytestmark = pytest.mark.gpu

LOSSES = ("loss", "loss_ce", "loss_task", "loss_cos")


@pytest.mark.parametrize("case", ["sentences", "taught", "scores", "spans", "taught spans"])
@pytest.mark.parametrize("bf16", [False, True])
def test_recorded_losses(
    new_model: Callable[..., Path], glue: Path, squad: Path, tmp_path: Path, case: str, bf16: bool
) -> None:
    bert = new_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    task = {"scores": "stsb", "spans": "squad", "taught spans": "squad"}.get(case, "sst2")
    options: dict[str, Any] = {"model": bert, "task": task, "task_data": squad if task == "squad" else glue}
    options |= {"use_cpu": False, "bf16": bf16, "num_train_epochs": 6, "per_device_train_batch_size": 4}
    if case.startswith("taught"):
        finetuned(**options, output_dir=tmp_path / "teacher")
        options |= {"teacher": tmp_path / "teacher", "alpha_cos": 0.5}

    def losses(cuda_graphs: bool) -> list[list[float]]:
        folder = tmp_path / f"graphs-{cuda_graphs}"
        found = finetuned(**options, output_dir=folder, cuda_graphs=cuda_graphs, without_teacher_too=False)
        return [[entry[name] for name in LOSSES if name in entry] for entry in found["log_history"] if "loss" in entry]

    recorded, as_it_is = losses(True), losses(False)
    assert len(recorded) == len(as_it_is) > 15
    for mine, other in zip(recorded, as_it_is, strict=True):
        assert mine == pytest.approx(other, rel=3e-2 if bf16 else 1e-3, abs=1e-2 if bf16 else 1e-4)


@pytest.mark.parametrize("freeze_encoder", [False, True])
def test_the_same_seed_gives_the_same_score(bert: Path, glue: Path, tmp_path: Path, freeze_encoder: bool) -> None:
    options: dict[str, Any] = {"model": bert, "task": "stsb", "task_data": glue, "use_cpu": False}
    runs = [
        finetuned(**options, output_dir=tmp_path / name, freeze_encoder=freeze_encoder)["score"] for name in ("a", "b")
    ]
    assert runs[0] == pytest.approx(runs[1], abs=0.5)
