"""One run that several ways of running it are compared with."""

from collections.abc import Callable
from pathlib import Path

import pytest
from runs import WHOLE_BATCHES, Learned, distillation, learned

from potstill import distill


@pytest.fixture(scope="session")
def teacher_without_dropout(make_teacher: Callable[..., Path]) -> Path:
    """Dropout's random numbers depend on the shape of a micro-batch, and so would what is learned."""
    return make_teacher(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


@pytest.fixture(scope="session")
def whole_batches(
    teacher_without_dropout: Path, corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Learned:
    """What one process learns from whole batches."""
    folder = tmp_path_factory.mktemp("whole") / "student"
    return learned(distill(distillation(teacher_without_dropout, corpus_folder, folder, **WHOLE_BATCHES)))
