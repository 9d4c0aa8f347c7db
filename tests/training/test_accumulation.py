"""How a step's blocks are cut into micro-batches does not change what is learned."""

from pathlib import Path

import pytest
from runs import LOSSES, WHOLE_BATCHES, Learned, assert_alike, distillation, learned

from potstill import distill


def test_what_a_step_logs(whole_batches: Learned) -> None:
    losses, _ = whole_batches
    assert len(losses) == 10
    assert all(step[name] > 0 for step in losses for name in LOSSES)
    for step in losses:  # DistilBERT's weights
        assert step["loss"] == pytest.approx(5 * step["loss_ce"] + 2 * step["loss_mlm"] + step["loss_cos"], rel=1e-5)


@pytest.mark.parametrize(("micro_batch", "accumulated"), [(4, 2), (2, 4), (1, 8)])
def test_micro_batches(
    whole_batches: Learned,
    teacher_without_dropout: Path,
    corpus_folder: Path,
    tmp_path: Path,
    micro_batch: int,
    accumulated: int,
) -> None:
    sizes = {"per_device_train_batch_size": micro_batch, "gradient_accumulation_steps": accumulated}
    args = distillation(teacher_without_dropout, corpus_folder, tmp_path / "student", **(WHOLE_BATCHES | sizes))
    assert_alike(learned(distill(args)), whole_batches)
