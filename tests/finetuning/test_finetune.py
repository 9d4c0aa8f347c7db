"""The verb end to end: what it leaves loads where it should, says what was measured, and can be run again."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from finetuning_samples import SPANS, Json, finetuned, flags, results, with_labels, write
from safetensors.torch import load_file
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EarlyStoppingCallback,
    pipeline,
)

from potstill.cli import main
from potstill.finetuning.finetune import finetune
from potstill.finetuning.finetune_arguments import FinetuneArguments
from potstill.finetuning.job import Job
from potstill.finetuning.trainer import FinetuneTrainer, train_once
from potstill.tasks.glue import GLUE
from potstill.tasks.load import load_split
from potstill.tasks.squad import read_squad

NewModel = Callable[..., Path]


def same_weights(ours: Path, theirs: Path) -> bool:
    mine, other = (load_file(folder / "model.safetensors") for folder in (ours, theirs))
    return mine.keys() == other.keys() and all(torch.equal(mine[name], other[name]) for name in mine)


def test_classification(distilbert: Path, glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    found = finetuned(
        model=distilbert, task="sst2", task_data=glue, output_dir=out, num_train_epochs=8, learning_rate=5e-3
    )
    printed = capsys.readouterr()
    assert printed.out == f"sst2: accuracy 100.0 (30 training rows, 12 scored)\nwrote {out}/\n"
    assert all(line.startswith(("sst2 · distilbert, ", "step ")) for line in printed.err.splitlines()), printed.err
    assert found["score"] == found["metrics"]["accuracy"] == 100
    assert found["rows"] == {"train": 30, "dev": 12}
    perfect = {"precision": 100, "recall": 100, "f1": 100, "support": 6}
    assert found["per_label"] == {"negative": perfect, "positive": perfect}
    assert found["confusion"] == {"labels": ["negative", "positive"], "counts": [[6, 0], [0, 6]]}
    assert found["steps"] == 32
    assert found["without_teacher"] is None
    assert found["rows_per_second"] > 0

    config = json.loads((out / "config.json").read_text())
    assert config["id2label"] == {"0": "negative", "1": "positive"}
    assert config["architectures"] == ["DistilBertForSequenceClassification"]
    classify = pipeline("text-classification", model=str(out), device="cpu")
    dev = load_split(GLUE["sst2"], "dev", str(glue))
    said = [answer["label"] for answer in classify(dev["text"][:])]
    assert said == [("negative", "positive")[label] for label in dev["label"]]
    card = (out / "README.md").read_text()
    assert "| accuracy | 100.00 |" in card
    assert "30 of train, 12 of dev" in card


def test_its_recipe_reruns_it(bert: Path, glue: Path, tmp_path: Path) -> None:
    first, again, other = (tmp_path / name for name in ("out", "again", "other"))
    found = finetuned(model=bert, task="stsb", task_data=glue, output_dir=first)
    assert main(["finetune", "--config", str(first / "recipe.yaml"), "--output_dir", str(again)]) == 0
    assert results(again)["score"] == found["score"]
    assert same_weights(first, again)
    assert yaml.safe_load((first / "recipe.yaml").read_text()) == yaml.safe_load((again / "recipe.yaml").read_text())
    assert main(["finetune", "--config", str(first / "recipe.yaml"), "--seed=7", "--output_dir", str(other)]) == 0
    assert not same_weights(first, other)


def test_regression(bert: Path, glue: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = finetuned(model=bert, task="stsb", task_data=glue, output_dir=out, num_train_epochs=1)
    assert found["score"] == pytest.approx((found["metrics"]["pearson"] + found["metrics"]["spearman"]) / 2)
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert model.config.num_labels == 1
    assert model.config.problem_type == "regression"
    (said,) = pipeline("text-classification", model=str(out), device="cpu", function_to_apply="none")(["bo bona"])
    assert said["label"] == "score"


def test_two_dev_sets(bert: Path, glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    found = finetuned(model=bert, task="mnli", task_data=glue, output_dir=out, num_train_epochs=1)
    assert found["rows"] == {"train": 20, "dev_matched": 6, "dev_mismatched": 9}
    both = [found["metrics"][f"dev_{split}"]["accuracy"] for split in ("matched", "mismatched")]
    assert found["score"] == pytest.approx(sum(both) / 2)
    assert "dev_matched_accuracy" in capsys.readouterr().out
    assert "| dev_mismatched accuracy |" in (out / "README.md").read_text()


@pytest.mark.parametrize("task", ["squad", "squad_v2"])
def test_questions(bert: Path, squad: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str) -> None:
    out = tmp_path / "out"
    options = {"model": bert, "task": task, "task_data": squad, "output_dir": out}
    found = finetuned(**options)
    assert "Splitting contexts into windows" not in capsys.readouterr().err
    assert found["rows"] == {"train": 12, "dev": 6}
    assert found["bad_answers"] == 0
    assert found["score"] == found["metrics"]["f1"]
    assert ("best_f1" in found["metrics"]) == (task == "squad_v2")

    model, tokenizer = AutoModelForQuestionAnswering.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    model.config.name_or_path = str(out)
    args = FinetuneArguments(model=str(out), task=task, task_data=str(squad), output_dir="-", **SPANS)
    job = Job.prepare(args)
    assert job.tokenizer.get_vocab() == tokenizer.get_vocab()
    trainer = FinetuneTrainer(model, job)
    again = trainer.score()
    assert again.pop("score") == found["score"]
    assert again == found["metrics"]

    code = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    assert code is not None
    shown: dict[str, Any] = {}
    exec(code[1].replace("path/of/this/folder", str(out)), shown)
    assert shown["answer"]
    assert shown["answer"] in shown["context"]


def test_xquad_like_file_is_split_by_article(bert: Path, squad: Path, tmp_path: Path) -> None:
    one = squad / "train-v1.1.json"
    found = finetuned(
        model=bert, task="squad", task_data=one, output_dir=tmp_path / "o", dev_share=0.5, num_train_epochs=1
    )
    assert found["rows"] == {"train": 6, "dev": 6}


@pytest.mark.parametrize("kind", ["roberta", "modernbert", "gpt2"])
def test_other_families(new_model: NewModel, new_job: Any, glue: Path, tmp_path: Path, kind: str) -> None:
    data = tmp_path / "data"
    shutil.copytree(glue, data)
    with open(data / "SST-2" / "train.tsv", "a") as file:
        file.write("\t1\n")  # of which GPT-2's tokenizer makes nothing at all
    out, folder = tmp_path / "out", new_model(kind)
    assert new_job(model=str(folder), task="sst2", task_data=str(data)).train.lengths.min() > 0
    finetuned(model=folder, task="sst2", task_data=data, output_dir=out, num_train_epochs=1)
    model = AutoModelForSequenceClassification.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert model.config.pad_token_id == tokenizer.pad_token_id is not None
    pipeline("text-classification", model=str(out), device="cpu")(["bo", "bo bona do"], batch_size=2)


def test_sixteen_bits_on_a_cpu_sum_the_gradients_of_norms_in_float32(bert: Path, glue: Path, new_job: Any) -> None:
    def type_of_norms(**options: Any) -> torch.dtype:
        job = new_job(model=str(bert), task="sst2", task_data=str(glue), **options)
        norm = FinetuneTrainer(job.new_model(), job).trained.bert.embeddings.LayerNorm
        return norm(torch.zeros(1, len(norm.weight), dtype=torch.bfloat16)).dtype

    assert [type_of_norms(), type_of_norms(bf16=True)] == [torch.bfloat16, torch.float32]


def test_roberta_reads_to_its_last_position(new_model: NewModel, tmp_path: Path) -> None:
    roberta = new_model("roberta", max_position_embeddings=66)  # the first two of which are never used
    long = "sentence\tlabel\n" + "".join(f"{'bo ' * 200}\t{n % 2}\n" for n in range(4))
    for split in ("train", "dev"):
        write(tmp_path / "data" / f"{split}.tsv", long)
    options = {"model": roberta, "task": "sst2", "task_data": tmp_path / "data", "num_train_epochs": 1}
    finetuned(**options, output_dir=tmp_path / "out")
    args = FinetuneArguments(model=str(roberta), task="sst2", task_data=str(tmp_path / "data"), output_dir="-")
    assert Job.prepare(args).train.lengths.tolist() == [64] * 4


def test_a_head_for_other_labels_is_drawn_anew(teacher: Path, bert: Path, glue: Path, new_job: Any) -> None:
    def head(model: Path, task: str, seed: int = 0) -> Any:
        job = new_job(model=str(model), task=task, task_data=str(glue), seed=seed)
        return job.new_model()

    trained = load_file(teacher / "model.safetensors")
    kept = head(teacher, "sst2")
    assert torch.equal(kept.classifier.weight, trained["classifier.weight"])
    three = head(teacher, "mnli")
    assert three.classifier.weight.shape == (3, 32)
    assert three.config.id2label == {0: "entailment", 1: "neutral", 2: "contradiction"}

    write(glue / "CoLA" / "train.tsv", "x\t1\t\tbo do\nx\t0\t\tdo bo\n")
    write(glue / "CoLA" / "dev.tsv", "x\t1\t\tbo do\nx\t0\t\tdo bo\n")
    two = head(teacher, "cola")  # of the very shape that the head for SST-2 has
    assert not torch.isclose(two.classifier.weight, trained["classifier.weight"]).any()
    assert 0.01 < two.classifier.weight.std() < 0.03
    assert (two.classifier.bias == 0).all()
    last = "bert.encoder.layer.1.output.dense.weight"
    assert torch.equal(two.state_dict()[last], trained[last])
    assert torch.equal(two.classifier.weight, head(teacher, "cola").classifier.weight)
    assert not torch.equal(two.classifier.weight, head(teacher, "cola", seed=1).classifier.weight)
    state = torch.random.get_rng_state()
    head(bert, "sst2")
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_head_whose_labels_are_in_another_order_is_kept_in_the_order_of_the_task(
    new_model: NewModel, teacher: Path, glue: Path, tmp_path: Path, new_job: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def head(model: Path, task: str, **options: Any) -> Any:
        return new_job(model=str(model), task=task, task_data=str(glue), **options).new_model()

    swapped = with_labels(teacher, tmp_path / "swapped", "Positive", "Negative", order=[1, 0])
    capsys.readouterr()
    trained, found = load_file(teacher / "model.safetensors"), head(swapped, "sst2").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in trained.items())

    # RoBERTa's head has a layer before the last one, and MNLI's order of three labels is no exchange of two.
    three = head(new_model("roberta", max_position_embeddings=66), "mnli")
    with torch.no_grad():
        three.classifier.out_proj.bias.copy_(torch.arange(3.0))
    names = ["neutral", "contradiction", "entailment"]
    three.config.id2label = dict(enumerate(names))
    three.config.label2id = {name: number for number, name in enumerate(names)}
    three.save_pretrained(tmp_path / "three")
    AutoTokenizer.from_pretrained(new_model("roberta", max_position_embeddings=66)).save_pretrained(tmp_path / "three")
    ordered = head(tmp_path / "three", "mnli", seed=1)
    assert ordered.config.id2label == {0: "entailment", 1: "neutral", 2: "contradiction"}
    assert torch.equal(ordered.classifier.out_proj.weight, three.classifier.out_proj.weight[[2, 0, 1]])
    assert ordered.classifier.out_proj.bias.tolist() == [2, 0, 1]
    assert torch.equal(ordered.classifier.dense.weight, three.classifier.dense.weight)
    assert "head" not in capsys.readouterr().err


def test_a_new_head_in_place_of_a_trained_one_is_told_once(
    teacher: Path, bert: Path, glue: Path, tmp_path: Path, new_job: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(model: Path, task: str = "sst2", **options: Any) -> list[str]:
        capsys.readouterr()
        for seed in (0, 1):
            new_job(model=str(model), task=task, task_data=str(glue), seed=seed, **options).new_model()
        return [line for line in capsys.readouterr().err.splitlines() if " head " in line]

    def line(model: Path, has: str, wants: str) -> list[str]:
        return [f"the head of the model '{model}' is new, because it has {has}, and the task has {wants}"]

    ours = "the labels 'negative', 'positive'"
    other = with_labels(teacher, tmp_path / "other", "positive", "mixed", order=[1, 0])
    assert told(other) == line(other, "the labels 'positive', 'mixed'", ours)
    three = with_labels(teacher, tmp_path / "three", "LABEL_0", "LABEL_1", "LABEL_2", order=[1, 0, 0])
    assert told(three) == line(three, "3 labels without names", ours)
    assert told(teacher, "stsb") == line(teacher, ours, "a score")
    assert told(other, freeze_encoder=True) == []
    assert told(bert) == told(bert, "mnli") == []  # which has no head
    assert told(teacher) == []


def test_a_head_for_a_number_is_kept_whatever_its_name(teacher: Path, glue: Path, tmp_path: Path, new_job: Any) -> None:
    options = {"task": "stsb", "task_data": str(glue)}
    job = new_job(model=str(teacher), **options)
    model = job.new_model()
    model.config.id2label, model.config.label2id = {0: "similarity"}, {"similarity": 0}
    model.save_pretrained(tmp_path / "scorer")
    job.tokenizer.save_pretrained(tmp_path / "scorer")
    again = new_job(model=str(tmp_path / "scorer"), **options, seed=1).new_model()
    assert torch.equal(again.classifier.weight, model.classifier.weight)


def test_a_step_has_the_rows_of_all_its_micro_batches(
    bert: Path, glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3, "max_steps": 1}
    finetuned(model=bert, task="sst2", task_data=glue, output_dir=tmp_path / "out", **batch)
    assert ", 12 a step · " in capsys.readouterr().err


def test_every_row_of_a_step_counts_the_same_although_the_last_micro_batch_is_shorter(
    new_model: NewModel, glue: Path, tmp_path: Path
) -> None:
    bert = new_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    args = FinetuneArguments(
        model=str(bert),
        task="sst2",
        task_data=str(glue),
        output_dir=str(tmp_path / "out"),
        use_cpu=True,
        per_device_train_batch_size=16,
        gradient_accumulation_steps=2,
        num_train_epochs=1,
        optim="sgd",
        learning_rate=0.5,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=0.0,
    )
    job = Job.prepare(args)
    assert len(job.train) % 32 not in (0, 16)
    assert len(job.train) < 32
    model = job.new_model().double().eval()
    losses = []
    for row in range(len(job.train)):
        batch = job.train.__getitems__([row])
        label = int(batch.pop("labels"))
        losses.append(-model(**batch).logits.log_softmax(dim=1)[0, label])
    mean = torch.stack(losses).mean()
    mean.backward()

    trainer, measured = train_once(job)
    assert measured["steps"] == 1
    assert trainer.state.log_history[0]["loss"] == pytest.approx(mean.item(), abs=1e-6)
    for (name, before), after in zip(model.named_parameters(), trainer.trained.parameters(), strict=True):
        torch.testing.assert_close(after.double(), before.detach() - 0.5 * before.grad, atol=1e-6, rtol=0, msg=name)


def test_the_best_checkpoint_by_score(bert: Path, glue: Path, tmp_path: Path) -> None:
    args = FinetuneArguments(
        model=str(bert),
        task="mnli",
        task_data=str(glue),
        output_dir=str(tmp_path / "out"),
        use_cpu=True,
        learning_rate=1e-3,
        max_steps=6,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
    )
    trainer, measured = train_once(Job.prepare(args), callbacks=[EarlyStoppingCallback(50)])
    seen = {e["step"]: e["eval_score"] for e in trainer.state.log_history[:-1] if "eval_score" in e}
    assert len(seen) == 6
    assert measured["score"] == max(seen.values())
    assert all("eval_dev_matched_accuracy" in e for e in trainer.state.log_history if "eval_score" in e)


@pytest.mark.parametrize("option", ["gradient_checkpointing", "bf16", "dataloader_drop_last"])
def test_options_of_training_arguments(bert: Path, glue: Path, tmp_path: Path, option: str) -> None:
    finetuned(model=bert, task="sst2", task_data=glue, output_dir=tmp_path / "out", max_steps=3, **{option: True})


def test_samples(bert: Path, glue: Path, tmp_path: Path) -> None:
    found = finetuned(
        model=bert,
        task="sst2",
        task_data=glue,
        output_dir=tmp_path / "o",
        max_train_samples=8,
        max_eval_samples=5,
        num_train_epochs=1,
    )
    assert found["rows"] == {"train": 8, "dev": 5}


def test_from_python(bert: Path, glue: Path, tmp_path: Path) -> None:
    args = FinetuneArguments(
        model=str(bert), task="sst2", task_data=str(glue), output_dir=str(tmp_path / "o"), max_steps=1, use_cpu=True
    )
    done = finetune(args)
    assert done.folder == tmp_path / "o"
    assert done.results == results(tmp_path / "o")
    assert flags(task="sst2")[0] == "finetune"


def test_defaults_are_by_task() -> None:
    def of(**options: Any) -> tuple[float, int, float, int]:
        args = FinetuneArguments(output_dir="-", use_cpu=True, **options)
        sizes: Json = vars(args)
        return tuple(
            sizes[n] for n in ("learning_rate", "per_device_train_batch_size", "num_train_epochs", "max_length")
        )

    assert of(task="sst2") == (3e-5, 32, 3, 128)
    assert of(task="imdb") == (3e-5, 32, 3, 512)
    assert of(task="squad") == (3e-5, 12, 2, 384)
    assert of(task="squad", teacher="t") == (5e-5, 12, 3, 384)
    assert of(task="squad", learning_rate=1e-4, num_train_epochs=1) == (1e-4, 12, 1, 384)


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_a_model_without_token_types_gets_a_tokenizer_without_them(
    new_model: NewModel, glue: Path, squad: Path, tmp_path: Path, kind: str
) -> None:
    """The tokenizer numbers two texts, of which the model has an embedding for one, or for none."""
    model = new_model(kind, **({"type_vocab_size": 1} if kind == "bert" else {}))
    assert "token_type_ids" in AutoTokenizer.from_pretrained(model)("bo", "do")
    finetuned(model=model, task="mnli", task_data=glue, output_dir=tmp_path / "out", num_train_epochs=1)
    classify = pipeline("text-classification", model=str(tmp_path / "out"), device="cpu")
    (said,) = classify([{"text": "bo bona", "text_pair": "do kim"}])
    assert said["label"] in ("entailment", "neutral", "contradiction")
    finetuned(model=model, task="squad", task_data=squad, output_dir=tmp_path / "spans", num_train_epochs=1)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "spans")
    inputs = loaded("bo ?", "bona kim", return_tensors="pt")
    assert "token_type_ids" not in inputs
    assert AutoModelForQuestionAnswering.from_pretrained(tmp_path / "spans")(**inputs).start_logits.isfinite().all()


def test_questions_as_the_hub_has_them_and_bad_rows_are_recorded(bert: Path, squad: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for split, name in (("train", "train.jsonl"), ("dev", "validation.jsonl")):
        dataset = read_squad(squad / f"{split}-v1.1.json").dataset.remove_columns("is_impossible")
        rows = [json.dumps(row) for row in dataset]
        write(folder / name, "\n".join([rows[0], rows[1][:-9], *rows[2:], ""]))
    options: dict[str, Any] = {"model": bert, "task": "squad", "num_train_epochs": 1, "on_bad_rows": "skip"}
    found = finetuned(**options, task_data=folder, output_dir=tmp_path / "out")
    assert found["rows"] == {"train": 11, "dev": 5}
    assert found["bad_rows"] == {"train": 1, "dev": 1}
    found = finetuned(**options, task_data=folder / "train.jsonl", output_dir=tmp_path / "one")
    assert sum(found["rows"].values()) == 11
    assert found["bad_rows"] == {"train and dev": 1}
