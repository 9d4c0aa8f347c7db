"""Growing in mid-training: what is copied, and that an interruption anywhere near it changes nothing."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import assert_same_tensors, checkpoints, pretraining, send_signal_in_step, tensors
from torch import Tensor
from transformers import BertForMaskedLM

import potstill.training.pretrain as pretraining_room
from potstill import DistillationTrainer, PotstillError, pretrain
from potstill.cli import main
from potstill.training.checkpoints import load_run_state
from potstill.training.control import TrainingInterrupted

GROWTH = {"grow": "1,2,4", "grow_at": "0.25,0.5"}  # of 12 steps: after the third and after the sixth


@pytest.fixture(scope="module")
def uninterrupted(corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    folder = pretrain(pretraining(corpus_folder, tmp_path_factory.mktemp("grown") / "model", **GROWTH))
    grown = tensors(folder)
    assert "bert.encoder.layer.3.output.dense.weight" in grown
    return grown


@pytest.mark.parametrize("step", [2, 3, 7])
def test_interrupted_before_on_and_after_growing(
    uninterrupted: dict[str, Tensor],
    corpus_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    signals_restored: None,
    step: int,
) -> None:
    folder = tmp_path / "model"
    with monkeypatch.context() as patch:
        send_signal_in_step(patch, step)
        with pytest.raises(TrainingInterrupted) as interruption:
            pretrain(pretraining(corpus_folder, folder, **GROWTH))
    assert interruption.value.checkpoint == folder / f"checkpoint-{step}"
    recipe = ["--config", str(folder / "recipe.yaml"), "--output_dir", str(folder)]
    assert main(["pretrain", *recipe, "--resume_from_checkpoint", "true"]) == 0
    assert_same_tensors(tensors(folder), uninterrupted)


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_while_growing(
    uninterrupted: dict[str, Tensor], corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    class Killed(BaseException):
        pass

    grow_checkpoint = pretraining_room.grow_checkpoint

    def killed(*args: Any) -> None:
        if when == "after":
            grow_checkpoint(*args)
        raise Killed

    folder = tmp_path / "model"
    with monkeypatch.context() as patch:
        patch.setattr(pretraining_room, "grow_checkpoint", killed)
        with pytest.raises(Killed):
            pretrain(pretraining(corpus_folder, folder, **GROWTH))
    pretrain(pretraining(corpus_folder, folder, resume_from_checkpoint="true", **GROWTH))
    assert_same_tensors(tensors(folder), uninterrupted)


@pytest.mark.parametrize("resume_from", ["true", "checkpoint-3"])
def test_killed_between_the_renamings_of_a_growth(
    uninterrupted: dict[str, Tensor],
    corpus_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    resume_from: str,
) -> None:
    class Killed(BaseException):
        pass

    folder, left = tmp_path / "model", tmp_path / "left"
    grow_checkpoint, rename = pretraining_room.grow_checkpoint, Path.rename

    def killed(path: Path, target: Path) -> Path:
        renamed = rename(path, target)
        if not left.exists():
            shutil.copytree(folder, left)  # what a kill would leave; this process cleans up after itself
            raise Killed
        return renamed

    def growing(*args: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", killed)
            grow_checkpoint(*args)

    with monkeypatch.context() as patch:
        patch.setattr(pretraining_room, "grow_checkpoint", growing)
        with pytest.raises(Killed):
            pretrain(pretraining(corpus_folder, folder, **GROWTH))
    assert checkpoints(folder) == ["checkpoint-3"]
    assert len(checkpoints(left)) == 2
    assert "checkpoint-3" not in checkpoints(left)

    wanted = resume_from if resume_from == "true" else str(left / resume_from)
    pretrain(pretraining(corpus_folder, left, resume_from_checkpoint=wanted, **GROWTH))
    assert_same_tensors(tensors(left), uninterrupted)
    assert all(name.startswith("checkpoint") for name in checkpoints(left))


@pytest.fixture
def growths(corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, Path]]:
    """Copies of the checkpoint before and after each growth of a run."""
    copies: list[tuple[Path, Path]] = []
    grow_checkpoint = pretraining_room.grow_checkpoint

    def copying(checkpoint: Path, trainer: DistillationTrainer) -> None:
        before, after = (tmp_path / f"{checkpoint.name}-{when}" for when in ("before", "after"))
        shutil.copytree(checkpoint, before)
        grow_checkpoint(checkpoint, trainer)
        shutil.copytree(checkpoint, after)
        copies.append((before, after))

    monkeypatch.setattr(pretraining_room, "grow_checkpoint", copying)
    pretrain(pretraining(corpus_folder, tmp_path / "model", **GROWTH))
    assert [before.name for before, _ in copies] == ["checkpoint-3-before", "checkpoint-6-before"]
    return copies


def original(name: str, depth: int) -> str:
    """The tensor of a model `depth` layers deep that `name` of the grown one should be a copy of."""
    parts = name.split(".")
    if "layer" in parts:
        number = parts.index("layer") + 1
        parts[number] = str(int(parts[number]) % depth)
    return ".".join(parts)


def moments(checkpoint: Path, corpus_folder: Path, tmp_path: Path) -> dict[str, dict[str, Tensor]]:
    """The optimiser's state by name of parameter, as a trainer that resumes from the checkpoint would have it."""
    model = BertForMaskedLM.from_pretrained(checkpoint)
    trainer = DistillationTrainer(model, corpus_folder, pretraining(corpus_folder, tmp_path / "unused"))
    optimizer = trainer.create_optimizer()
    optimizer.load_state_dict(torch.load(checkpoint / "optimizer.pt", weights_only=True))
    return {name: optimizer.state[parameter] for name, parameter in model.named_parameters()}


def test_grown_checkpoint_holds_copies(growths: list[tuple[Path, Path]], corpus_folder: Path, tmp_path: Path) -> None:
    for depth, (before, after) in zip((1, 2), growths, strict=True):
        shallow, deep = tensors(before), tensors(after)
        assert len({name.split(".")[3] for name in deep if "encoder.layer" in name}) == 2 * depth
        assert_same_tensors(deep, {name: shallow[original(name, depth)] for name in deep})

        old, new = moments(before, corpus_folder, tmp_path), moments(after, corpus_folder, tmp_path)
        assert len(new) > len(old)
        for name, state in new.items():
            assert state.keys() == {"step", "exp_avg", "exp_avg_sq"}
            for key, value in state.items():
                assert torch.equal(value, old[original(name, depth)][key]), (name, key)
        assert any(state["exp_avg"].abs().max() > 0 for state in new.values())

        for name in ("scheduler.pt", "rng_state.pth", "trainer_state.json", "potstill_state.json"):
            assert (before / name).read_bytes() == (after / name).read_bytes()


def test_growth_falls_on_its_shares(growths: list[tuple[Path, Path]]) -> None:
    assert [load_run_state(after)["progress"] for _, after in growths] == [0.25, 0.5]


def test_two_growths_on_one_step(corpus_folder: Path, tmp_path: Path) -> None:
    folder = pretrain(pretraining(corpus_folder, tmp_path / "model", grow="1,2,4", grow_at="0.25,0.5", max_steps=2))
    assert len({name.split(".")[3] for name in tensors(folder) if "encoder.layer" in name}) == 4
    assert checkpoints(folder) == ["checkpoint-1", "checkpoint-2"]


def test_resuming_a_finished_run(corpus_folder: Path, tmp_path: Path) -> None:
    folder = pretrain(pretraining(corpus_folder, tmp_path / "model", **GROWTH))
    finished = tensors(folder)
    pretrain(pretraining(corpus_folder, folder, resume_from_checkpoint="true", **GROWTH))
    assert_same_tensors(tensors(folder), finished)


def test_resuming_with_other_depths_is_refused(corpus_folder: Path, tmp_path: Path) -> None:
    pretrain(pretraining(corpus_folder, tmp_path / "model", max_steps=1, num_hidden_layers=3))
    args = pretraining(corpus_folder, tmp_path / "model", resume_from_checkpoint="true", **GROWTH)
    with pytest.raises(PotstillError, match="has 3 layers"):
        pretrain(args)


def test_continuing_from_a_model(teacher_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    folder = pretrain(
        pretraining(corpus_folder, tmp_path / "model", model=str(teacher_folder), max_steps=1, learning_rate=1e-9)
    )
    start, end = tensors(teacher_folder), tensors(folder)
    assert start.keys() == end.keys()
    for name in start:
        torch.testing.assert_close(end[name], start[name], atol=1e-6, rtol=0)
    with pytest.raises(PotstillError, match="has 4 layers, more than the 2 asked for"):
        pretrain(pretraining(corpus_folder, tmp_path / "other", model=str(teacher_folder), num_hidden_layers=2))


@pytest.mark.parametrize("dropout", [None, 0.3])
def test_a_continued_model_keeps_its_dropout_unless_told(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path, dropout: float | None
) -> None:
    own = BertForMaskedLM.from_pretrained(teacher_folder).config.hidden_dropout_prob
    args = pretraining(corpus_folder, tmp_path / "model", model=str(teacher_folder), dropout=dropout, max_steps=1)
    continued = BertForMaskedLM.from_pretrained(pretrain(args))
    expected = own if dropout is None else dropout
    assert expected != 0.1 or dropout is None  # 0.1 is what a new model has
    assert continued.config.hidden_dropout_prob == continued.config.attention_probs_dropout_prob == expected
    assert {module.p for module in continued.modules() if isinstance(module, torch.nn.Dropout)} == {expected}
