"""Bad input of an evaluation is told before anything is run or written."""

import shutil
from pathlib import Path

import pytest
from evaluation_samples import Flags, Json, listing, refused
from transformers import BertTokenizer

import potstill
from potstill.cli import main
from potstill.errors import PotstillError
from potstill.evaluation.evaluate_arguments import EvaluateArguments
from potstill.finetuning.finetune_arguments import FinetuneArguments

pytestmark = pytest.mark.usefixtures("signals_restored", "no_hub", "own_cache")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"seeds": 1}, "--seeds is 1: a median over seeds and their spread need at least 2"),
        ({"suite": "superglue"}, "There is no suite 'superglue'; the suites are glue, imdb, squad, squad_v2"),
        ({"suite": "sst2"}, "(sst2 is a task of glue: give glue:sst2)"),
        ({"suite": "glue:sst3"}, "The suite glue has no task 'sst3'"),
        ({"suite": None}, "--suite is missing"),
        ({"models": None}, "--models is missing"),
        ({"models": ["out/student"]}, "--models 'out/student' is not NAME=FOLDER"),
        ({"models": ["=out/student"]}, "is not NAME=FOLDER"),
        ({"models": ["a=x", "A=y"]}, "The model 'a' occurs twice"),
        ({"models": ["a/b=x"]}, "'a/b' cannot be the name of a folder"),
        ({"models": ["a\nb=x"]}, "'a\\nb' cannot be the name of a folder"),
        ({"models": ["a\x1b[31m=x"]}, "'a\\x1b[31m' cannot be the name of a folder"),
        ({"models": ["a\udce9=x"]}, "'a\\udce9' cannot be the name of a folder"),
        ({"models": ["a=x", "b (D)=y"]}, "The name 'b (D)' ends in ' (D)', which --second_distillation adds to names"),
        ({"model": "x"}, "--model is an option of `finetune`: give --models."),
        ({"task": "sst2"}, "--task is an option of `finetune`: give --suite."),
        ({"teacher": "x"}, "--teacher is an option of `finetune`: give --second_distillation."),
        ({"second_distillation": ["teacher"]}, "'teacher' is none of the models after the first: choose from student."),
        ({"second_distillation": ["student"], "alpha_ce": 0, "alpha_task": 0}, "--alpha_ce is 0"),
        ({"alpha_ce": 1}, "--alpha_ce is 1.0: it has no effect without --second_distillation: name a model there"),
        ({"temperature": 4}, "--temperature is 4.0: it has no effect without --second_distillation"),
        ({"soft_loss": "mse"}, "--soft_loss is 'mse': it has no effect without --second_distillation"),
        ({"stride": 5}, "--stride is 5: it is for tasks on questions, and --suite has none: leave it out."),
        ({"suite": "sts", "dev_share": 0.5}, "--dev_share is 0.5: it is for tasks on questions, and --suite has none"),
        (
            {"second_distillation": ["student"], "soft_positions": "all"},
            "--soft_positions is 'all': it is for tasks on questions, and --suite has none",
        ),
        ({"unlabelled": ["x.txt"]}, "--unlabelled needs --second_distillation: name the models"),
        ({"unlabelled_ratio": 2}, "--unlabelled_ratio needs --unlabelled"),
        (
            {"unlabelled": ["x.txt"], "second_distillation": ["student"]},
            "--unlabelled is for the texts of one task, but --suite has 2",
        ),
        (
            {"unlabelled": ["x.txt"], "second_distillation": ["student"], "suite": "glue:sst2"},
            "There is no file or folder x.txt: check the path given to --unlabelled",
        ),
        (
            {"unlabelled": ["x.txt"], "second_distillation": ["student"], "suite": "glue:sst2", "alpha_ce": 0},
            "it teaches nothing with --alpha_ce 0",
        ),
        ({"models": ["a=x", "b (D, unlabelled)=y"]}, "ends in ' (D, unlabelled)', which --second_distillation adds"),
        ({"search": True}, "--search chooses the learning rate itself"),
        ({"runs_per_gpu": 0}, "--runs_per_gpu is 0"),
        ({"resume_from_checkpoint": "true"}, "--resume_from_checkpoint is not needed"),
        ({"overwrite_output_dir": True}, "--overwrite_output_dir would delete finished runs"),
        ({"output_dir": None}, "--output_dir is missing"),
        ({"max_train_samples": 0}, "--max_train_samples is 0"),
        ({"max_length": 64}, "reads at most 32 tokens: lower it"),
        ({"models": ["a=/nowhere/at/all"]}, "a: the model folder '/nowhere/at/all' does not exist"),
        ({"suite": "glue:rte"}, "None of the tasks has data: "),
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
    assert told.startswith("--second_distillation other: the answers of SQuAD 1.1 are token positions")


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


def test_a_run_that_was_killed_while_it_wrote_its_plan_goes_on(
    flags: Flags, pretended: list[str], tmp_path: Path
) -> None:
    unfinished = tmp_path / "results" / f".plan.json.{2**31 - 1}.partial"  # of a process that is no more
    unfinished.parent.mkdir()
    unfinished.write_text('{"half')
    assert main(flags()) == 0
    assert not unfinished.exists()
    assert (tmp_path / "results" / "plan.json").is_file()


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
