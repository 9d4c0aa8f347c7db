"""A vocabulary padded beyond the tokenizer: its padding takes no part in losses and metrics, and can be trimmed."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from potstill import DistillationArguments, DistillationTrainer, build_student, distill
from potstill.student import load_masked_lm

PADDING = 7


@pytest.fixture
def padded_folder(teacher_folder: Path, tmp_path: Path) -> Path:
    """The teacher with rows that no token has, and that its bias prefers to all tokens."""
    model = load_masked_lm(teacher_folder)
    tokens = model.config.vocab_size
    model.resize_token_embeddings(tokens + PADDING, mean_resizing=False)
    with torch.no_grad():
        model.get_output_embeddings().bias[tokens:] = 30.0
    model.save_pretrained(tmp_path / "padded")
    AutoTokenizer.from_pretrained(teacher_folder).save_pretrained(tmp_path / "padded")
    return tmp_path / "padded"


def arguments(corpus: Path, folder: Path, **options: object) -> DistillationArguments:
    values = {"max_steps": 2, "per_device_train_batch_size": 4, "report_to": "none", "layers": "alternate", **options}
    return DistillationArguments(corpus=str(corpus), output_dir=str(folder), use_cpu=True, **values)


def test_losses_and_metrics_are_those_of_the_whole_model(
    padded_folder: Path, teacher_folder: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    found = []
    for folder in (teacher_folder, padded_folder):
        teacher = load_masked_lm(folder, dtype=torch.float64)
        student = build_student(teacher)
        trainer = DistillationTrainer(student, str(corpus_folder), arguments(corpus_folder, tmp_path), teacher)
        losses = trainer.compute_losses(trainer.step.eval(), trainer.corpus.train.__getitems__([0, 2, 3]))
        losses["loss"].backward()
        gradient = student.get_input_embeddings().weight.grad
        found.append((losses, gradient, trainer.evaluate()))
    (losses, gradient, metrics), (padded_losses, padded_gradient, padded_metrics) = found
    for name, loss in losses.items():
        torch.testing.assert_close(padded_losses[name], loss)
    torch.testing.assert_close(padded_gradient[: len(gradient)], gradient)
    assert (padded_gradient[len(gradient) :] == 0).all()
    assert padded_metrics == pytest.approx(metrics, rel=1e-4)


@pytest.mark.parametrize(("trim", "left"), [(False, PADDING), (True, 0)])
def test_the_padding_is_kept_or_trimmed(
    trim: bool, left: int, padded_folder: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    args = arguments(corpus_folder, tmp_path / "student", teacher=str(padded_folder), trim_vocabulary=trim)
    student = AutoModelForMaskedLM.from_pretrained(distill(args))
    assert student.config.vocab_size == load_masked_lm(padded_folder).config.vocab_size - PADDING + left
