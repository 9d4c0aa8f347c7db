"""Quality against time: whose clock runs when."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from potstill import DistillationTrainer
from reproduce import time_to_quality
from reproduce.common import run

MINUTES = 0.04


@pytest.mark.slow
def test_scoring_takes_no_training_time(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signals_restored: None
) -> None:
    """Each run trains for its minutes, however long held-out text took."""
    evaluate = DistillationTrainer.evaluate

    def slow(self: DistillationTrainer, *args: Any, **kwargs: Any) -> dict[str, float]:
        time.sleep(0.3)  # longer than the training between
        return evaluate(self, *args, **kwargs)

    def here(name: str, options: Sequence[str], gpus: list[str], prefix: str) -> None:
        assert run(time_to_quality.main, list(options)) == 0

    monkeypatch.setattr(DistillationTrainer, "evaluate", slow)
    monkeypatch.setattr(time_to_quality, "run_script", here)
    monkeypatch.setattr(time_to_quality, "POINTS", 12)
    places = ["--work_dir", str(tmp_path / "work"), "--results_dir", str(tmp_path / "results"), "--gpus", "0"]
    recipe = ["--teacher", str(teacher_folder), "--corpus", str(corpus_folder), "--layers", "0,3"]
    lengths = ["--batch_tokens", "128", "--short_block_size", "8", "--short_share", "0.5"]
    assert run(time_to_quality.main, [*places, *recipe, *lengths, "--minutes", str(MINUTES), "--short", "0.75"]) == 0
    found = json.loads((tmp_path / "results" / "time_to_quality.json").read_text())
    for name, minutes in (("plain", MINUTES), ("potstill", MINUTES), ("potstill-short", 0.75 * MINUTES)):
        points = found["curves"][name]["points"]
        assert len(points) > time_to_quality.POINTS / 2
        assert 0.55 * minutes < points[-1]["minutes"] < 1.5 * minutes, name  # loading the first batch counts too
    assert (tmp_path / "results" / "time-to-quality.svg").stat().st_size > 1000
