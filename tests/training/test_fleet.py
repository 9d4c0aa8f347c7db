"""A run that began on some processes continues on another number of them, and learns the same."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fleet_samples import BLOCKS_PER_STEP, NOTING, blocks_of_steps, job, run
from runs import Learned, assert_alike, distillation, learned

from potstill import DistillationArguments, PotstillError, distill
from potstill.arguments import check_shares
from potstill.corpus import Corpus
from potstill.finetuning.finetune_arguments import FinetuneArguments
from potstill.finetuning.rows import LengthGroupedSampler

STEPS = 9


@pytest.fixture(scope="session")
def alone(teacher_without_dropout: Path, corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Learned:
    """What one process learns without an interruption."""
    folder = tmp_path_factory.mktemp("alone") / "student"
    options = {"per_device_train_batch_size": 12, "gradient_accumulation_steps": 1, "learning_rate": 1e-3}
    return learned(distill(distillation(teacher_without_dropout, corpus_folder, folder, **options)))


def expected_blocks(corpus: Corpus) -> dict[int, list[int]]:
    """The blocks of each step, from the definition of their order. 42 is the seed of `TrainingArguments`."""
    count, per_epoch = len(corpus.train), len(corpus.train) // BLOCKS_PER_STEP
    found = {}
    for step in range(STEPS):
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng([42, epoch]).permutation(count) + epoch * count
        found[step + 1] = sorted(order[place * BLOCKS_PER_STEP :][:BLOCKS_PER_STEP].tolist())
    return found


@pytest.mark.parametrize(
    ("fleet", "fsdp"),
    [
        pytest.param([2, 1], False, id="shrinking", marks=pytest.mark.slow),
        pytest.param([1, 2, 3, 1, 2], False, id="growing and shrinking", marks=pytest.mark.slow),
        pytest.param([4, 2, 4], False, id="half and back", marks=pytest.mark.slow),
        pytest.param([2, 3, 2], True, id="sharded", marks=pytest.mark.slow),
    ],
)
def test_a_run_continues_on_another_number_of_processes(
    fleet: list[int], fsdp: bool, teacher_without_dropout: Path, corpus_folder: Path, tmp_path: Path, alone: Learned
) -> None:
    """The same command each time. Every block is read in the step that the order gives, once; losses agree."""
    script, notes, folder = tmp_path / "noting.py", tmp_path / "notes", tmp_path / "student"
    script.write_text(NOTING)
    # The first number of processes decides the blocks of a step. Afterwards the accumulation follows by itself.
    size = 3 if 4 in fleet else 2
    begun = {
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": BLOCKS_PER_STEP // size // fleet[0],
        **({"fsdp": "true"} if fsdp else {}),
    }
    command = job(teacher_without_dropout, corpus_folder, folder, **begun)
    ends = [*([2, 4, 5, 7] if len(fleet) > 3 else [4, 7])[: len(fleet) - 1], None]
    for number, (processes, end) in enumerate(zip(fleet, ends, strict=True)):
        finished = run(processes, script, *command, NOTES=notes, PART=number, STOP_IN=end)
        assert (finished.returncode == 0) is (end is None), finished.stderr
        assert "Traceback" not in finished.stderr.split("potstill distill: Interrupted")[0]
        if number:
            before = fleet[number - 1]
            assert f"continues on {processes} processes instead of {before}. A step still takes 12" in finished.stderr
    assert blocks_of_steps(notes) == expected_blocks(Corpus.open(corpus_folder))
    assert_alike(learned(folder), alone)
    changes = json.loads((folder / "results.json").read_text())["changed_on_resume"]
    assert [change["processes"] for change in changes] == [[a, b] for a, b in itertools.pairwise(fleet)]
    for checkpoint in folder.glob("checkpoint-*"):
        assert (checkpoint / "model.safetensors").is_file()
        assert (checkpoint / "optimizer_0" / ".metadata").is_file() is fsdp
        assert (checkpoint / "optimizer.pt").is_file() is not fsdp


@pytest.mark.parametrize(
    ("batch", "size", "processes", "taken"),
    [
        (64, 4, 2, (4, 8)),
        (64, 4, 16, (4, 1)),
        (96, 4, 3, (4, 8)),
        (12, 12, 1, (12, 1)),
        (4, 4, 2, (2, 1)),  # growing beyond the micro-batch
        (96, 36, 2, (24, 2)),
    ],
)
def test_the_accumulation_follows(batch: int, size: int, processes: int, taken: tuple[int, int]) -> None:
    args = SimpleNamespace(train_batch_size=size, world_size=processes)
    DistillationArguments.keep_batch(args, batch)  # type: ignore[arg-type]
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == taken
    assert taken[0] * taken[1] * processes == batch


@pytest.mark.parametrize(("processes", "advice"), [(3, "start 2 or 4"), (100, "start 64")])
def test_processes_that_cannot_keep_the_batch_are_told_what_to_type(processes: int, advice: str) -> None:
    args = SimpleNamespace(train_batch_size=4, world_size=processes)
    with pytest.raises(PotstillError, match=rf"which {processes} processes cannot share equally: {advice}\."):
        DistillationArguments.keep_batch(args, 64)  # type: ignore[arg-type]
    assert vars(args).keys() == {"train_batch_size", "world_size"}


def test_every_number_of_processes_that_is_named_fits() -> None:
    for batch in range(1, 60):
        for processes in range(1, 70):
            try:
                check_shares(batch, processes)
            except PotstillError as error:
                assert batch % processes
                numbers = str(error).rpartition("start ")[2].rstrip(".").split(" or ")
                assert all(batch % int(number) == 0 for number in numbers)
            else:
                assert batch % processes == 0


def finetuning(**options: Any) -> SimpleNamespace:
    return SimpleNamespace(**({"gradient_accumulation_steps": 2, "ranks": False} | options))


def test_finetuning_keeps_the_order_of_its_rows() -> None:
    """Rows of similar length lie together, so what decides the order is the rows that all processes read at a time."""
    args = finetuning(per_device_train_batch_size=4, world_size=2)
    FinetuneArguments.keep_batch(args, 64)  # type: ignore[arg-type]
    assert args.per_device_train_batch_size * args.world_size == 32
    assert args.gradient_accumulation_steps == 2
    lengths = np.random.default_rng(0).integers(3, 99, 500)
    orders = [list(LengthGroupedSampler(lengths, size, 0)) for size in (32, args.per_device_train_batch_size * 2, 8)]
    assert orders[0] == orders[1] != orders[2]


def test_finetuning_refuses_what_would_change_the_order() -> None:
    with pytest.raises(PotstillError, match="32 rows, which 3 processes cannot share equally: start 2 or 4"):
        FinetuneArguments.keep_batch(finetuning(world_size=3), 64)  # type: ignore[arg-type]
    with pytest.raises(PotstillError, match="rerank run cannot be resumed on another number of processes"):
        FinetuneArguments.keep_batch(finetuning(world_size=1, ranks=True), 64)  # type: ignore[arg-type]
    order = FinetuneArguments.decide_order.fget  # type: ignore[attr-defined]
    assert order(finetuning()) == {"gradient_accumulation_steps"}
    assert order(finetuning(ranks=True)) == {"gradient_accumulation_steps", "per_device_train_batch_size"}
