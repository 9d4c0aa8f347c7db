"""A trainer of something else than distillation: its runs survive too, though it saves nothing of its own accord."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import assert_same_tensors, checkpoints
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer, PreTrainedModel, TrainerCallback

from potstill import PotstillError
from potstill.arguments import RunArguments
from potstill.training.control import TrainingInterrupted
from potstill.training.resumable import ResumableTrainer

ROWS, STEPS_PER_EPOCH, EPOCHS = 11, 3, 2  # of 2 + 2, 2 + 2 and 2 + 1 rows


class Labelled(Dataset[dict[str, Tensor]]):
    """Rows of random tokens with a label."""

    def __len__(self) -> int:
        return ROWS

    def __getitems__(self, numbers: list[int]) -> dict[str, Tensor]:
        tokens = torch.randint(0, 50, (ROWS, 6), generator=torch.Generator().manual_seed(0))
        return {"input_ids": tokens[numbers], "labels": torch.tensor(numbers) % 2}


class Shuffled(Sampler[int]):
    """The rows in an order that the epoch alone determines."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Any:
        return iter(torch.randperm(ROWS, generator=torch.Generator().manual_seed(self.epoch)).tolist())

    def __len__(self) -> int:
        return ROWS


class Step(nn.Module):
    """What a classifier with dropout makes of its labels."""

    def __init__(self, named: bool) -> None:
        super().__init__()
        self.named = named
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.classifier = BertForSequenceClassification(BertConfig(vocab_size=50, **sizes))

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        loss = self.classifier(input_ids=input_ids, labels=labels).loss
        return {"loss": 2 * loss, "labels": loss} if self.named else {"loss": loss}


class Classification(ResumableTrainer):
    """Trains the step above; its evaluation measures nothing."""

    @property
    def trained(self) -> PreTrainedModel:
        return self.model.classifier

    @property
    def steps_per_epoch(self) -> int:
        return STEPS_PER_EPOCH

    @property
    def units_per_step(self) -> int:
        return 4

    def evaluate(self, *args: Any, **options: Any) -> dict[str, float]:
        self.log({"eval_score": 42.0})
        return {"eval_score": 42.0}


class Signal(TrainerCallback):
    """Signals the process as a step begins."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def new_trainer(tmp_path: Path, tiny_tokenizer: BertTokenizer) -> Callable[..., Classification]:
    def new(folder: str = "run", callback: TrainerCallback | None = None, named: bool = True, **options: Any) -> Any:
        defaults = {"save_strategy": "no", "num_train_epochs": EPOCHS, "logging_steps": 1, "learning_rate": 0.01}
        sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "use_cpu": True}
        return Classification(
            Step(named),
            RunArguments(output_dir=str(tmp_path / folder), **(defaults | sizes | options)),
            Shuffled(),
            "eleven rows",
            lambda logs: f"score {logs['eval_score']:.0f}" if "eval_score" in logs else "",
            callbacks=[callback] if callback else None,
            train_dataset=Labelled(),
            data_collator=lambda batch: batch,
            processing_class=tiny_tokenizer,
        )

    return new


@pytest.mark.parametrize("save_strategy", ["no", "epoch"])
@pytest.mark.parametrize("step", range(1, EPOCHS * STEPS_PER_EPOCH))
def test_resumed_run_is_bit_identical(
    new_trainer: Callable[..., Classification], tmp_path: Path, save_strategy: str, step: int
) -> None:
    uninterrupted = new_trainer("uninterrupted")
    uninterrupted.train()
    assert uninterrupted.state.global_step == EPOCHS * STEPS_PER_EPOCH
    assert checkpoints(tmp_path / "uninterrupted") == []

    with pytest.raises(TrainingInterrupted) as interruption:
        new_trainer(callback=Signal(step), save_strategy=save_strategy).train()
    assert interruption.value.checkpoint == tmp_path / "run" / f"checkpoint-{step}"
    resumed = new_trainer(save_strategy=save_strategy)
    resumed.train(resume_from_checkpoint=True)
    assert_same_tensors(resumed.trained.state_dict(), uninterrupted.trained.state_dict())
    losses = {entry["step"]: entry["loss"] for entry in resumed.state.log_history if "loss" in entry}
    assert losses == {entry["step"]: entry["loss"] for entry in uninterrupted.state.log_history if "loss" in entry}


def test_what_is_logged_and_printed(
    new_trainer: Callable[..., Classification], capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = new_trainer()
    capsys.readouterr()
    trainer.train()
    trainer.evaluate()
    for entry in (entry for entry in trainer.state.log_history if "loss" in entry):
        assert entry["loss"] == pytest.approx(2 * entry["loss_labels"], rel=1e-5)
        assert entry["rows_per_second"] > 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "eleven rows"
    assert all(" rows/s · " in line for line in lines[1:-1])
    assert lines[-1] == "step 6 · score 42"


def test_a_loss_without_terms(new_trainer: Callable[..., Classification], capsys: pytest.CaptureFixture[str]) -> None:
    new_trainer(named=False, max_steps=1).train()
    assert "()" not in capsys.readouterr().err


def test_a_loss_that_is_no_number(
    new_trainer: Callable[..., Classification], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls = Step.forward, 0

    def spoilt(self: Step, **batch: Tensor) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        return {name: loss * (float("nan") if calls == 9 else 1) for name, loss in forward(self, **batch).items()}

    monkeypatch.setattr(Step, "forward", spoilt)
    with pytest.raises(PotstillError, match=r"The loss at step 5 is not .*checkpoint-3, with a lower --learning_rate"):
        new_trainer(save_strategy="epoch", logging_steps=50).train()
    assert checkpoints(tmp_path / "run") == ["checkpoint-3"]
