"""The verb `prune`, and what the other verbs make of its models."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from hubs import Hub, check_uploaded
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from potstill import PotstillError
from potstill.cli import main
from potstill.compress.prune_arguments import PruneArguments
from potstill.compress.pruning import Pruning
from potstill.compress.subject import Subject, row_losses
from potstill.export.export import export
from potstill.export.runtime import ExportedFolder
from potstill.export.source import Source
from potstill.finetuning.models import load_config
from potstill.finetuning.objective import TaskObjective
from potstill.finetuning.step import TaskStep
from potstill.student.pruned import as_pruned, is_pruned, plain_config
from potstill.student.shallower import chosen_layers

Run = Callable[..., int]
IDS = [[2, 9, 7, 11, 8, 3], [2, 5, 6, 10, 12, 3]]


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_the_folder_says_what_was_removed_and_what_it_cost(without_heads: Path, task_model: Path) -> None:
    found = results(without_heads)
    pruning, curve = found["pruning"], found["pruning"]["curve"]
    config = load_config(str(without_heads))
    assert (config.layer_heads, config.layer_neurons) == (pruning["heads_of_layers"], pruning["neurons_of_layers"])
    assert sum(pruning["heads_of_layers"]) == 7
    assert pruning["neurons_of_layers"] == [21, 21, 21]
    assert [len(kept) for kept in pruning["kept_heads"]] == pruning["heads_of_layers"]
    assert [(point["heads"], point["neurons"]) for point in curve] == [(0, 0), (2, 3), (5, 9)]
    model = AutoModelForSequenceClassification.from_pretrained(without_heads)
    assert curve[-1]["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    whole = BertForSequenceClassification.from_pretrained(task_model)
    # A head has 8 × (3 × (32 + 1) + 32) parameters, a neuron 32 + 1 + 32.
    assert curve[0]["parameters"] - curve[-1]["parameters"] == 5 * 8 * 131 + 9 * 65
    assert curve[0]["parameters"] == sum(parameter.numel() for parameter in whole.parameters())
    assert found["score"] == curve[-1]["score"]
    assert found["task"] == "sst2"
    assert curve[-1]["milliseconds"] > 0
    card = (without_heads / "README.md").read_text()
    assert "5 of 12 attention heads (41.7%) and 9 of 72 feed-forward neurons" in card
    assert "import potstill.pruned" in card
    assert json.loads((without_heads / "pruning.json").read_text())["removed"] == "heads"
    assert (without_heads / "pruning.png").read_bytes().startswith(b"\x89PNG")
    assert (without_heads / "pruning.svg").read_text().startswith("<svg")
    assert not [path.name for path in without_heads.parent.iterdir() if path.name.startswith(".")]


def test_the_score_is_that_of_finetunes_own_scoring(without_heads: Path, glue: Path, tmp_path: Path) -> None:
    options = {"model": without_heads, "task": "sst2", "task_data": glue, "output_dir": tmp_path / "tuned"}
    more = {"use_cpu": True, "max_steps": 1, "learning_rate": 1e-12}
    assert main(["finetune", *(f"--{name}={value}" for name, value in (options | more).items())]) == 0
    assert results(tmp_path / "tuned")["score"] == results(without_heads)["score"]


SCRIPT = """
import sys, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
ids, plain, own = torch.tensor({ids}), {plain!r}, {own!r}
found = [AutoModelForSequenceClassification.from_pretrained(plain)(ids).logits.tolist()]
assert "potstill" not in sys.modules
try:
    AutoModelForSequenceClassification.from_pretrained(own)
except ValueError as error:
    assert "pruned-bert" in str(error)
else:
    raise AssertionError("it loaded without its class")
import potstill.pruned
found.append(AutoModelForSequenceClassification.from_pretrained(own)(ids).logits.tolist())
assert len(AutoTokenizer.from_pretrained(own)("a")["input_ids"]) == 3
print(found)
"""


def test_transformers_loads_the_folders(without_heads: Path, without_neurons: Path) -> None:
    config = json.loads((without_neurons / "config.json").read_text())
    assert (config["model_type"], config["intermediate_size"]) == ("bert", 6)
    assert "import potstill" not in (without_neurons / "README.md").read_text()
    assert results(without_neurons)["pruning"]["needs_potstill"] is False
    script = SCRIPT.format(ids=IDS, plain=str(without_neurons), own=str(without_heads))
    printed = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    ).stdout
    for folder, logits in zip((without_neurons, without_heads), json.loads(printed), strict=True):
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        assert torch.allclose(model(torch.tensor(IDS)).logits, torch.tensor(logits), atol=1e-6)


def test_a_pruned_model_learns_from_the_whole_one(
    without_heads: Path, task_model: Path, glue: Path, tmp_path: Path
) -> None:
    options = {"model": without_heads, "teacher": task_model, "task": "sst2", "task_data": glue, "max_steps": 3}
    more = {"use_cpu": True, "without_teacher_too": False, "output_dir": tmp_path / "back"}
    assert main(["finetune", *(f"--{name}={value}" for name, value in (options | more).items())]) == 0
    before, after = (load_config(str(folder)) for folder in (without_heads, tmp_path / "back"))
    assert after.layer_heads == before.layer_heads
    assert after.model_type == "pruned-bert"
    assert "import potstill.pruned" in (tmp_path / "back" / "README.md").read_text()
    folders = [str(without_heads), str(tmp_path / "back")]
    models = [AutoModelForSequenceClassification.from_pretrained(folder) for folder in folders]
    assert not torch.equal(*(model(torch.tensor(IDS)).logits for model in models))


def test_what_is_exported_computes_what_the_pruned_model_computes(without_heads: Path) -> None:
    source = Source.open(str(without_heads))
    inputs = source.tokenise(["a b", "c"])
    (found,) = source.module()(*(torch.from_numpy(inputs[name]) for name in source.inputs))
    assert torch.allclose(found, torch.from_numpy(source.run(inputs)["logits"]), atol=1e-5)
    plain = plain_config(source.model.config)
    assert (type(plain), plain.architectures) == (BertConfig, ["BertForSequenceClassification"])
    assert as_pruned(plain).to_dict() == source.model.config.to_dict()
    assert as_pruned(BertConfig()).to_dict() == BertConfig().to_dict()


@pytest.mark.slow
def test_exports_have_the_shapes_of_the_pruned_model(without_heads: Path, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    export(str(without_heads), "onnx", str(tmp_path / "onnx"))
    config = json.loads((tmp_path / "onnx" / "config.json").read_text())
    assert config["model_type"] == "bert"  # programs that run the graph know this type
    shapes = AutoModelForSequenceClassification.from_config(ExportedFolder.read(tmp_path / "onnx").config())
    parameters = sum(parameter.numel() for parameter in shapes.parameters())
    assert parameters == results(without_heads)["pruning"]["curve"][-1]["parameters"]


def test_verbs_that_need_layers_that_are_alike_refuse(without_heads: Path) -> None:
    with pytest.raises(PotstillError, match="the teacher is pruned, and its layers differ"):
        chosen_layers(load_config(str(without_heads)), 2, None)


def test_an_interrupted_run_leaves_nothing_and_continues(
    prune_with: Run,
    without_heads: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = Pruning.next

    def interrupted(self: Pruning, step: object, number: int) -> object:
        if number == 2:
            raise KeyboardInterrupt
        return whole(self, step, number)

    options = {"heads": 5, "neurons": 9, "steps": 2, "output_dir": tmp_path / "out"}
    monkeypatch.setattr(Pruning, "next", interrupted)
    assert prune_with(**options) == 130
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    monkeypatch.setattr(Pruning, "next", whole)
    assert prune_with(**(options | {"steps": 1, "output_dir": tmp_path / "other"})) == 0
    assert "continues" not in capsys.readouterr().err
    assert prune_with(**options) == 0
    assert "continues after step 1 of 2" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    models = [AutoModelForSequenceClassification.from_pretrained(path) for path in (without_heads, tmp_path / "out")]
    assert all(torch.equal(tensor, models[1].state_dict()[key]) for key, tensor in models[0].state_dict().items())


def test_the_pruned_model_is_uploaded(hub: Hub, prune_with: Run, tmp_path: Path) -> None:
    options = {"push_to_hub": True, "hub_model_id": "me/student", "hub_token": "hf_secret", "timed_rows": 0}
    hub.refuses = ("/api/",)
    assert prune_with(heads=2, steps=1, output_dir=tmp_path / "refused", **options) == 1
    assert not list(tmp_path.glob("refused/*"))
    hub.refuses = ()
    assert prune_with(heads=2, steps=1, output_dir=tmp_path / "out", **options) == 0
    check_uploaded(hub, tmp_path / "out")
    assert "pruning.json" in hub.files


def test_it_stops_before_too_much_is_lost(prune_with: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([90.0, 89.8, 89.0, 89.8])
    monkeypatch.setattr(Subject, "score", lambda self, model: (next(scores), {"accuracy": 0.0}, {}))
    options = {"heads": 0.5, "steps": 3, "max_loss": 0.5, "timed_rows": 0}
    assert prune_with(output_dir=tmp_path / "out", **options) == 0
    pruning = results(tmp_path / "out")["pruning"]
    assert [point["heads"] for point in pruning["curve"]] == [0, 2]
    assert pruning["stopped"] == 89.0
    assert sum(AutoConfig.from_pretrained(tmp_path / "out").layer_heads) == 10
    assert "its score was 89.00" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 13}, "--heads is 13, but the model has only 12 heads: lower it."),
        ({"neurons": 1e4}, "--neurons is 10000, but the model has only 72 neurons: lower it."),
        ({"heads": 0.95}, "each of the 3 layers keeps at least one: at most 9 can be removed."),
        ({"heads": -1}, "--heads is -1.0: it must be above 0."),
        ({}, "--heads and --neurons are missing"),
        ({"heads": 2, "learning_rate": 1e-3}, "--learning_rate is no option of `prune`, which trains nothing"),
        ({"heads": 2, "teacher": "x"}, "--teacher is no option of `prune`"),
        ({"heads": 2, "task": "mrpc"}, "MRPC"),
        ({"heads": 2, "task": "stsb"}, "has 2 labels, but the task has 1"),
        ({"heads": 3, "steps": 1, "uniform": "both", "neurons": 10}, "cannot be divided evenly among 3 layers"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(
    options: dict[str, object],
    message: str,
    prune_with: Run,
    glue: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if options.get("task") == "stsb":
        rows = ["genre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore"]
        (tmp_path / "STS-B").mkdir()
        for split in ("train", "dev"):
            text = "\n".join([*rows, "g\tf\ty\t1\ts\ts\ta\tb\t2.5", "g\tf\ty\t1\ts\ts\ta\tc\t1.5"]) + "\n"
            (tmp_path / "STS-B" / f"{split}.tsv").write_text(text)
        options = options | {"task_data": tmp_path}
    assert prune_with(output_dir=tmp_path / "out", **options) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["classes", "scores", "labels", "tags", "spans"])
def test_the_loss_of_a_batch_is_the_sum_over_its_rows(kind: str) -> None:
    torch.manual_seed(torch.seed() % 2**31)
    auto = {"tags": "TokenClassification", "spans": "QuestionAnswering"}.get(kind, "SequenceClassification")
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(**sizes, intermediate_size=8, num_labels={"scores": 1, "spans": 2}.get(kind, 3))
    model = getattr(transformers, f"BertFor{auto}")(config).double().eval()
    lengths = [5, 3, 1]
    inside = torch.arange(5) < torch.tensor(lengths)[:, None]
    batch: dict[str, Tensor] = {"input_ids": torch.randint(1, 20, (3, 5)), "attention_mask": inside.long()}
    if kind == "spans":
        batch |= {"start_positions": torch.tensor([1, 2, 0]), "end_positions": torch.tensor([4, 2, 0])}
        batch |= {"answer_mask": inside}
    else:
        batch["labels"] = {
            "classes": torch.tensor([0, 2, 1]),
            "scores": torch.randn(3).double(),
            "labels": torch.randint(0, 2, (3, 3)).float(),
            "tags": torch.randint(0, 3, (3, 5)).masked_fill(~inside, -100),
        }[kind]
    step = TaskStep(model, TaskObjective())
    alone = [
        row_losses(step, {key: tensor[row : row + 1, :length] if tensor.dim() == 2 and tensor.shape[1] == 5
                          else tensor[row : row + 1] for key, tensor in batch.items()})
        for row, length in enumerate(lengths)
    ]  # fmt: skip
    assert torch.allclose(row_losses(step, batch), torch.stack(alone).sum(), rtol=1e-10)


def test_every_option_of_finetune_is_read_or_refused() -> None:
    offered = {field.name for field in dataclasses.fields(PruneArguments)} - PruneArguments.not_offered
    assert {"heads", "neurons", "task_data", "train_data", "max_length"} <= offered
    assert not {"learning_rate", "num_train_epochs", "bf16", "freeze_encoder", "num_hidden_layers"} & offered
    assert not is_pruned(BertConfig())
