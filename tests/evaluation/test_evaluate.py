"""Models × tasks × seeds, really run: all is run once, recorded, and taken up where it was interrupted."""

import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_samples import SIZES, Flags, Json, comparable, listing, scores
from safetensors import SafetensorError

import potstill
from potstill.cli import main
from potstill.evaluation import run as run_module
from potstill.evaluation.evaluate_arguments import EvaluateArguments
from potstill.finetuning.job import Job
from potstill.finetuning.trainer import FinetuneTrainer

pytestmark = pytest.mark.usefixtures("signals_restored", "no_hub", "own_cache")


def test_all_is_run_recorded_and_told(
    flags: Flags, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags(suite="glue:sst2,rte", second_distillation=["student"])) == 0
    printed = capsys.readouterr()
    for line in ("RTE is absent, not 0: ", "student (D) was fine-tuned with task teachers"):
        assert line in printed.out
    lines = printed.err.splitlines()
    assert lines[0].startswith("RTE is absent: ")
    assert lines[1] == "4 runs"
    assert lines[2].startswith("[1/4] teacher · SST-2 · lr 0.001 · seed 42 · score ")
    assert lines[5].startswith("[4/4] student · SST-2 · lr 0.001 · seed 43 · score ")
    assert lines[5].endswith(" s · 0:00 left")
    assert ", to be a teacher · score " in lines[6]
    assert lines[7] == "2 runs"

    names = [f"{model}/sst2/seed-{seed}.json" for model in ("student (D)", "student", "teacher") for seed in (42, 43)]
    found = listing(tmp_path / "results")
    assert sorted(found) == sorted(["plan.json", *names])
    runs = {name: json.loads(found[name]) for name in names}
    plain, taught = runs["student/sst2/seed-43.json"], runs["student (D)/sst2/seed-43.json"]
    assert plain["model_path"] == taught["model_path"] == str(models["student"])
    assert plain["hyperparameters"]["learning_rate"] == 1e-3
    assert plain["hyperparameters"]["max_steps"] == 3
    assert not {"alpha_ce", "stride", "seed", "logging_steps", "output_dir"} & plain["hyperparameters"].keys()
    assert taught["hyperparameters"]["alpha_ce"] == 0.5
    assert plain["versions"]["torch"] == torch.__version__
    assert plain["seconds"].keys() == {"preparing", "training", "scoring"}
    assert plain["rows"] == {"train": 24, "dev": 12}
    assert plain["bad_rows"] == {"train": 0, "dev": 0}
    assert plain["score"] == plain["metrics"]["accuracy"]
    assert plain["hardware"]
    assert plain["date"]
    assert (plain["teacher"], plain["searched"]) == (None, None)
    scores = {seed: runs[f"teacher/sst2/seed-{seed}.json"]["score"] for seed in (42, 43)}
    assert taught["teacher"] == f"teacher, seed {min(scores, key=lambda seed: scores[seed])}"
    assert len({run["data_fingerprint"] for run in runs.values()}) == 1
    assert len({run["model_fingerprint"] for run in runs.values()}) == 2

    # Nothing is left to do: no teacher is fine-tuned for that.
    assert main(flags(suite="glue:sst2,rte", second_distillation=["student"])) == 0
    again = capsys.readouterr()
    assert again.out == printed.out
    assert "[" not in again.err
    assert listing(tmp_path / "results").keys() == found.keys()


def test_unlabelled_texts_teach_in_runs_of_their_own(
    flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"bol {word} kim\n" for word in "abcdefghij"))
    options: Json = {"suite": "glue:sst2", "second_distillation": ["student"], "unlabelled": [texts]}
    options |= {"unlabelled_ratio": 0.25, "max_steps": 2}
    assert main(flags(**options)) == 0
    printed = capsys.readouterr()
    assert "student (D, unlabelled) learned from 10 unlabelled texts too" in " ".join(printed.out.split())
    names = ("teacher", "student", "student (D)", "student (D, unlabelled)")
    runs = {name: json.loads((tmp_path / f"results/{name}/sst2/seed-43.json").read_text()) for name in names}
    assert {name: run["unlabelled"] is not None for name, run in runs.items()} == dict.fromkeys(names, False) | {
        names[3]: True
    }
    assert runs[names[3]]["unlabelled"]["per_epoch"] == 6
    assert runs[names[3]]["hyperparameters"]["unlabelled_ratio"] == 0.25
    assert "unlabelled_ratio" not in runs[names[2]]["hyperparameters"]
    assert runs[names[2]]["teacher"] == runs[names[3]]["teacher"]
    assert len({run["scored_fingerprint"] for run in runs.values()}) == 1

    assert main(flags(**options)) == 0
    assert "[" not in capsys.readouterr().err  # nothing is left to do
    texts.write_text("bol kim\n")
    assert main(flags(**options)) == 1
    assert "is of another run: the unlabelled texts were different" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "results/student (D, unlabelled)")
    assert main(flags(**options, without_unlabelled_too=False)) == 0
    assert "student (D) " not in capsys.readouterr().out.split("Left out")[0]


@pytest.fixture(scope="module")
def uninterrupted(
    models: dict[str, Path], data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[str], dict[str, float]]:
    """What is printed, and the scores."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "results"
    args = EvaluateArguments(
        models=[f"{name}={path}" for name, path in models.items()],
        suite=["glue:sst2"],
        task_data=str(data),
        output_dir=str(folder),
        **SIZES,
    )
    printed = potstill.evaluate(args)
    return comparable(printed), scores(folder)


def status_of(argv: list[str]) -> int:
    """The exit status of a command that a signal may end."""
    try:
        return main(argv)
    except SystemExit as end:
        return int(end.code or 0)


@pytest.mark.parametrize(
    ("number", "where", "step", "kept"),
    [
        pytest.param(signal.SIGINT, "compute_loss", 2, 2, id="Ctrl-C in training"),
        pytest.param(signal.SIGTERM, "compute_loss", 2, 2, id="SIGTERM in training"),
        pytest.param(signal.SIGINT, "compute_loss", 3, 3, id="Ctrl-C in the last step"),
        pytest.param(signal.SIGINT, "score", 1, 2, id="Ctrl-C in scoring"),
        pytest.param(signal.SIGTERM, "score", 1, 2, id="SIGTERM in scoring"),
    ],
)
def test_interrupted_and_given_again(
    flags: Flags,
    uninterrupted: tuple[list[str], dict[str, float]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    number: int,
    where: str,
    step: int,
    kept: int,
) -> None:
    calls = 0
    function = getattr(FinetuneTrainer, where)

    def signalled(self: FinetuneTrainer, *args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2 * (3 if where == "compute_loss" else 1) + step:  # in the third run
            os.kill(os.getpid(), number)
        return function(self, *args, **options)

    folder = tmp_path / "results"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FinetuneTrainer, where, signalled)
        assert status_of(flags(suite="glue:sst2")) == 128 + number
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("nterrupted") + printed.err.count("terminated.") == 1, printed.err
    assert "Traceback" not in printed.err
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []
    before = listing(folder)
    assert len(before) == 1 + kept

    assert main(flags(suite="glue:sst2")) == 0
    printed = capsys.readouterr()
    assert f"4 runs, {kept} of them done before" in printed.err
    assert printed.err.count("· score") == 4 - kept
    assert f"[{kept + 1}/4]" in printed.err
    assert comparable(printed.out) == uninterrupted[0]
    assert scores(folder) == uninterrupted[1]
    after = listing(folder)
    assert {name: after[name] for name in before} == before


def test_a_model_that_cannot_be_fine_tuned_names_itself_before_any_run(
    flags: Flags, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(models["student"], broken)
    (broken / "model.safetensors").write_bytes(b"no weights")
    assert main(flags(models=models | {"broken": broken}, suite="glue:sst2")) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("potstill evaluate: broken: the model ")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("measured", [{"score": math.nan}, {"metrics": {"accuracy": 50.0, "f1": math.inf}}])
def test_a_score_that_is_no_number_is_no_result(
    flags: Flags,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    measured: Json,
) -> None:
    whole = run_module.train_once

    def measuring(*args: Any, **options: Any) -> Any:
        trainer, found = whole(*args, **options)
        return trainer, found | measured

    monkeypatch.setattr(run_module, "train_once", measuring)
    assert main(flags(suite="glue:sst2")) == 1
    printed = capsys.readouterr()
    name = "score" if "score" in measured else "f1"
    assert printed.out == ""
    assert printed.err.splitlines()[-1] == (
        "potstill evaluate: teacher · SST-2 · lr 0.001 · seed 42: This run has no result: "
        f"{name} is not finite (NaN) (the finished runs are kept)."
    )
    assert list(listing(tmp_path / "results")) == ["plan.json"]


def test_a_teacher_that_cannot_be_kept_is_one_sentence(
    flags: Flags, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(run_module, "complete_folder", full)
    assert main(flags(suite="glue:sst2", second_distillation=["student"])) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert ".teachers/sst2 cannot be written: I/O error: No space left on device (os error 28) (the fin" in last


def test_second_distillation_is_taught_by_the_median(
    flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taught: list[str] = []
    whole = Job.with_teacher

    def interrupted(self: Job) -> Job:
        taught.append(self.args.teacher or "")
        if len(taught) == 2:
            raise KeyboardInterrupt
        return whole(self)

    monkeypatch.setattr(Job, "with_teacher", interrupted)
    argv = flags(suite="glue:sst2", second_distillation=["student"], alpha_task=0, alpha_ce=1)
    assert main(argv) == 130
    kept = tmp_path / "results" / ".teachers" / "sst2"
    assert taught == [str(kept)] * 2
    assert (kept / "model.safetensors").is_file()
    capsys.readouterr()
    assert main(argv) == 0
    assert "to be a teacher" not in capsys.readouterr().err  # it is there still
    assert len(taught) == 3
    assert not kept.parent.exists()
