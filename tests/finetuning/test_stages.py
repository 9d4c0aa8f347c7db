"""Pre-training, distillation and fine-tuning as one command: its stages, what it refuses, and how it continues."""

import json
import os
import random
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from finetuning_samples import SIZES, results, sentence, write_lines
from hubs import PUSH, Hub, check_uploaded
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.trainer import Trainer

from potstill import PotstillError, prepare
from potstill.cli import main
from potstill.finetuning import staged
from potstill.finetuning.finetune_arguments import FinetuneArguments
from potstill.finetuning.job import Job
from potstill.finetuning.stages import planned_stages
from potstill.finetuning.trainer import FinetuneTrainer
from potstill.training.trainer import DistillationTrainer

STAGES = "{pretrain: {max_steps: 4, eval_steps: 100, learning_rate: 1e-3}, distill: {num_train_epochs: 1}, finetune: }"
FOLDERS = ["1-pretrain", "2-distill", "3-finetune"]


@pytest.fixture(scope="module")
def blocks(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    rng = random.Random(3)
    (folder / "text.txt").write_text("".join(f"{sentence(rng, 12)} .\n" for _ in range(80)))
    options = {"validation_fraction": 0.1, "num_proc": 1}
    prepare([str(folder / "text.txt")], str(folder / "blocks"), str(bert), 16, **options)
    return folder / "blocks"


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts whose first word tells what the teacher says of them."""
    rng = random.Random(9)
    rows = [{"sentence": f"{('bol', 'kim')[n % 2]} {sentence(rng, rng.randint(2, 20))} ."} for n in range(40)]
    write_lines(tmp_path_factory.mktemp("texts") / "texts.jsonl", rows)
    return tmp_path_factory.getbasetemp() / next(tmp_path_factory.getbasetemp().glob("texts*/texts.jsonl"))


@pytest.fixture
def command(blocks: Path, texts: Path, teacher: Path, glue: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The command line of all stages; None leaves an option out."""

    def words(**changed: Any) -> list[str]:
        options = SIZES | {"stages": STAGES, "shape": "1x64", "corpus": blocks, "teacher": teacher, "unlabelled": texts}
        options |= {"task": "sst2", "task_data": glue, "output_dir": tmp_path / "out", "max_length": 32} | changed
        return ["finetune", *(f"--{name}={value}" for name, value in options.items() if value is not None)]

    return words


@pytest.fixture(scope="module")
def whole(blocks: Path, texts: Path, teacher: Path, glue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run without interruption."""
    out = tmp_path_factory.mktemp("whole") / "out"
    options = SIZES | {"stages": STAGES, "shape": "1x64", "corpus": blocks, "teacher": teacher, "unlabelled": texts}
    options |= {"task": "sst2", "task_data": glue, "output_dir": out, "max_length": 32}
    assert main(["finetune", *(f"--{name}={value}" for name, value in options.items())]) == 0
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same(ours: Path, theirs: Path) -> None:
    mine, other = weights(ours), weights(theirs)
    assert mine.keys() == other.keys()
    assert [name for name in mine if not torch.equal(mine[name], other[name])] == []


def times(folder: Path) -> list[int]:
    return [(folder / name / "model.safetensors").stat().st_mtime_ns for name in FOLDERS]


def test_each_stage_starts_from_the_one_before_and_all_are_recorded(whole: Path, glue: Path, blocks: Path) -> None:
    assert [path.name for path in sorted(whole.iterdir()) if path.is_dir()] == FOLDERS
    pretrained, distilled, tuned = ({**results(whole / name)} for name in FOLDERS)
    assert pretrained["cost"]["steps"] == 4
    assert (distilled["rows"]["train"], distilled["unlabelled"]["texts"], distilled["steps"]) == (0, 40, 5)
    assert distilled["without_teacher"] is distilled["without_unlabelled"] is None
    assert (tuned["rows"]["train"], tuned["teacher"], tuned["unlabelled"], tuned["steps"]) == (30, None, None, 8)
    assert distilled["model_path"] == str(whole / "1-pretrain")
    assert tuned["model_path"] == str(whole / "2-distill")
    assert distilled["hyperparameters"]["alpha_task"] == 0
    assert_same(whole, whole / "3-finetune")
    config = AutoConfig.from_pretrained(whole)
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (1, 64, 1)
    assert isinstance(AutoModelForSequenceClassification.from_pretrained(whole).config.id2label, dict)
    found = results(whole)
    assert (found["model"], found["score"]) == ("1x64", tuned["score"])
    assert [stage["stage"] for stage in found["stages"]] == ["pretrain", "distill", "finetune"]
    assert [stage["steps"] for stage in found["stages"]] == [4, 5, 8]
    assert found["stages"][0]["held_out"]["loss"] > 0
    assert found["stages"][1]["score"] == distilled["score"]
    card = (whole / "README.md").read_text()
    assert "A new model of the shape 1x64, pre-trained by masked LM, then taught by the soft targets of sst2 on" in card
    assert "| distill | 40 texts | 5 |" in card
    assert "17 steps, " in card.split("## Cost")[1]
    assert "| `model` |" not in card
    assert "base_model" not in card
    # The first stage is what `pretrain` would have made by itself.
    alone = whole.parent / "alone"
    options = {"shape": "1x64", "corpus": blocks, "output_dir": alone, "max_steps": 4, "eval_steps": 100}
    options |= {"learning_rate": 1e-3, "use_cpu": True, "logging_steps": 1}
    assert main(["pretrain", *(f"--{name}={value}" for name, value in options.items())]) == 0
    assert_same(alone, whole / "1-pretrain")


def test_a_repeated_command_does_nothing_twice(
    whole: Path, command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    before = times(whole)
    assert main(command(output_dir=whole)) == 0
    printed = capsys.readouterr()
    assert [line for line in printed.err.splitlines() if line.endswith("already finished")] == [
        f"{name}: already finished" for name in FOLDERS
    ]
    assert "stages: pretrain (4 steps) → distill (score" in printed.out
    assert times(whole) == before
    recipe = ["finetune", "--config", str(whole / "recipe.yaml"), "--output_dir", str(whole)]
    assert main(recipe) == 0
    assert times(whole) == before


def test_only_what_all_stages_made_is_uploaded(
    hub: Hub, whole: Path, command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command(output_dir=whole), *PUSH]) == 0
    check_uploaded(hub, whole, "stages.json")
    assert (whole / "stages.json").is_file()
    assert b"distill" in hub.files["README.md"]
    assert main(command(stages="{distill: {push_to_hub: true}, finetune: }", corpus=None)) == 1
    assert "push_to_hub cannot be an option of one stage" in capsys.readouterr().err


def test_every_stage_is_resumed_after_an_interruption(
    whole: Path,
    command: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One run that is interrupted three times ends with the weights of the run that never was."""
    out = tmp_path / "out"
    for stage, (kind, step) in enumerate([(DistillationTrainer, 3), (FinetuneTrainer, 2), (FinetuneTrainer, 5)]):
        compute_loss = kind.compute_loss

        def signalled(
            self: Any, *args: Any, stage: int = stage, step: int = step, compute: Any = compute_loss, **options: Any
        ) -> Any:
            if self.state.global_step + 1 == step and Path(self.args.output_dir).name == FOLDERS[stage]:
                os.kill(os.getpid(), signal.SIGTERM)
            return compute(self, *args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(kind, "compute_loss", signalled)
            assert main(command()) == 128 + signal.SIGTERM
        said = capsys.readouterr().err
        assert said.count("already finished") == max(0, stage - 1)  # the one before was interrupted and is resumed
        assert said.splitlines()[-1] == (
            f"potstill finetune: Interrupted in {FOLDERS[stage]} at step {step}; nothing is lost: repeat the same "
            "command to continue."
        )
        assert [name for name in FOLDERS if (out / name).is_dir()] == FOLDERS[: stage + 1]
        assert not (out / "results.json").exists()
    assert main(command(resume_from_checkpoint="true")) == 0
    assert_same(out, whole)


def test_a_run_that_ends_between_two_stages_continues_with_the_next(
    whole: Path,
    command: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The process ends when a stage has written its folder: after this is recorded, and in the next stage before."""
    save, written = staged.Progress.save, []
    for recorded in (True, False):

        def ending(self: staged.Progress, recorded: bool = recorded) -> None:
            ends = list(self.entries.values())[-1]["finished"]
            if recorded or not ends:
                save(self)
            if ends:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(staged.Progress, "save", ending)
            assert main(command()) == 128 + signal.SIGINT
        written.append((tmp_path / "out" / FOLDERS[0] / "model.safetensors").stat().st_mtime_ns)
    capsys.readouterr()
    assert main(command()) == 0
    assert capsys.readouterr().err.count("already finished") == 1  # the second one is run again
    assert written == [times(tmp_path / "out")[0]] * 2
    assert_same(tmp_path / "out", whole)


def test_finished_stages_are_compared_with_the_command(
    whole: Path,
    command: Callable[..., list[str]],
    tmp_path: Path,
    texts: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = times(whole)
    other_texts = tmp_path / "texts.jsonl"
    other_texts.write_text(texts.read_text().replace("bol", "kim", 1))
    stages = STAGES.replace("max_steps: 4", "max_steps: 5")
    for changed, told in (
        ({"shape": "1x128"}, "--hidden_size was 64 and is 128"),
        ({"stages": stages}, "The stage pretrain is finished with --max_steps 4, which is now 5: give the value of"),
        ({"unlabelled": other_texts}, "2-distill: the unlabelled texts is not the one that the run began with"),
        ({"temperature": 3}, "2-distill with other options: --temperature was 2.0 and is 3.0"),
        (
            {"stages": "pretrain,finetune", "teacher": None, "unlabelled": None},
            "was begun with the stages pretrain,dis",
        ),
    ):
        assert main(command(output_dir=whole, **changed)) == 1
        assert told in capsys.readouterr().err
    assert times(whole) == before


def test_overwriting_starts_anew_and_a_lost_stage_is_told(
    whole: Path, command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "copied"
    shutil.copytree(whole, out)
    shutil.rmtree(out / "1-pretrain")
    assert main(command(output_dir=out)) == 1
    assert "1-pretrain has no finished model, but" in capsys.readouterr().err
    assert main(command(output_dir=out, overwrite_output_dir=True, shape="1x128")) == 0
    assert "already finished" not in capsys.readouterr().err
    assert results(out)["model"] == "1x128"
    assert AutoConfig.from_pretrained(out / "2-distill").hidden_size == 128


def test_without_pre_training_a_new_model_is_random(
    command: Callable[..., list[str]], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = {"stages": "distill", "corpus": None}
    assert main(command(**changed)) == 0
    assert "0-initial: a new model with random weights" in capsys.readouterr().err
    out = tmp_path / "out"
    assert [path.name for path in sorted(out.iterdir()) if path.is_dir()] == ["0-initial", "1-distill"]
    assert results(out)["rows"]["train"] == 0
    assert "of the shape 1x64, taught by" in (out / "README.md").read_text()
    assert "without pre-training" in (out / "README.md").read_text()
    # The stage that was left out before follows.
    assert main(command(stages="distill,finetune", corpus=None)) == 0
    assert capsys.readouterr().err.count("already finished") == 1
    assert [stage["stage"] for stage in results(out)["stages"]] == ["distill", "finetune"]


def test_a_sub_list_starts_from_a_model(command: Callable[..., list[str]], bert: Path, tmp_path: Path) -> None:
    """Layers are chosen for the first stage alone. A stage has options of its own, and a recipe file."""
    (tmp_path / "distill.yaml").write_text("num_train_epochs: 2\neval_strategy: no\n")
    stages = (
        f"{{distill: {{config: {tmp_path / 'distill.yaml'}, learning_rate: 5e-4}}, finetune: {{save_strategy: no}}}}"
    )
    assert main(command(stages=stages, shape=None, corpus=None, model=bert, num_hidden_layers=1)) == 0
    out = tmp_path / "out"
    assert AutoConfig.from_pretrained(out).num_hidden_layers == 1
    assert results(out)["stages"][0]["steps"] == 10
    assert [stage["learning_rate"] for stage in results(out)["stages"]] == [5e-4, 1e-3]
    assert results(out)["model"] == "bert"


def test_the_recipe_runs(command: Callable[..., list[str]], tmp_path: Path) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "pretrained-distillation.yaml"
    stages = yaml.safe_load(recipe.read_text())["stages"]
    for options in stages.values():
        options |= {"max_steps": 2, "per_device_train_batch_size": 4}
    words = command(stages=json.dumps(stages), shape="1x64", learning_rate=None)
    assert main([*words, "--config", str(recipe)]) == 0
    found = results(tmp_path / "out")["stages"]
    assert [stage["steps"] for stage in found] == [2, 2, 2]
    assert [stage["learning_rate"] for stage in found[1:]] == [5e-4, 2e-4]


def test_a_bilstm_is_taught_in_stages_too(command: Callable[..., list[str]], tmp_path: Path) -> None:
    sizes = "{hidden_size: 8, embedding_size: 8}"
    assert main(command(stages="distill,finetune", shape=None, corpus=None, model="bilstm", bilstm=sizes)) == 0
    assert (results(tmp_path / "out")["model"], len(results(tmp_path / "out")["stages"])) == ("bilstm", 2)
    assert "bilstm was taught by the soft targets of sst2" in (tmp_path / "out" / "README.md").read_text()


def test_the_transfer_set_alone_teaches(
    teacher: Path, distilbert: Path, glue: Path, texts: Path, new_job: Callable[..., Job]
) -> None:
    options: dict[str, Any] = {
        "model": str(distilbert),
        "task": "sst2",
        "task_data": str(glue),
        "teacher": str(teacher),
    }
    job = new_job(**options, unlabelled=[str(texts)], max_train_samples=0).with_teacher()
    assert (len(job.train), job.train.labelled, job.drawn) == (40, 0, 40)
    assert (job.train.values["labels"] == -100).all()
    assert "soft" in job.train.values


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"stages": "distill,pretrain"}, "--stages is distill,pretrain, but their order can only be pretrain, distill"),
        ({"stages": "{finetune: , distill: }"}, "but their order can only be"),
        ({"stages": "pretrain,prune"}, "--stages has no stage 'prune': the stages are pretrain, distill, finetune"),
        ({"stages": "distill,distill"}, "--stages names distill twice"),
        ({"stages": ","}, "--stages"),
        ({"stages": "{"}, "--stages cannot be read"),
        ({"stages": "{distill: 3}"}, "--stages: distill is 3: it must be a mapping of options, or empty"),
        ({"stages": "pretrain"}, "--stages pretrain alone trains no task: add a stage, or use `potstill pretrain`"),
        ({"corpus": None}, "--corpus is missing: the stage pretrain reads a folder written by `potstill prepare`"),
        ({"corpus": "nowhere"}, "nowhere"),
        ({"shape": None}, "--shape is missing: the stage pretrain makes a new model"),
        ({"shape": "huge"}, "The stage pretrain: --shape is 'huge': give tiny, mini"),
        ({"stages": STAGES.replace("max_steps", "hidden_size: 128, max_steps")}, "but --hidden_size is 128: leave one"),
        ({"teacher": None}, "--unlabelled is .* it needs a teacher"),
        ({"unlabelled": None}, "--unlabelled is missing: the stage distill needs texts to learn from"),
        ({"unlabelled": "nowhere.txt"}, "There is no file or folder .*nowhere.txt"),
        ({"stages": "pretrain,finetune", "unlabelled": None}, "--teacher is .* it is for the stage distill, which is"),
        ({"stages": "distill,finetune"}, "--corpus is .* it is for the stage pretrain, which is not among"),
        ({"model": "folder"}, "--model is 'folder': the stage pretrain makes a new model: leave one of the two out"),
        ({"stages": "distill", "corpus": None, "shape": None}, "--model is missing: without the stage pretrain, name"),
        (
            {"stages": "finetune", "corpus": None, "teacher": None, "unlabelled": None},
            "--shape makes a new model, which needs a tokenizer: add the stage pretrain or distill",
        ),
        ({"alpha_task": 0.5}, "--alpha_task is 0.5: the stage distill learns from the unlabelled texts alone"),
        ({"unlabelled_ratio": 2}, "--unlabelled_ratio is 2.0: the stage distill learns from the unlabelled texts"),
        ({"num_hidden_layers": 1}, "--num_hidden_layers is 1: it chooses layers of --model, but the model is a new"),
        ({"soft_positions": "all"}, "The stage distill: --soft_positions is 'all': it is no option of"),
        ({"freeze_encoder": True}, "--freeze_encoder is True: the stages train the encoder"),
        ({"resume_from_checkpoint": "folder"}, "stages continue by themselves if the command is repeated"),
        ({"stages": "pretrain,distill", "class_weights": "balanced"}, "it is for the stage finetune, which is not amo"),
        (
            {"stages": STAGES.replace("max_steps", "max_stepz")},
            "The stage pretrain: There is no option --max_stepz; the",
        ),
        ({"stages": STAGES.replace("max_steps: 4", "max_steps: few")}, "The stage pretrain: --max_steps: invalid int"),
        ({"stages": STAGES.replace("max_steps", "corpus: a, max_steps")}, "corpus cannot be an option of one stage"),
        ({"stages": STAGES.replace("num_train", "alpha_task: 1, num_train")}, "alpha_task cannot be an option of one"),
        ({"task": "squad"}, "it is for tasks on texts .*: leave it out for squad"),
        ({"task_data": "nowhere"}, "nowhere"),
        ({"stages": None}, "--shape is '1x64': it is for --stages: leave it out"),
        ({"stages": None, "shape": None, "corpus": None}, "--model is missing"),
    ],
)
def test_refused_before_any_work(
    command: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, Any],
    message: str,
) -> None:
    def started(*args: Any, **options: Any) -> None:
        raise AssertionError("a training was started")

    monkeypatch.setattr(Trainer, "train", started)
    assert main(command(**changed)) in (1, 2)
    told = capsys.readouterr().err.splitlines()[-1]
    assert re.search(message, told), told
    assert not (tmp_path / "out").exists()


def test_a_teacher_of_another_task_and_a_folder_of_something_else(
    command: Callable[..., list[str]], bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(teacher=bert)) == 1
    assert "bert" in capsys.readouterr().err.splitlines()[-1]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("")
    assert main(command()) == 1
    assert "is not empty: name another folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_options_of_the_machine_are_those_of_all_stages(blocks: Path, texts: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"shape": "mini", "corpus": str(blocks), "teacher": "t", "unlabelled": [str(texts)]}
    options |= {"task": "sst2", "output_dir": str(tmp_path / "out"), "use_cpu": True, "seed": 7, "save_steps": 11}
    options |= {"stages": {"pretrain": {"bf16": True}, "distill": None}, "learning_rate": 1e-4, "alpha_ce": 3.0}
    args = FinetuneArguments(**options)
    first, second = (stage.args for stage in planned_stages(args))
    assert (first.use_cpu, first.seed, first.save_steps, first.learning_rate) == (True, 7, 11, 5e-4)
    assert (second.use_cpu, second.seed, second.save_steps, second.learning_rate) == (True, 7, 11, 1e-4)
    assert (first.bf16, second.bf16, second.alpha_ce) == (True, False, 3.0)
    assert json.dumps(args.stages)


@pytest.mark.parametrize(
    "entry",
    [
        {"folder": "../other", "finished": True, "run": {}},
        {"folder": "", "finished": True, "run": {}},
        {"finished": True, "run": {}},
        {"folder": "1-pretrain", "finished": 1, "run": {}},
        "1-pretrain",
    ],
    ids=repr,
)
def test_a_damaged_record_of_stages_cannot_have_other_folders_removed(tmp_path: Path, entry: Any) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "model").mkdir()
    record = {"format_version": staged.FORMAT, "stages": {"pretrain": entry}}
    (tmp_path / "model" / staged.RECORD).write_text(json.dumps(record))
    with pytest.raises(PotstillError, match=r"stages\.json is damaged .* name another --output_dir"):
        staged.Progress.open(tmp_path / "model", [], overwrite=True)
    assert (tmp_path / "other").is_dir()
