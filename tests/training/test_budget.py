"""A budget of minutes: the run ends within it, with the learning rate decayed to its end by then."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from runs import checkpoints, distillation, new_trainer, pretraining, send_signal_in_step, tensors
from transformers import TrainerState

from potstill import DistillationTrainer, PotstillError, pretrain
from potstill.training import clock as clock_module
from potstill.training import resumable
from potstill.training.control import RunControl, TrainingInterrupted
from potstill.training.schedule import schedule_by_progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that shows what it is set to."""
    clock = SimpleNamespace(now=1000.0)
    for module in (clock_module, resumable):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def second_a_step(clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine on which every micro-batch takes one second."""
    compute_loss = DistillationTrainer.compute_loss

    def slow(self: DistillationTrainer, *args: Any, **options: Any) -> Any:
        clock.now += 1
        return compute_loss(self, *args, **options)

    monkeypatch.setattr(DistillationTrainer, "compute_loss", slow)
    return clock


def linear(progress: float, warmup: float) -> float:
    return progress / warmup if progress < warmup else (1 - progress) / (1 - warmup)


def cosine(progress: float, warmup: float) -> float:
    return progress / warmup if progress < warmup else (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2


@pytest.mark.parametrize(("name", "factor"), [("linear", linear), ("cosine", cosine)])
@pytest.mark.parametrize("warmup", [0.05, 0.3])
def test_schedule_by_progress(
    tmp_path: Path, name: str, factor: Callable[[float, float], float], warmup: float
) -> None:
    args = distillation(tmp_path, tmp_path, tmp_path, lr_scheduler_type=name, warmup_steps=warmup)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.02)
    progress = 0.0
    schedule = schedule_by_progress(optimizer, args, lambda: progress)
    assert 0 < optimizer.param_groups[0]["lr"] <= 0.02 * factor(1e-4, warmup) * 1.001  # not wasted, hardly anything
    for progress in (0.01, warmup / 2, warmup, 0.31, 0.5, 0.77, 0.999, 1.0, 0.4):
        optimizer.step()
        schedule.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.02 * factor(progress, warmup), abs=1e-6)


def test_a_schedule_without_a_fixed_course_is_refused(tmp_path: Path) -> None:
    args = distillation(tmp_path, tmp_path, tmp_path, lr_scheduler_type="reduce_lr_on_plateau", eval_strategy="steps")
    with pytest.raises(PotstillError, match="use linear or cosine"):
        schedule_by_progress(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.02), args, lambda: 0.0)


def budgeted(teacher: Path, corpus: Path, folder: Path, **options: Any) -> Any:
    """Thirty seconds, of which six warm up."""
    sizes = {"max_train_minutes": 0.5, "warmup_steps": 0.2, "num_train_epochs": 1000, "gradient_accumulation_steps": 1}
    return distillation(teacher, corpus, folder, **(sizes | options))


def test_training_ends_with_the_budget(
    second_a_step: SimpleNamespace, teacher_folder: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    trainer = new_trainer(budgeted(teacher_folder, corpus_folder, tmp_path / "student"))
    trainer.train()
    assert trainer.state.global_step == 30
    assert trainer.run_control.clock.elapsed == 30
    assert trainer.lr_scheduler.get_last_lr() == [0.0, 0.0]
    rates = {entry["step"]: entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry}
    for step in range(3, 31):  # the first second is no progress, for a first step may have compiled
        assert rates[step] == pytest.approx(3e-3 * linear((step - 2) / 29, 0.2), abs=1e-6), step
    logged = {entry["step"]: entry for entry in trainer.state.log_history if "loss" in entry}
    assert logged[12]["progress"] == pytest.approx(11 / 29)
    assert logged[12]["seconds_left"] == pytest.approx(18)


def test_steps_may_end_before_the_budget(
    second_a_step: SimpleNamespace, teacher_folder: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    trainer = new_trainer(budgeted(teacher_folder, corpus_folder, tmp_path / "student", max_steps=10))
    trainer.train()
    assert trainer.state.global_step == 10
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    assert max(rates) == pytest.approx(3e-3)
    assert rates == sorted(rates[:4]) + sorted(rates[4:], reverse=True)
    assert rates[-1] < 3e-3 / 3


def test_time_before_an_interruption_counts(
    second_a_step: SimpleNamespace,
    teacher_folder: Path,
    corpus_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "student"
    with monkeypatch.context() as patch:
        send_signal_in_step(patch, 12)
        with pytest.raises(TrainingInterrupted):
            new_trainer(budgeted(teacher_folder, corpus_folder, folder)).train()
    state = json.loads((folder / "checkpoint-12" / "potstill_state.json").read_text())
    assert (state["elapsed_seconds"], state["excluded_seconds"]) == (12.0, 1.0)
    assert state["progress"] == pytest.approx(11 / 29)

    second_a_step.now = 5.0  # another day, another machine
    trainer = new_trainer(budgeted(teacher_folder, corpus_folder, folder))
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 30
    assert trainer.run_control.clock.elapsed == 30
    rates = {entry["step"]: entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry}
    for step in range(3, 14):
        assert rates[step] == pytest.approx(3e-3 * linear((step - 2) / 29, 0.2), abs=1e-6), step
    for step in range(14, 31):  # nor is the first second of the second session
        assert rates[step] == pytest.approx(3e-3 * linear((step - 3) / 28, 0.2), abs=1e-6), step


def test_resuming_when_the_budget_is_spent(
    second_a_step: SimpleNamespace, teacher_folder: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    options = {"save_steps": 10, "lr_scheduler_type": "constant"}
    trainer = new_trainer(budgeted(teacher_folder, corpus_folder, tmp_path / "student", **options))
    trainer.train()
    again = new_trainer(budgeted(teacher_folder, corpus_folder, tmp_path / "student", **options))
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == trainer.state.global_step == 30
    assert again.run_control.clock.elapsed == 30
    learned = trainer.student.state_dict()
    assert all(torch.equal(tensor, learned[name]) for name, tensor in again.student.state_dict().items())


def test_growing_at_shares_of_the_time(second_a_step: SimpleNamespace, corpus_folder: Path, tmp_path: Path) -> None:
    args = pretraining(
        corpus_folder,
        tmp_path / "model",
        grow="1,2,4",
        grow_at="0.2,0.4",
        max_steps=-1,
        num_train_epochs=1000,
        max_train_minutes=0.5,
        save_total_limit=None,
    )
    folder = pretrain(args)
    # Two growths and the end. The first second at each depth is no progress: (7 - 1) / 29 and (14 - 2) / 28 of it.
    assert checkpoints(folder) == ["checkpoint-14", "checkpoint-30", "checkpoint-7"]
    assert json.loads((folder / "results.json").read_text())["cost"]["steps"] == 30
    assert "bert.encoder.layer.3.output.dense.weight" in tensors(folder)


def test_warm_up_in_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PotstillError, match=r"--warmup_steps is 100: .* share below 1 with --max_train_minutes"):
        distillation(tmp_path, tmp_path, tmp_path, max_train_minutes=1.0, warmup_steps=100)


def test_progress_is_the_larger_of_steps_and_time(clock: SimpleNamespace) -> None:
    run, state = RunControl(max_minutes=1.0), TrainerState(global_step=3, max_steps=10)
    run.start()
    assert run.progress(state) == 0.3
    step(run, clock, 45)
    assert run.progress(state) == 0.75
    step(run, clock, 45)
    assert run.progress(state) == 1.0


def step(
    run: RunControl,
    clock: SimpleNamespace,
    seconds: float,
    compiles: bool = False,
    beside: float = 0.0,
    number: int = 1,
    processes: int = 1,
) -> None:
    """A step of so many seconds, `beside` of them before it, not its own."""
    clock.now += seconds
    run.clock.exclude(beside)
    if compiles:
        run.clock.exclude_step()
    args = SimpleNamespace(world_size=processes, device="cpu")
    run.on_pre_optimizer_step(args, TrainerState(global_step=number - 1), None)


def test_what_is_compiled_or_scored_between_steps_is_no_progress(clock: SimpleNamespace) -> None:
    run, state = RunControl(max_minutes=1.0), TrainerState(max_steps=1_000_000)
    run.start()
    step(run, clock, 20, compiles=True)
    assert run.progress(state) == 0
    step(run, clock, 8, compiles=True)  # another length
    assert run.progress(state) == 0
    step(run, clock, 2)
    assert run.progress(state) == pytest.approx(2 / 32)
    step(run, clock, 11, beside=10)
    assert run.progress(state) == pytest.approx(3 / 22)
    step(run, clock, 19)
    assert run.progress(state) == 1  # the budget is spent, whatever was done in it


def test_a_budget_shorter_than_the_first_step_ends_after_it(clock: SimpleNamespace) -> None:
    run, state = RunControl(max_minutes=1.0), TrainerState(max_steps=1_000_000)
    run.start()
    step(run, clock, 70, compiles=True)
    assert run.progress(state) == 1


def test_several_processes_go_on_at_the_pace_of_what_they_learn(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, op: None)
    run, state = RunControl(max_minutes=1.0), TrainerState(max_steps=1_000_000)
    run.start()
    seen = []
    for number in range(1, 41):
        seconds, beside = {1: (20, 0), 2: (8, 0), 25: (9.1, 9)}.get(number, (0.1, 0))
        step(run, clock, seconds, number <= 2, beside, number, processes=2)
        seen.append(run.progress(state))
    assert seen[:2] == [0, 0]
    assert seen[2:29] == pytest.approx([0.1 * n / 32 for n in range(1, 28)])
    assert seen[29:] == pytest.approx([0.1 * n / 23 for n in range(28, 39)])  # nine seconds less for all of it
    assert seen == sorted(seen)


def test_lengths_are_compiled_and_text_is_scored_in_time_that_is_no_progress(
    second_a_step: SimpleNamespace, teacher_folder: Path, corpus_folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    def run(folder: Path, **more: Any) -> tuple[DistillationTrainer, dict[int, float]]:
        options = {"eval_strategy": "steps", "eval_steps": 10, "save_steps": 10, "short_block_size": 8}
        trainer = new_trainer(budgeted(teacher_folder, corpus_folder, folder, **options, short_share=0.8))
        held_out = trainer._held_out

        def slow(*args: Any) -> Any:
            second_a_step.now += 2
            return held_out(*args)

        monkeypatch.setattr(trainer, "_held_out", slow)
        trainer.train(**more)
        return trainer, {entry["step"]: entry["progress"] for entry in trainer.state.log_history if "progress" in entry}

    # Step 1 is long and 2 short; the text is scored at both lengths after steps 10 and 20, four seconds each time.
    trainer, seen = run(tmp_path / "whole")
    assert trainer.run_control.clock.elapsed == pytest.approx(30, abs=4)
    assert [seen[number] for number in (1, 2)] == pytest.approx([0, 0], abs=1e-4)  # the share of steps alone
    assert [seen[number] for number in (3, 10)] == pytest.approx([1 / 28, 8 / 28])
    assert [seen[number] for number in (11, 20)] == pytest.approx([9 / 24, 18 / 24])

    with monkeypatch.context() as patch:
        send_signal_in_step(patch, 10)
        with pytest.raises(TrainingInterrupted):
            run(tmp_path / "broken")
    # Twice two seconds of scoring are in the checkpoint; the first steps of the new session are no progress either.
    _, resumed = run(tmp_path / "broken", resume_from_checkpoint=True)
    assert [resumed[number] for number in (11, 12)] == pytest.approx([8 / 23, 8 / 22])
    assert [resumed[number] for number in (13, 20)] == pytest.approx([9 / 22, 16 / 22])


def test_time_left_is_what_ends_first(clock: SimpleNamespace) -> None:
    run_control, state = RunControl(max_minutes=1), TrainerState(global_step=1, max_steps=1_000_000)
    run_control.start()
    clock.now += 10
    # Processes agree on the time only every few steps: until then progress is that of steps, the budget's end is known.
    assert run_control.seconds_left(state) == 50
    state.global_step = 500_000
    assert run_control.seconds_left(state) == 10
    clock.now += 60
    assert run_control.seconds_left(state) == 0
    assert RunControl().seconds_left(TrainerState(global_step=1, max_steps=2)) == 0
