"""A new BiLSTM as the model of a fine-tuning: where it comes from, what it learns, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from finetuning_samples import finetuned, flags, results
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from potstill.bilstm.model import BiLSTMForSequenceClassification
from potstill.cli import main
from potstill.finetuning.job import Job
from potstill.finetuning.predict import predict

SIZES: dict[str, Any] = {"hidden_size": 12, "intermediate_size": 10, "embedding_size": 16, "dropout": 0}


@pytest.fixture(scope="module")
def taught(teacher: Path, glue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BiLSTM that the BERT of the fixtures taught."""
    folder = tmp_path_factory.mktemp("bilstm") / "taught"
    options: dict[str, Any] = {"task": "sst2", "task_data": glue, "num_train_epochs": 6, "learning_rate": 1e-2}
    finetuned(model="bilstm", bilstm=yaml.safe_dump(SIZES), teacher=teacher, output_dir=folder, **options)
    return folder


def test_it_learns_from_its_teacher_and_is_loaded_like_any_model(
    taught: Path, teacher: Path, glue: Path, new_job: Callable[..., Job]
) -> None:
    found = results(taught)
    assert found["score"] > 60
    assert found["without_teacher"] is not None
    recipe = yaml.safe_load((taught / "recipe.yaml").read_text())
    assert (recipe["soft_loss"], recipe["alpha_ce"], recipe["alpha_task"]) == ("mse", 1.0, 0.0)
    assert recipe["bilstm"]["tokenizer"] == recipe["bilstm"]["embeddings"] == str(teacher)
    losses = [entry for entry in found["log_history"] if "loss" in entry]
    assert all(entry["loss"] == pytest.approx(entry["loss_ce"], rel=1e-3) for entry in losses)
    card = (taught / "README.md").read_text()
    assert (
        "A BiLSTM, trained with potstill: 12 units in each direction, two channels of 16-wide embeddings (sst2" in card
    )
    assert "import potstill.bilstm.model" in card
    model = AutoModelForSequenceClassification.from_pretrained(taught)
    assert isinstance(model, BiLSTMForSequenceClassification)
    assert model.config.id2label == {0: "negative", 1: "positive"}
    job = new_job(model=str(taught), task="sst2", task_data=str(glue))
    assert "token_type_ids" not in job.train.tokens
    assert job.data.score(lambda rows: predict(model, rows, 5), job.dev)["score"] == found["score"]


def test_where_its_embeddings_come_from(
    bert: Path, distilbert: Path, new_model: Callable[..., Path], glue: Path, new_job: Callable[..., Job]
) -> None:
    def model(seed: int = 1, **options: Any) -> Any:
        return new_job(model="bilstm", task="sst2", task_data=str(glue), seed=seed, bilstm=options).new_model()

    table = load_file(bert / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    one, other = (model(seed, tokenizer=str(bert), embeddings=str(bert)) for seed in (1, 2))
    for channel in (one.encoder.static, one.encoder.trained, other.encoder.static):
        torch.testing.assert_close(channel.weight / channel.weight.std(), table / table.std(), rtol=1e-5, atol=1e-5)
    assert not torch.equal(one.dense.weight, other.dense.weight)
    narrow = model(tokenizer=str(bert), embeddings=str(bert), embedding_size=5)
    assert narrow.encoder.static.weight.shape == (len(table), 5)
    assert torch.equal(narrow.encoder.static.weight, narrow.encoder.trained.weight)
    new = model(tokenizer=str(bert))
    assert new.config.embeddings_from is None
    assert new.encoder.static.weight.shape == (len(table), 300)
    # A teacher with another tokenizer teaches, but has no embeddings for it.
    args: dict[str, Any] = {"model": "bilstm", "task": "sst2", "task_data": str(glue)}
    foreign = new_job(**args, teacher=str(new_model("roberta")), bilstm={"tokenizer": str(bert)})
    assert foreign.new_model().config.embeddings_from is None
    same = new_job(**args, teacher=str(distilbert), bilstm={"tokenizer": str(bert)})
    assert same.new_model().config.embeddings_from == "distilbert"


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_pairs_are_read_one_by_one(
    new_model: Callable[..., Path], glue: Path, new_job: Callable[..., Job], kind: str
) -> None:
    source = new_model(kind)
    options = SIZES | {"tokenizer": str(source)}
    job = new_job(model="bilstm", task="stsb", task_data=str(glue), bilstm=options)
    assert ("token_type_ids" in job.train.tokens) == (kind == "bert")
    model = job.new_model().eval()
    assert model.config.pairs
    assert model.dense.in_features == 8 * 12
    row = job.data.train[0]
    inputs = job.tokenizer(row["text"], row["pair"], return_tensors="pt")
    texts = model._texts(inputs["input_ids"], inputs["attention_mask"].bool(), inputs.get("token_type_ids"))
    words = [job.tokenizer.decode(inputs["input_ids"][0][at[0]], skip_special_tokens=True).strip() for at in texts]
    assert words == [row["text"], row["pair"]]
    assert bool((texts[0] ^ texts[1]).all())


def test_every_kind_of_task_on_texts(bert: Path, glue: Path, tmp_path: Path) -> None:
    given = yaml.safe_dump(SIZES | {"tokenizer": str(bert)})
    for task in ("stsb", "mnli"):
        options: dict[str, Any] = {"task": task, "task_data": glue, "max_steps": 2, "bilstm": given}
        assert finetuned(model="bilstm", output_dir=tmp_path / task, **options)["steps"] == 2
    data = tmp_path / "several.jsonl"
    data.write_text('{"text": "bo do", "label": ["a", "b"]}\n{"text": "ki", "label": ["a"]}\n' * 5)
    options = {"task": "multilabel", "train_data": data, "max_steps": 2, "bilstm": given}
    assert finetuned(model="bilstm", output_dir=tmp_path / "several", **options)["steps"] == 2


def test_a_bilstm_is_trained_further_and_teaches(taught: Path, distilbert: Path, glue: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"task": "sst2", "task_data": glue, "max_steps": 2}
    finetuned(model=taught, output_dir=tmp_path / "further", **options)
    before, after = (load_file(folder / "model.safetensors") for folder in (taught, tmp_path / "further"))
    assert {name for name in before if torch.equal(before[name], after[name])} == {"encoder.static.weight"}
    finetuned(model=distilbert, teacher=taught, output_dir=tmp_path / "out", without_teacher_too=False, **options)
    given = yaml.safe_dump(SIZES)
    finetuned(model="bilstm", bilstm=given, teacher=taught, output_dir=tmp_path / "small", **options)


def test_what_is_refused(
    bert: Path,
    taught: Path,
    new_model: Callable[..., Path],
    glue: Path,
    squad: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {"tokenizer": str(bert)}

    def refused(**options: Any) -> str:
        options = {"model": "bilstm", "task": "sst2", "task_data": glue, "output_dir": tmp_path / "out"} | options
        mapping = options.pop("bilstm", given)
        capsys.readouterr()
        assert main(flags(**options, bilstm=None if mapping is None else yaml.safe_dump(mapping))) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1, said
        assert not (tmp_path / "out").exists()
        return said

    assert "--model bilstm needs a tokenizer: name a model that has one in --bilstm" in refused(bilstm=None)
    assert "--bilstm: there is no 'layers'; it takes hidden_size" in refused(bilstm=given | {"layers": 2})
    assert "hidden_size is 0: it must be a whole number above 0" in refused(bilstm=given | {"hidden_size": 0})
    assert "dropout is 1: it must be a share" in refused(bilstm=given | {"dropout": 1})
    assert "--bilstm is 300: it must be a mapping" in refused(bilstm=300)
    assert "is for --model bilstm: leave it out" in refused(model=bert)
    assert "is for tasks on texts: name another model for squad" in refused(task="squad", task_data=squad)
    assert "is for transformers: a BiLSTM has one layer" in refused(num_hidden_layers=1)
    assert "is for transformers: leave it out for a BiLSTM" in refused(freeze_encoder=True)
    wide = given | {"embeddings": str(bert), "embedding_size": 64}
    assert "embedding_size is 64, but the embeddings of" in refused(bilstm=wide)
    other = given | {"embeddings": str(new_model("roberta"))}
    assert "are for another tokenizer than that of" in refused(bilstm=other)
    single = {"tokenizer": str(new_model("gpt2"))}
    assert "this tokenizer puts no token between them" in refused(task="stsb", bilstm=single)
    assert "and the model" in refused(model=taught, freeze_encoder=True, bilstm=None)
    assert "does not say its layers" in refused(model=taught, num_hidden_layers=1, bilstm=None)
    assert "a head for question answering" in refused(model=taught, task="squad", task_data=squad, bilstm=None)


def test_evaluate(bert: Path, glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "--models", f"bert={bert}", "lstm=bilstm", "--suite=glue:sst2", f"--task_data={glue}"]
    command += ["--seeds=2", "--use_cpu", "--num_train_epochs=1", f"--output_dir={tmp_path / 'results'}"]
    command += ["--second_distillation=lstm", "--bilstm={hidden_size: 8}"]
    assert main(command) == 0
    assert "lstm (D)" in capsys.readouterr().out
    assert main(command) == 0  # nothing is repeated
    assert "lstm (D) · " not in capsys.readouterr().err
    assert main([*command[:3], *command[4:-2], "--bilstm={hidden_size: 8}"]) == 1
    assert "is for a model named as lstm=bilstm" in capsys.readouterr().err
