"""The ELMo mode: an encoder that stays as it is, under a head that is saved, loaded and taught like any other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuning_samples import SPANS, finetuned, results
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from potstill.finetuning.frozen import FrozenEncoder
from potstill.finetuning.job import Job
from potstill.finetuning.predict import predict


@pytest.mark.parametrize("kind", ["distilbert", "roberta", "modernbert", "gpt2"])
def test_only_the_head_is_trained(new_model: Callable[..., Path], glue: Path, tmp_path: Path, kind: str) -> None:
    folder, out = new_model(kind), tmp_path / "out"
    finetuned(model=folder, task="sst2", task_data=glue, output_dir=out, freeze_encoder=True, num_train_epochs=1)
    before, after = (load_file(path / "model.safetensors") for path in (folder, out))
    prefix = {"gpt2": "transformer.", "modernbert": "model."}.get(kind, f"{kind}.")
    encoder = {name.removeprefix(prefix): tensor for name, tensor in before.items() if name.startswith(prefix)}
    assert len(encoder) > 10
    assert all(torch.equal(tensor, after[f"encoder.{name}"]) for name, tensor in encoder.items())
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert isinstance(model, FrozenEncoder)
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {
        "lstm",
        "attention",
        "classifier",
    }
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert "import potstill.finetuning.frozen" in (out / "README.md").read_text()


@pytest.mark.parametrize("task", ["sst2", "squad"])
def test_what_is_loaded_says_what_was_saved(
    bert: Path, glue: Path, squad: Path, tmp_path: Path, new_job: Callable[..., Job], task: str
) -> None:
    data = glue if task == "sst2" else squad
    out = tmp_path / "out"
    found = finetuned(model=bert, task=task, task_data=data, output_dir=out, freeze_encoder=True, max_steps=2)
    spans = SPANS if task == "squad" else {}
    job = new_job(model=str(out), task=task, task_data=str(data), **spans)
    auto: Any = AutoModelForSequenceClassification if task == "sst2" else AutoModelForQuestionAnswering
    score = job.data.score(lambda rows: predict(auto.from_pretrained(out), rows, 5), job.dev)
    assert score["score"] == found["score"]
    again = finetuned(model=out, task=task, task_data=data, output_dir=tmp_path / "again", max_steps=2)
    assert again["steps"] == 2
    for name, tensor in load_file(out / "model.safetensors").items():
        same = torch.equal(tensor, load_file(tmp_path / "again" / "model.safetensors")[name])
        assert same == name.startswith("encoder."), name


def test_padding_changes_nothing(bert: Path, new_job: Callable[..., Job], glue: Path) -> None:
    job = new_job(model=str(bert), task="sst2", task_data=str(glue), freeze_encoder=True)
    model = job.new_model().eval()
    rows = job.train
    short = int(rows.lengths.argmin())
    alone, among = rows.__getitems__([short]), rows.__getitems__([short, int(rows.lengths.argmax())])
    assert alone["input_ids"].shape[1] < among["input_ids"].shape[1]
    logits = [model(b["input_ids"], b["attention_mask"], b["token_type_ids"]).logits[0] for b in (alone, among)]
    torch.testing.assert_close(logits[0], logits[1], atol=1e-6, rtol=0)


def test_a_frozen_teacher(bert: Path, distilbert: Path, glue: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"task": "sst2", "task_data": glue, "num_train_epochs": 1}
    finetuned(model=bert, output_dir=tmp_path / "teacher", freeze_encoder=True, **options)
    finetuned(model=distilbert, output_dir=tmp_path / "out", teacher=tmp_path / "teacher", **options)
    assert results(tmp_path / "out")["without_teacher"] is not None


def test_the_head_is_drawn_by_the_seed(bert: Path, glue: Path, new_job: Callable[..., Job]) -> None:
    def head(seed: int) -> nn.Module:
        return (
            new_job(model=str(bert), task="sst2", task_data=str(glue), freeze_encoder=True, seed=seed).new_model().lstm
        )

    assert torch.equal(head(1).weight_hh_l0, head(1).weight_hh_l0)
    assert not torch.equal(head(1).weight_hh_l0, head(2).weight_hh_l0)
