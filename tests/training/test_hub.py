"""`--push_to_hub`: the requests that reach the hub, and what happens when it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hubs import PUSH, Hub, check_uploaded

from potstill.cli import main

pytestmark = pytest.mark.usefixtures("signals_restored")


@pytest.fixture
def distil(corpus_folder: Path, teacher_folder: Path, tmp_path: Path) -> Callable[[], int]:
    def run() -> int:
        options = ["--max_steps", "2", "--per_device_train_batch_size", "2", "--max_eval_samples", "2", "--use_cpu"]
        where = ["--teacher", str(teacher_folder), "--corpus", str(corpus_folder), "--output_dir", str(tmp_path / "s")]
        return main(["distill", *where, *options, *PUSH])

    return run


def test_the_finished_folder_is_uploaded(hub: Hub, distil: Callable[[], int], tmp_path: Path) -> None:
    assert distil() == 0
    check_uploaded(hub, tmp_path / "s")


@pytest.mark.parametrize(
    ("refused", "message", "complete"),
    [
        ("/api/", "The hub did not make the repository me/student", False),
        ("/commit/", "but the hub did not take it as me/student", True),
    ],
)
def test_a_hub_that_refuses(
    hub: Hub,
    distil: Callable[[], int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    refused: str,
    message: str,
    complete: bool,
) -> None:
    hub.refuses = (refused,)
    assert distil() == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error
    assert "hf auth login" in error or "hf upload me/student" in error
    assert (tmp_path / "s" / "model.safetensors").is_file() == complete


def test_only_a_finished_model_is_uploaded(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    where = ["--teacher", "t", "--corpus", "c", "--output_dir", str(tmp_path)]
    assert main(["distill", *where, "--hub_strategy", "every_save"]) == 1
    assert "--hub_strategy is 'every_save': it would upload models that are not finished" in capsys.readouterr().err
