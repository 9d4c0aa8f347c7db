"""Rerankers, really trained: alone and by a teacher, resumed, loaded by others, and what is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetuning_samples import VOCABULARY, Json, finetuned, flags, results, sentence, write, write_lines
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
)

from potstill.cli import main
from potstill.errors import PotstillError
from potstill.finetuning.finetune_arguments import FinetuneArguments
from potstill.finetuning.job import Job
from potstill.finetuning.rows import Rows
from potstill.finetuning.teaching import fit_of_lists
from potstill.sentences.reranker import Reranker


def lists(count: int, seed: int) -> list[Json]:
    """The first word of a passage tells whether it is relevant; there are 2 to 12 passages for a query."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        labels = [1, 0, *(int(rng.random() < 0.3) for _ in range(rng.randint(0, 10)))]
        passages = [f"{'bol' if label else 'kim'} {sentence(rng, 5)}" for label in labels]
        found.append({"query": f"{sentence(rng, 3)} ?", "passages": passages, "labels": labels})
    return found


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lists to train on and, as rows, to score; the same without labels; and triples."""
    folder = tmp_path_factory.mktemp("rerank-data")
    train, dev = lists(24, 0), lists(10, 1)
    write_lines(folder / "rerank" / "some-train.jsonl", train)
    rows = [(one["query"], *pair) for one in dev for pair in zip(one["passages"], one["labels"], strict=True)]
    write(folder / "rerank" / "some-dev.csv", "\n".join(["qtext,atext,label", *(f"{q},{p},{n}" for q, p, n in rows)]))
    write_lines(folder / "unlabelled.jsonl", [{name: one[name] for name in ("query", "passages")} for one in train])
    triples = [{"query": one["query"], "positive": one["passages"][0], "negative": one["passages"][1]} for one in train]
    write_lines(folder / "triples.jsonl", triples)
    return folder


@pytest.fixture(scope="session")
def reranker(bert: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rerankers") / "teacher"
    finetuned(model=bert, task="rerank", task_data=data, output_dir=folder, num_train_epochs=6, learning_rate=3e-3)
    return folder


def test_a_reranker_learns_and_is_scored_the_same_by_evaluate(
    reranker: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = results(reranker)
    assert found["metrics"].keys() == {"map", "mrr"}
    assert found["score"] == found["metrics"]["map"] > 90
    assert found["hyperparameters"]["losses"] == {"labels": {"weight": 1.0}}
    config = json.loads((reranker / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    card = (reranker / "README.md").read_text()
    assert "CrossEncoder(" in card
    assert "by the losses labels (weight 1)." in card
    argv = ["evaluate", "--models", f"one={reranker}", "--suite", "rerank", "--task_data", str(data), "--use_cpu"]
    assert main([*argv, "--output_dir", str(tmp_path / "results")]) == 0
    again = json.loads((tmp_path / "results" / "one" / "some-dev" / "seed-0.json").read_text())
    assert again["score"] == pytest.approx(found["score"], abs=1e-6)
    assert again["metrics"]["mrr"] == pytest.approx(found["metrics"]["mrr"], abs=1e-6)
    capsys.readouterr()
    assert main(["compare", str(reranker)]) == 0
    assert "MAP/MRR" in capsys.readouterr().out


def test_cross_encoder_gives_the_same_scores(reranker: Path, data: Path) -> None:
    transformers = pytest.importorskip("sentence_transformers")
    pairs = [(one["query"], passage) for one in lists(10, 1) for passage in one["passages"]]
    ours = Reranker.load(str(reranker)).score([query for query, _ in pairs], [passage for _, passage in pairs])
    theirs = transformers.CrossEncoder(str(reranker), device="cpu").predict(pairs)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_shallower_student_is_taught_without_labels(
    reranker: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = finetuned(
        model=reranker,
        teacher=reranker,
        task="rerank",
        train_data=data / "unlabelled.jsonl",
        eval_data=data / "rerank" / "some-dev.csv",
        num_hidden_layers=1,
        losses="{margin_mse: 1, list_kl: {weight: 0.5, temperature: 2}}",
        output_dir=tmp_path / "student",
    )
    assert found["layers"] == [0]
    assert found["teacher_on_labels"] is None
    assert found["without_teacher"] is None
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "student").config.num_hidden_layers == 1
    assert {"loss_margin_mse", "loss_list_kl"} <= found["log_history"][0].keys()
    assert "with only the layers 0 of the model" in (tmp_path / "student" / "README.md").read_text()
    assert "num_hidden_layers: 1" in (tmp_path / "student" / "recipe.yaml").read_text()


def test_the_same_run_without_its_teacher_learns_from_labels(reranker: Path, data: Path, tmp_path: Path) -> None:
    found = finetuned(
        model=reranker, teacher=reranker, task="rerank", task_data=data, output_dir=tmp_path / "out", max_steps=3
    )
    assert found["without_teacher"]["steps"] == found["steps"] == 3
    assert found["hyperparameters"]["losses"].keys() == {"margin_mse"}
    assert found["teacher_on_labels"]["map"] > found["teacher_on_labels"]["by_chance"]


def test_an_interrupted_run_continues_exactly(reranker: Path, data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": reranker, "task": "rerank", "task_data": data, "per_device_train_batch_size": 6}
    options |= {"teacher": reranker, "without_teacher_too": False, "save_strategy": "steps", "save_steps": 9}
    whole = finetuned(**options, output_dir=tmp_path / "whole")
    checkpoint, _ = sorted(tmp_path.glob("whole/checkpoint-*"))
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    resumed = finetuned(**options, output_dir=tmp_path / "resumed", resume_from_checkpoint=checkpoint)
    assert whole["steps"] == resumed["steps"] >= step + 6
    assert step % (whole["steps"] // 2) > 0  # inside an epoch
    assert resumed["score"] == whole["score"]
    losses = [[entry["loss"] for entry in run["log_history"] if "loss" in entry][-6:] for run in (whole, resumed)]
    assert losses[0] == losses[1]


def test_the_head_is_kept_and_layers_are_copied(reranker: Path, data: Path, tmp_path: Path) -> None:
    options = {"task": "rerank", "task_data": str(data), "use_cpu": True, "output_dir": str(tmp_path)}
    whole = Job.prepare(FinetuneArguments(model=str(reranker), **options)).new_model()
    model = Job.prepare(FinetuneArguments(model=str(reranker), layers="1", **options)).new_model()
    assert model.config.num_hidden_layers == 1
    state, found = whole.state_dict(), model.state_dict()
    for name, tensor in found.items():
        assert torch.equal(tensor, state[name.replace("layer.0.", "layer.1.")]), name


@pytest.mark.parametrize("kind", ["distilbert", "roberta", "modernbert", "gpt2"])
def test_every_task_can_start_from_some_layers(
    new_model: Callable[..., Path], glue: Path, tmp_path: Path, kind: str
) -> None:
    options = {"task": "sst2", "task_data": str(glue), "use_cpu": True, "output_dir": str(tmp_path)}
    job = Job.prepare(FinetuneArguments(model=str(new_model(kind)), num_hidden_layers=1, layers="last", **options))
    assert job.layers == ([0] if kind == "modernbert" else [1])  # whose layers are of two kinds, in this order
    model = job.new_model()
    assert model.config.num_hidden_layers == 1
    batch = job.train.__getitems__([0, 1])
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert logits.shape == (2, 2)


@pytest.fixture(scope="module")
def two_labels(word_tokenizer: BertTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    BertForSequenceClassification(BertConfig(vocab_size=len(VOCABULARY), **sizes)).save_pretrained(folder)
    word_tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha_ce": 0.5}, "--alpha_ce is 0.5: it is no option of rerank: give --losses."),
        ({"temperature": 2}, "--temperature is 2.0: it is no option of rerank: give --losses."),
        ({"freeze_encoder": True}, "--freeze_encoder is True: it is no option of rerank."),
        ({"losses": "{score_mse: 1}"}, "score_mse compares with a teacher: name one with --teacher."),
        ({"task": "sst2", "losses": "{labels: 1}"}, "it is an option of rerank: give --alpha_ce and --alpha_task."),
        ({"task": "sst2", "train_data": "x"}, "--train_data is 'x': it is no option of sst2: give --task_data."),
        ({"task": "sst2", "rerank_columns": "q"}, "it is an option of rerank."),
        ({"train_data": "x.csv", "eval_data": "y.csv"}, "because --train_data and --eval_data are"),
        ({"task_data": None}, "--train_data is missing: name a file of queries and passages"),
        ({"train_data": "none.csv"}, "There is no file none.csv"),
        ({"train_data": "UNLABELLED"}, "has no labels, so only a teacher can teach: name one with --teacher"),
        ({"eval_data": "UNLABELLED"}, "queries without labels: it is scored by them, so add them."),
        ({"teacher": "TWO"}, "has 2 labels, but the task has 1"),
        ({"teacher": "BERT"}, "labels, but the task has 1"),
        ({"num_hidden_layers": 5}, "cannot fill 5 student layers from a teacher of 2"),
        ({"num_hidden_layers": 0}, "--num_hidden_layers is 0: it must be above 0."),
        ({"layers": "auto"}, "--layers auto needs a corpus, which `potstill distill` has"),
        ({"layers": "first"}, "--layers first does not say how many layers to keep: give --num_hidden_layers too"),
        ({"layers": "0,7"}, "teacher layer 7 does not exist"),
        ({"stride": 3}, "--stride is 3: it is no option of rerank"),
        ({"dev_share": 0.3}, "--dev_share is 0.3: it is no option of rerank"),
        ({"on_bad_answer": "skip"}, "--on_bad_answer is 'skip': it is no option of rerank"),
        ({"teacher": "HEADLESS"}, "has no head: give one that is fine-tuned on this task"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    bert: Path,
    data: Path,
    two_labels: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, Any],
    message: str,
) -> None:
    names = {
        "UNLABELLED": data / "unlabelled.jsonl",
        "TWO": two_labels,
        "BERT": bert,
        "HEADLESS": tmp_path / "headless",
    }
    if options.get("teacher") == "HEADLESS":
        AutoModel.from_pretrained(two_labels).save_pretrained(tmp_path / "headless")
    given = {name: names.get(value, value) for name, value in options.items()}
    output = tmp_path / "out"
    assert main(flags(**{"model": bert, "task": "rerank", "task_data": data, "output_dir": output} | given)) != 0
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed
    assert not (output / "results.json").exists()


def test_lists_of_one_passage(bert: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"query": "bol", "passages": ["kim"]}, {"query": "kim", "passages": ["bol"]}]
    write_lines(tmp_path / "lone.jsonl", rows)
    write_lines(tmp_path / "some.jsonl", [*rows, {"query": "do", "passages": ["bol", "kim"]}])
    options: dict[str, Any] = {"model": bert, "teacher": bert, "task": "rerank", "output_dir": tmp_path / "out"}
    options |= {"eval_data": data / "rerank" / "some-dev.csv", "losses": "{margin_mse: 1}"}
    assert main(flags(**options, train_data=tmp_path / "lone.jsonl")) != 0
    assert "has one passage for each query, and margin_mse compares passages" in capsys.readouterr().err
    assert main(flags(**options, train_data=tmp_path / "some.jsonl")) != 0  # for its teacher has no head
    assert "2 of 3 queries have one passage; margin_mse skips them." in capsys.readouterr().err


def test_a_teacher_worse_than_chance_is_refused(
    reranker: Path, bert: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(reranker)
    with torch.no_grad():
        model.classifier.weight.neg_()
    model.save_pretrained(tmp_path / "turned")
    Reranker.load(str(reranker)).tokenizer.save_pretrained(tmp_path / "turned")
    options = {"model": bert, "teacher": tmp_path / "turned", "task": "rerank", "task_data": data}
    assert main(flags(**options, output_dir=tmp_path / "out")) != 0
    printed = capsys.readouterr().err
    assert "contradicts the training labels: the MAP of its scores is" in printed
    assert "it ranks irrelevant passages first" in printed


def test_chance_is_no_fault() -> None:
    rng = np.random.default_rng(0)
    numbers = np.repeat(np.arange(60), 8)
    labels = (rng.random(480) < 0.3).astype(np.float32)
    rows = Rows({"input_ids": np.ones(480, int)}, {"lists": numbers, "labels": labels}, np.ones(480, int))
    fit = fit_of_lists(rng.random((480, 1)), rows)
    assert fit is not None
    assert fit.fault is None
    assert abs(fit.measured["map"] - fit.measured["by_chance"]) < 10
    turned = fit_of_lists(-labels[:, None], rows)
    assert turned is not None
    assert turned.fault is not None
    right = fit_of_lists(labels[:, None], rows)
    assert right is not None
    assert right.measured["map"] == 100


def test_a_sample_is_of_whole_lists(bert: Path, data: Path, tmp_path: Path) -> None:
    options = {"task": "rerank", "task_data": str(data), "use_cpu": True, "output_dir": str(tmp_path)}
    job = Job.prepare(FinetuneArguments(model=str(bert), max_train_samples=40, **options))
    kept = job.data.train.to_dict()
    assert 28 < len(kept["list"]) <= 40
    sizes = {one["query"]: len(one["passages"]) for one in lists(24, 0)}
    for query in {*kept["text"]}:
        assert kept["text"].count(query) == sizes[query]


def test_triples_are_lists_of_two(bert: Path, data: Path, tmp_path: Path) -> None:
    dev = data / "rerank" / "some-dev.csv"
    args = FinetuneArguments(
        model=str(bert),
        task="rerank",
        train_data=str(data / "triples.jsonl"),
        eval_data=str(dev),
        use_cpu=True,
        output_dir=str(tmp_path),
    )
    job = Job.prepare(args)
    assert job.train.values["lists"].tolist() == [number for number in range(24) for _ in range(2)]
    assert job.train.values["labels"].tolist() == [1, 0] * 24
    with pytest.raises(PotstillError, match="must name query, passage and label"):
        FinetuneArguments(output_dir="x", task="rerank", rerank_columns=["a"])
