"""What an evaluation runs, and when, shown by runs that cost nothing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from evaluation_samples import Flags, Json, listing, refused, scores

from potstill.cli import main
from potstill.errors import PotstillError
from potstill.evaluation import pool
from potstill.evaluation.evaluate_arguments import LEARNING_RATES
from potstill.evaluation.run import PlannedRun
from potstill.finetuning.result import RunResult

pytestmark = pytest.mark.usefixtures("signals_restored", "no_hub", "own_cache")


def test_more_models_tasks_and_seeds(
    flags: Flags,
    models: dict[str, Path],
    make_teacher: Callable[..., Path],
    pretended: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(flags(suite="glue:sst2")) == 0
    first = [f"{model} · SST-2 · lr 0.001 · seed {seed}" for model in models for seed in (42, 43)]
    assert pretended == first
    pretended.clear()
    before = listing(tmp_path / "results")
    capsys.readouterr()
    more = {"models": models | {"third": make_teacher(2)}, "seeds": 3, "second_distillation": ["student"]}
    assert main(flags(**more)) == 0
    printed = capsys.readouterr()
    assert "18 runs, 4 of them done before" in printed.err
    # Seeds of a model and a task stand together, and so do models of a task.
    plain = [
        f"{model} · {task} · lr 0.001 · seed {seed}"
        for task in ("SST-2", "STS-B")
        for model in more["models"]
        for seed in (42, 43, 44)
    ]
    assert pretended[:14] == [run for run in plain if run not in first]
    # By their scores 43 < 44 < 42 (see `pretended`).
    teachers = [f"teacher · {task} · lr 0.001 · seed 44, to be a teacher" for task in ("SST-2", "STS-B")]
    assert sorted(pretended[14:16]) == teachers
    assert len(pretended) == 14 + 2 + 6
    after = listing(tmp_path / "results")
    assert {name: after[name] for name in before if name != "plan.json"}.items() <= before.items()
    assert len(after) == 1 + 18 + 6

    # With yet more seeds the median may be another's, but a row has one teacher.
    pretended.clear()
    assert main(flags(**(more | {"seeds": 4, "seed": 41}))) == 0
    assert sum("to be a teacher" in run for run in pretended) == 2
    assert {run.teacher for run in map(RunResult.load, (tmp_path / "results").glob("*(D)/*/*.json"))} == {
        "teacher, seed 44"
    }
    # With fewer again, nothing is done, and what is there is kept.
    pretended.clear()
    kept = listing(tmp_path / "results")
    assert main(flags(suite="glue:sst2")) == 0
    assert pretended == []
    assert {name: text for name, text in kept.items() if name != "plan.json"}.items() <= listing(
        tmp_path / "results"
    ).items()


def test_search(flags: Flags, pretended: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = flags(suite="glue:sst2", search=True, learning_rate=None, second_distillation=["student"])
    assert main(argv) == 0
    grid = [f"{model} · SST-2 · lr {rate:g} · seed 42" for model in ("teacher", "student") for rate in LEARNING_RATES]
    assert pretended[:10] == grid
    # The best one's run is one of those planned.
    assert pretended[10:12] == [f"{model} · SST-2 · lr 5e-05 · seed 43" for model in ("teacher", "student")]
    assert pretended[12] == "teacher · SST-2 · lr 5e-05 · seed 43, to be a teacher"
    assert pretended[13:18] == [f"student (D) · SST-2 · lr {rate:g} · seed 42" for rate in LEARNING_RATES]
    assert pretended[18:] == ["student (D) · SST-2 · lr 5e-05 · seed 43"]
    for path in (tmp_path / "results").glob("*/sst2/seed-*.json"):
        found = RunResult.load(path)
        assert found.searched == {"learning_rate": list(LEARNING_RATES)}
        assert found.hyperparameters["learning_rate"] == 5e-5
    assert len(scores(tmp_path / "results")) == 6
    assert "learning_rate (searched: 2e-05, " in capsys.readouterr().out

    pretended.clear()
    shutil.rmtree(tmp_path / "results" / "student (D)")
    (tmp_path / "results" / "student" / "sst2" / "seed-43.json").unlink()
    assert main(argv) == 0
    assert pretended[0] == "student · SST-2 · lr 5e-05 · seed 43"
    assert [run for run in pretended if "D" in run] == ["student (D) · SST-2 · lr 5e-05 · seed 43"]  # searched before
    told = refused(capsys, flags(suite="glue:sst2", learning_rate=5e-5))
    assert "--search was True and is False" in told


@pytest.mark.parametrize("rate", [None, "high", [5e-5], True, 7e-5])
def test_a_result_of_no_rate_of_the_search_is_told(
    flags: Flags, pretended: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], rate: object
) -> None:
    argv = flags(suite="glue:sst2", search=True, learning_rate=None)
    assert main(argv) == 0
    pretended.clear()
    file = tmp_path / "results" / "student" / "sst2" / "seed-42.json"
    record = json.loads(file.read_text())
    record["hyperparameters"]["learning_rate"] = rate
    file.write_text(json.dumps(record))
    assert f"{file} is of another run: its learning rate, {rate!r}, is not one that --search" in refused(capsys, argv)
    assert pretended == []


def test_a_rate_that_is_too_high_is_not_chosen(
    flags: Flags, pretended: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fine = pool.do
    limit = 1e-4

    def diverging(work: PlannedRun) -> RunResult:
        if work.options["learning_rate"] > limit:
            raise PotstillError("The loss at step 2 is not a finite number.")
        return fine(work)

    monkeypatch.setattr(pool, "do", diverging)
    argv = flags(suite="glue:sst2", search=True, learning_rate=None)
    assert main(argv) == 0
    told = capsys.readouterr().err
    assert "[5/10] teacher · SST-2 · lr 0.0003 · seed 42 · no score: The loss at step 2 is not a finite" in told
    limit = 0
    assert main([*argv, f"--output_dir={argv[0]}-other"]) == 1
    shutil.rmtree(f"{argv[0]}-other")
    assert "teacher · SST-2: none of the learning rates could be run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"learning_rate": 2e-3}, "learning_rate was 0.001 and is 0.002"),
        ({"max_steps": None}, "max_steps was 3 and is not given"),
        ({"max_train_samples": 5}, "the data of SST-2 were different"),
        ({"search": True, "learning_rate": None}, "--search was False and is True"),
        ({"second_distillation": ["student"], "alpha_ce": 0.25}, "alpha_ce was 0.5 and is 0.25"),
    ],
)
def test_other_options_than_before(
    flags: Flags,
    models: dict[str, Path],
    make_teacher: Callable[..., Path],
    pretended: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: Json,
    told: str,
) -> None:
    assert main(flags(suite="glue:sst2", second_distillation=["student"])) == 0
    before = listing(tmp_path)
    pretended.clear()
    # Told at once, with more to be run before.
    said = refused(capsys, flags(models=models | {"third": models["teacher"]}, **options))
    assert told in said
    assert "Name another --output_dir" in said
    assert pretended == []
    assert listing(tmp_path) == before
    # What no score depends on may change.
    assert main(flags(suite="glue:sst2", logging_steps=7, per_device_eval_batch_size=3)) == 0


def test_other_weights_other_data_and_damage(
    flags: Flags,
    models: dict[str, Path],
    pretended: list[str],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own, mine = tmp_path / "data", tmp_path / "student"
    shutil.copytree(data, own)
    shutil.copytree(models["student"], mine)
    argv = flags(suite="glue:sst2", models=models | {"student": mine}, task_data=own)
    assert main(argv) == 0
    pretended.clear()
    config = json.loads((mine / "config.json").read_text())
    (mine / "config.json").write_text(json.dumps(config | {"dropout": 0.25}))
    assert f"the weights of student ({mine}) were different" in refused(capsys, argv)
    shutil.copy(models["student"] / "config.json", mine)
    assert main(argv) == 0
    shutil.move(mine, tmp_path / "moved")  # the same weights elsewhere are the same
    assert main(flags(suite="glue:sst2", models=models | {"student": tmp_path / "moved"}, task_data=own)) == 0
    argv = flags(suite="glue:sst2", models=models | {"student": tmp_path / "moved"}, task_data=own)
    rows = (own / "SST-2" / "train.jsonl").read_text()
    (own / "SST-2" / "train.jsonl").write_text(rows.replace('"label": 1', '"label": 0', 1))
    assert "the data of SST-2 were different" in refused(capsys, argv)
    (own / "SST-2" / "train.jsonl").write_text(rows)
    file = tmp_path / "results" / "student" / "sst2" / "seed-43.json"
    file.write_text(file.read_text()[:-9])
    assert "seed-43.json is damaged" in refused(capsys, argv)
    assert pretended == []
