"""Models × tasks × seeds: all is run once, whatever happens in between, and nothing is told that was not measured."""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_samples import Disturbed, run_result, write_task
from transformers import BertTokenizer

import potstill
from potstill.cli import main
from potstill.errors import PotstillError
from potstill.evaluation import pool
from potstill.evaluation import run as run_module
from potstill.evaluation.options import LEARNING_RATES, EvaluateArguments
from potstill.evaluation.pool import Progress, do_in_processes
from potstill.evaluation.results import RunResult
from potstill.evaluation.run import Work, do, forget
from potstill.finetuning.job import Job
from potstill.finetuning.options import FinetuneArguments
from potstill.finetuning.trainer import FinetuneTrainer

pytestmark = pytest.mark.usefixtures("signals_restored", "no_hub")

Json = dict[str, Any]
Files = dict[str, bytes]
SIZES: Json = {"use_cpu": True, "max_steps": 3, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "seeds": 2}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    forget()


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SST-2 and STS-B."""
    folder = tmp_path_factory.mktemp("glue")
    for task in ("sst2", "stsb"):
        write_task(folder, task)
    return folder


@pytest.fixture(scope="session")
def models(make_teacher: Callable[..., Path]) -> dict[str, Path]:
    return {"teacher": make_teacher(), "student": make_teacher(1, num_hidden_layers=2)}


Flags = Callable[..., list[str]]


@pytest.fixture
def flags(models: dict[str, Path], data: Path, tmp_path: Path) -> Flags:
    """The command line of an evaluation; None leaves an option out."""

    def make(**options: Any) -> list[str]:
        values: Json = {
            "models": models,
            "suite": "glue:sst2,stsb",
            "task_data": data,
            "output_dir": tmp_path / "results",
        }
        words = ["evaluate"]
        for name, value in (values | SIZES | options).items():
            if name == "models" and isinstance(value, dict):
                words += ["--models", *(f"{model}={path}" for model, path in value.items())]
            elif isinstance(value, list):
                words += [f"--{name}", *map(str, value)]
            elif value is not None:
                words.append(f"--{name}={value}")
        return words

    return make


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs that cost nothing; the list tells which there were. The score is by seed and learning rate."""
    done: list[str] = []

    def pretend(work: Work) -> RunResult:
        args = work.args()
        done.append(str(work))
        rate = args.learning_rate or 0.0
        result = run_result(
            work.model,
            args.task or "",
            args.seed,
            score=60 - 1e5 * abs(rate - 5e-5) + (args.seed * 7) % 5,
            hyperparameters=run_module.hyperparameters(args),
            data_fingerprint=run_module.data_fingerprint(run_module.task_data(args)),
            model_fingerprint=run_module.model_fingerprint(args.model or ""),
            teacher=work.taught_by,
            searched=work.searched,
        )
        if work.keep is not None:
            work.keep.mkdir(parents=True)
        result.save_as(work.file)
        return result

    monkeypatch.setattr(pool, "do", pretend)
    return done


def listing(folder: Path) -> Files:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def comparable(printed: str) -> list[str]:
    """What is printed of results, but for when they were made and how long it took."""
    return [line for line in printed.splitlines() if " in total" not in line and " on " not in line]


def refused(capsys: pytest.CaptureFixture[str], argv: list[str], status: int = 1) -> str:
    """Run a command that must fail in one sentence, and return it."""
    capsys.readouterr()
    assert main(argv) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1, printed.err
    assert printed.err.startswith("potstill evaluate: ")
    return printed.err.removeprefix("potstill evaluate: ")


# The whole, really run.


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


def scores(folder: Path) -> dict[str, float]:
    return {str(p.relative_to(folder)): RunResult.load(p).score for p in folder.glob("*/*/seed-*.json")}


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


def test_a_model_that_cannot_be_fine_tuned_names_itself(
    flags: Flags, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(models["student"], broken)
    (broken / "model.safetensors").write_bytes(b"no weights")
    assert main(flags(models=models | {"broken": broken}, suite="glue:sst2")) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("potstill evaluate: broken · SST-2 · lr 0.001 · seed 42: the model ")
    assert last.endswith("(the finished runs are kept).")
    assert len(scores(tmp_path / "results")) == 4


def test_second_distillation_is_taught_by_the_median(
    flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taught: list[str] = []
    whole = Job.taught

    def interrupted(self: Job) -> Job:
        taught.append(self.args.teacher or "")
        if len(taught) == 2:
            raise KeyboardInterrupt
        return whole(self)

    monkeypatch.setattr(Job, "taught", interrupted)
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


# What is run, and when: runs that cost nothing.


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


def test_a_rate_that_is_too_high_is_not_chosen(
    flags: Flags, pretended: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fine = pool.do
    limit = 1e-4

    def diverging(work: Work) -> RunResult:
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
        ({"max_train_samples": 5}, "the data of SST-2 were others"),
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
    shutil.copy(models["teacher"] / "config.json", mine)
    assert f"the weights of student ({mine}) were others" in refused(capsys, argv)
    shutil.copy(models["student"] / "config.json", mine)
    assert main(argv) == 0
    shutil.move(mine, tmp_path / "moved")  # the same weights elsewhere are the same
    assert main(flags(suite="glue:sst2", models=models | {"student": tmp_path / "moved"}, task_data=own)) == 0
    argv = flags(suite="glue:sst2", models=models | {"student": tmp_path / "moved"}, task_data=own)
    rows = (own / "SST-2" / "train.jsonl").read_text()
    (own / "SST-2" / "train.jsonl").write_text(rows.replace('"label": 1', '"label": 0', 1))
    assert "the data of SST-2 were others" in refused(capsys, argv)
    (own / "SST-2" / "train.jsonl").write_text(rows)
    file = tmp_path / "results" / "student" / "sst2" / "seed-43.json"
    file.write_text(file.read_text()[:-9])
    assert "seed-43.json is damaged" in refused(capsys, argv)
    assert pretended == []


# Bad input, told before anything is run or written.


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"seeds": 1}, "--seeds is 1: a median over seeds and their spread need at least 2"),
        ({"suite": "superglue"}, "There is no suite 'superglue'; the suites are glue, imdb, squad, squad_v2."),
        ({"suite": "sst2"}, "(sst2 is a task of glue: give glue:sst2)"),
        ({"suite": "glue:sst3"}, "The suite glue has no task 'sst3'"),
        ({"suite": None}, "--suite is missing"),
        ({"models": None}, "--models is missing"),
        ({"models": ["out/student"]}, "--models 'out/student' is not NAME=FOLDER"),
        ({"models": ["=out/student"]}, "is not NAME=FOLDER"),
        ({"models": ["a=x", "A=y"]}, "The model 'a' is there twice"),
        ({"models": ["a/b=x"]}, "'a/b' cannot be the name of a folder"),
        ({"models": ["a=x", "b (D)=y"]}, "The model 'b (D)' is named as --second_distillation names one"),
        ({"model": "x"}, "--model is of `finetune`: give --models."),
        ({"task": "sst2"}, "--task is of `finetune`: give --suite."),
        ({"teacher": "x"}, "--teacher is of `finetune`: give --second_distillation."),
        ({"second_distillation": ["teacher"]}, "'teacher' is none of the models after the first: student."),
        ({"second_distillation": ["student"], "alpha_ce": 0, "alpha_task": 0}, "--alpha_ce is 0"),
        ({"search": True}, "--search chooses the learning rate itself"),
        ({"runs_per_gpu": 0}, "--runs_per_gpu is 0"),
        ({"resume_from_checkpoint": "true"}, "--resume_from_checkpoint is not needed"),
        ({"overwrite_output_dir": True}, "--overwrite_output_dir would throw finished runs away"),
        ({"output_dir": None}, "--output_dir is missing"),
        ({"max_train_samples": 0}, "--max_train_samples is 0"),
        ({"max_length": 64}, "reads at most 32 tokens: lower it"),
        ({"models": ["a=/nowhere/at/all"]}, "a: the model folder '/nowhere/at/all' does not exist"),
        ({"suite": "glue:rte"}, "There is no data of any task: "),
        ({"task_data": "/nowhere/at/all"}, "--task_data /nowhere/at/all is not a folder"),
    ],
)
def test_impossible_options(
    flags: Flags, pretended: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: Json, told: str
) -> None:
    assert told in refused(capsys, flags(**options), 2 if told.endswith("is missing") else 1)
    assert list(tmp_path.iterdir()) == []


def test_second_distillation_of_spans_needs_one_tokenizer(
    flags: Flags, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(models["student"], other)
    words = BertTokenizer.from_pretrained(other).get_vocab()
    words["bol"], words["kim"] = words["kim"], words["bol"]
    BertTokenizer(vocab=words, model_max_length=32).save_pretrained(other)
    argv = flags(models=models | {"other": other}, suite=["glue:sst2", "squad"], second_distillation=["other"])
    told = refused(capsys, argv)
    assert told.startswith("--second_distillation other: the answers of SQuAD 1.1 are places among tokens")


def test_output_dir_that_is_not_one(
    flags: Flags, pretended: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results").write_text("mine")
    assert "is a file" in refused(capsys, flags())
    (tmp_path / "results").unlink()
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "mine.txt").write_text("mine")
    assert "is not empty and has no plan.json" in refused(capsys, flags())
    assert listing(tmp_path) == {"results/mine.txt": b"mine"}
    assert pretended == []


def test_not_under_a_launcher(
    flags: Flags, monkeypatch: pytest.MonkeyPatch, models: dict[str, Path], tmp_path: Path
) -> None:
    args = EvaluateArguments(
        models=[f"a={models['teacher']}"], suite=["imdb"], output_dir=str(tmp_path / "r"), use_cpu=True
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(PotstillError, match="run it without torchrun"):
        potstill.evaluate(args)


def test_public_names() -> None:
    assert potstill.EvaluateArguments is EvaluateArguments
    assert potstill.FinetuneArguments is FinetuneArguments
    assert all(getattr(potstill, name) for name in potstill.__all__)


# What a process keeps for the next run.


def test_what_is_kept_is_of_the_same_model_data_and_length(
    models: dict[str, Path], make_teacher: Callable[..., Path], data: Path, tmp_path: Path
) -> None:
    def job(**options: Any) -> Job:
        values: Json = {"model": str(models["teacher"]), "task": "sst2", "task_data": str(data), "use_cpu": True}
        return run_module._job(FinetuneArguments(output_dir="-", **values | options))

    first = job(seed=1)
    again = job(seed=2, learning_rate=1.0)
    assert again.train is first.train
    assert (again.args.seed, again.args.learning_rate) == (2, 1.0)
    assert job(max_length=4).train.lengths.max() == 4
    assert job().train.lengths.max() == 5
    assert job(model=str(models["student"])).train is not first.train
    assert len(job(max_train_samples=5).train) == 5
    assert "labels" in job(task="stsb").train.values
    assert job(task="stsb").data.task.name == "stsb"
    assert run_module.data_fingerprint(job().data) != run_module.data_fingerprint(job(task="stsb").data)
    assert job().hidden_teacher is None


# Processes.


def works(folder: Path, models: dict[str, Path], data: Path, *disturbances: str) -> list[tuple[Work, float]]:
    """A run for each disturbance; they are handed out in order."""
    found: list[tuple[Work, float]] = []
    for seed, disturbance in enumerate(disturbances):
        options = {"model": str(models["student"]), "task": "sst2", "task_data": str(data), "seed": seed}
        options |= {name: value for name, value in SIZES.items() if name != "seeds"}
        options["output_dir"] = str(folder / f"run-{seed}")
        work = Disturbed("student", options, folder / f"seed-{seed}.json", disturbance=disturbance)
        found.append((work, 1.0 if disturbance else 2.0))
    return found


def alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{number}/status").read_text()


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that need not import torch first. They cannot train: libraries' threads are not in them."""
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: fork)


def pids(folder: Path) -> list[int]:
    return [int(path.read_text()) for path in sorted(folder.glob("*.pid"))]


def test_processes_do_what_one_does(
    models: dict[str, Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = works(tmp_path / "processes", models, data, "", "", "", "refuse")
    some[3] = (replace(some[3][0], may_fail=True), 1.0)
    before = dict(os.environ)
    do_in_processes(some, [None, "0"], Progress(7.0, 4, 0))
    assert os.environ == before
    lines = capsys.readouterr().err.splitlines()
    assert [line[:5] for line in lines] == ["[1/4]", "[2/4]", "[3/4]", "[4/4]"]
    assert any("seed 3 · no score: Its weights are broken." in line for line in lines)
    numbers = pids(tmp_path / "processes")
    assert len(set(numbers)) == 2
    assert not any(map(alive, numbers))
    for work, _ in works(tmp_path / "here", models, data, "", "", ""):
        do(work)
    for seed in range(3):
        theirs, ours = (RunResult.load(tmp_path / where / f"seed-{seed}.json") for where in ("processes", "here"))
        same = {"hardware": "", "seconds": {}, "date": ""}
        assert replace(theirs, **same) == replace(ours, **same)


@pytest.mark.parametrize(
    ("disturbance", "told"),
    [
        ("kill", r"^student · SST-2 · lr 0.001 · seed 1: the process of this run was killed by signal 9 .* again"),
        ("refuse", r"^student · SST-2 · lr 0.001 · seed 1: Its weights are broken \(the finished runs are kept\)\.$"),
        ("bug", r"seed 1:\nTraceback(.|\n)*ZeroDivisionError: a bug"),
    ],
)
def test_a_process_that_fails_ends_all(
    forked: None, models: dict[str, Path], data: Path, tmp_path: Path, disturbance: str, told: str
) -> None:
    some = works(tmp_path, models, data, "sleep", disturbance, "sleep")
    started = time.monotonic()
    with pytest.raises(RuntimeError if disturbance == "bug" else PotstillError, match=told):
        do_in_processes(some, [None, None], Progress(3.0, 3, 0))
    assert time.monotonic() - started < 60
    assert not any(map(alive, pids(tmp_path)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_evaluation(
    forked: None, models: dict[str, Path], data: Path, tmp_path: Path, number: int
) -> None:
    parent = os.fork()
    if parent == 0:
        status = 1
        try:
            signal.signal(signal.SIGTERM, lambda number, frame: os.kill(os.getpid(), signal.SIGINT))
            with contextlib.suppress(PotstillError):
                do_in_processes(works(tmp_path, models, data, "sleep"), [None], Progress(1.0, 1, 0))
            status = 0
        finally:
            os._exit(status)
    deadline = time.monotonic() + 60
    while not pids(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (worker,) = pids(tmp_path)
    os.kill(worker, signal.SIGINT)  # as a terminal does to all
    time.sleep(0.5)
    assert alive(worker)  # and the parent ends it
    os.kill(parent, number)
    status = os.waitstatus_to_exitcode(os.waitpid(parent, 0)[1])
    assert status == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    gone = time.monotonic() + 20
    while (left := alive(worker)) and time.monotonic() < gone:
        time.sleep(0.05)
    if left:
        os.kill(worker, signal.SIGKILL)
    assert not left
