"""A task teacher: what it says is what is learned from, of its own tokenizer and token types."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetuning_samples import SPANS, finetuned, flags, with_labels, write_lines
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from potstill import PotstillError
from potstill.cli import main
from potstill.finetuning.job import Job
from potstill.finetuning.predict import predict
from potstill.finetuning.trainer import FinetuneTrainer

NewModel = Callable[..., Path]
NewJob = Callable[..., Job]


def test_sentences(teacher: Path, distilbert: Path, glue: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options: dict[str, Any] = {"model": distilbert, "task": "sst2", "task_data": glue}
    found = finetuned(**options, output_dir=out, teacher=teacher)
    assert found["teacher"] == str(teacher)
    losses = [entry for entry in found["log_history"] if "loss" in entry]
    for entry in losses:
        assert entry["loss"] == pytest.approx((entry["loss_ce"] + entry["loss_task"]) / 2, rel=1e-3)
    alone = finetuned(**options, output_dir=tmp_path / "alone")
    assert found["without_teacher"]["score"] == alone["score"]
    assert found["without_teacher"]["metrics"] == alone["metrics"]
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == []
    card = (out / "README.md").read_text()
    assert "soft targets of sst2 (weight 0.5, temperature 2.0)" in card
    assert "same run without it" in card

    only = finetuned(**options, output_dir=tmp_path / "only", teacher=teacher, without_teacher_too=False)
    assert only["without_teacher"] is None
    assert only["metrics"] == found["metrics"]


def test_a_student_taught_by_soft_targets_alone_says_what_its_teacher_says(
    teacher: Path, distilbert: Path, glue: Path, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong"  # the labels are the wrong way round, the teacher is not
    shutil.copytree(glue / "SST-2", wrong)
    text = (wrong / "train.tsv").read_text()
    (wrong / "train.tsv").write_text(text.replace("\t0", "\tx").replace("\t1", "\t0").replace("\tx", "\t1"))
    options: dict[str, Any] = {"model": distilbert, "teacher": teacher, "task": "sst2", "task_data": wrong}
    options |= {"num_train_epochs": 10, "learning_rate": 5e-3, "without_teacher_too": False}
    taught = finetuned(**options, output_dir=tmp_path / "taught", alpha_task=0.0, alpha_ce=1.0)
    assert taught["score"] == 100
    told = finetuned(**options, output_dir=tmp_path / "told", alpha_task=1.0, alpha_ce=0.0)
    assert told["score"] == 0


def test_a_teacher_of_another_tokenizer(
    teacher: Path, new_model: NewModel, glue: Path, new_job: NewJob, span_teacher: Path, squad: Path
) -> None:
    roberta = str(new_model("roberta"))
    options: dict[str, Any] = {"model": roberta, "task": "sst2", "task_data": str(glue)}
    taught = new_job(**options, teacher=str(teacher)).with_teacher()
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(teacher),
        AutoTokenizer.from_pretrained(teacher),
    )
    for text, soft in zip(taught.data.train["text"][:], taught.train.values["soft"], strict=True):
        with torch.no_grad():
            expected = model.eval()(**tokenizer(text, return_tensors="pt")).logits[0]
        np.testing.assert_allclose(soft, expected.numpy(), atol=1e-5)
    with pytest.raises(PotstillError, match=r"token by token, but the teacher .* another tokenizer .* --alpha_cos 0"):
        new_job(**options, teacher=str(teacher), alpha_cos=1.0).with_teacher()
    spans = {"task": "squad", "task_data": str(squad), "model": roberta, "teacher": str(span_teacher)}
    with pytest.raises(PotstillError, match=r"token positions, but the teacher .* with the same one\."):
        new_job(**spans, **SPANS).with_teacher()


def without_token_types(folder: Path, place: Path) -> Path:
    """Copy a model whose tokenizer then gives no token types, as DistilBERT's on the hub does."""
    shutil.copytree(folder, place)
    tokenizer = AutoTokenizer.from_pretrained(place, model_input_names=["input_ids", "attention_mask"])
    tokenizer.save_pretrained(place)
    return place


@pytest.mark.parametrize("alpha_cos", [0.0, 1.0])
def test_a_teacher_gets_its_token_types_though_the_student_has_none(
    bert: Path, distilbert: Path, glue: Path, tmp_path: Path, new_job: NewJob, alpha_cos: float
) -> None:
    finetuned(model=bert, task="mnli", task_data=glue, output_dir=tmp_path / "teacher")
    student = without_token_types(distilbert, tmp_path / "student")
    options: dict[str, Any] = {"task": "mnli", "task_data": str(glue), "teacher": str(tmp_path / "teacher")}
    job = new_job(model=str(student), alpha_cos=alpha_cos, **options)
    assert "token_type_ids" not in job.train.tokens
    taught = job.with_teacher()
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "teacher").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "teacher")
    data = job.data.train
    inputs = [tokenizer(*pair, return_tensors="pt") for pair in zip(data["text"][:], data["pair"][:], strict=True)]
    assert all(ids["token_type_ids"].any() for ids in inputs)
    with torch.no_grad():
        expected = [model(**ids, output_hidden_states=True) for ids in inputs]
    soft = torch.cat([out.logits for out in expected]).numpy()
    np.testing.assert_allclose(taught.train.values["soft"], soft, atol=1e-5)
    if not alpha_cos:
        return
    trainer = FinetuneTrainer(job.new_model(), taught)
    batch = taught.train.__getitems__([0, 1])
    trainer.trained.eval()
    loss = trainer.model(**batch)["cos"]
    student_states = trainer.trained(batch["input_ids"], batch["attention_mask"], output_hidden_states=True)
    mine = [student_states.hidden_states[-1][row, : taught.train.lengths[row]] for row in (0, 1)]
    theirs = [expected[row].hidden_states[-1][0] for row in (0, 1)]
    cosine = torch.cosine_similarity(torch.cat(mine), torch.cat(theirs), dim=-1)
    assert loss.item() == pytest.approx(1 - cosine.mean().item(), abs=1e-5)


@pytest.mark.parametrize(("task", "soft_positions"), [("squad", "answer"), ("squad_v2", "all")])
def test_questions(
    span_teacher: Path, distilbert: Path, squad: Path, tmp_path: Path, task: str, soft_positions: str
) -> None:
    found = finetuned(
        model=distilbert,
        teacher=span_teacher,
        task=task,
        task_data=squad,
        output_dir=tmp_path / "out",
        soft_positions=soft_positions,
        num_train_epochs=1,
    )
    assert found["without_teacher"]["metrics"].keys() == found["metrics"].keys()


def test_soft_targets_of_spans_lie_beside_their_tokens(
    span_teacher: Path, distilbert: Path, squad: Path, new_job: NewJob
) -> None:
    options: dict[str, Any] = {"task": "squad", "task_data": str(squad), "teacher": str(span_teacher)} | SPANS
    taught = new_job(model=str(distilbert), **options).with_teacher()
    itself = new_job(model=str(span_teacher), **options)
    found = predict(itself.new_model(), itself.train, 3)
    batch = taught.train.__getitems__([3, 0])
    at = np.cumsum([0, *taught.train.lengths])
    for row, window in enumerate((3, 0)):
        length = taught.train.lengths[window]
        for name in ("start", "end"):
            expected = found[f"{name}_logits"][at[window] : at[window] + length]
            np.testing.assert_allclose(batch[f"soft_{name}"][row, :length].numpy(), expected, atol=1e-5)
            assert (batch[f"soft_{name}"][row, length:] == 0).all()


def test_regression(bert: Path, distilbert: Path, glue: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"task": "stsb", "task_data": glue, "num_train_epochs": 1}
    finetuned(model=bert, output_dir=tmp_path / "teacher", **options)
    finetuned(model=distilbert, teacher=tmp_path / "teacher", output_dir=tmp_path / "out", **options)


@pytest.fixture
def refused(glue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], distilbert: Path) -> Callable[..., str]:
    def run(**options: Any) -> str:
        args = {"model": distilbert, "task": "sst2", "task_data": glue, "output_dir": tmp_path / "refused"} | options
        capsys.readouterr()
        assert main(flags(**args)) == 1
        printed = capsys.readouterr().err
        assert len([line for line in printed.splitlines() if not line.startswith("computing ")]) == 1, printed
        assert not (tmp_path / "refused").exists()
        return printed

    return run


def test_teachers_that_cannot_teach(
    refused: Callable[..., str], bert: Path, teacher: Path, span_teacher: Path, squad: Path, new_model: NewModel
) -> None:
    message = refused(teacher=teacher, task="mnli")
    assert "lacks the task's labels 'entailment', 'neutral', 'contradiction', and has 'negative', 'positive'" in message
    assert "has 2 labels, but the task has 1" in refused(teacher=teacher, task="stsb")
    assert "has no trained head for this task" in refused(teacher=bert)
    assert "has no trained head for this task" in refused(teacher=teacher, task="squad", task_data=squad)
    assert "does not exist" in refused(teacher="/nowhere/at/all")
    message = refused(teacher=teacher, alpha_ce=0, alpha_task=0)
    assert "--alpha_ce is 0.0: it is 0, and so is every other weight" in message
    wide = new_model("distilbert", dim=48)
    assert "teacher's are 32 wide and the model's 48: give --alpha_cos 0" in refused(
        teacher=teacher, model=wide, alpha_cos=1
    )


def test_a_teacher_that_reads_less_than_the_student(
    new_model: NewModel, squad: Path, distilbert: Path, tmp_path: Path, new_job: NewJob
) -> None:
    short = new_model("bert", max_position_embeddings=96)
    finetuned(model=short, task="squad", task_data=squad, output_dir=tmp_path / "teacher", max_steps=1)
    options: dict[str, Any] = {"task": "squad", "task_data": str(squad), "teacher": str(tmp_path / "teacher")}
    job = new_job(model=str(distilbert), stride=8, **options)
    assert job.train.limit == 128
    with pytest.raises(PotstillError, match=r"reads at most 96 tokens and the model reads 128: give --max_length 96"):
        job.with_teacher()


def test_a_teacher_whose_labels_stand_in_another_order_is_read_by_their_names(
    refused: Callable[..., str],
    teacher: Path,
    distilbert: Path,
    glue: Path,
    tmp_path: Path,
    new_job: NewJob,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options: dict[str, Any] = {"model": str(distilbert), "task": "sst2", "task_data": str(glue)}
    expected = new_job(**options, teacher=str(teacher)).with_teacher()
    assert expected.teacher_on_labels is not None
    assert expected.teacher_on_labels["accuracy"] == 100
    assert (
        "the teacher on the training labels: 100.0 % of its predictions agree with the labels"
        in capsys.readouterr().err
    )
    swapped = with_labels(teacher, tmp_path / "swapped", "Positive", "NEGATIVE", order=[1, 0])
    taught = new_job(**options, teacher=str(swapped)).with_teacher()
    np.testing.assert_allclose(taught.train.values["soft"], expected.train.values["soft"], atol=1e-6)
    for number, names in enumerate((("LABEL_0", "LABEL_1"), ("0", "1"))):
        unnamed = with_labels(teacher, tmp_path / f"unnamed-{number}", *names, order=[1, 0])
        message = refused(teacher=unnamed)
        assert "training labels: 0.0 % of its predictions agree with the labels (expected by chance: 50.0 %)" in message
        assert "another order (0 as positive, 1 as negative), 100.0 % would agree: in id2label" in message
        right = with_labels(teacher, tmp_path / f"right-{number}", *names, order=[0, 1])
        taught = new_job(**options, teacher=str(right)).with_teacher()
        np.testing.assert_allclose(taught.train.values["soft"], expected.train.values["soft"], atol=1e-6)
    new_job(
        **options, teacher=str(unnamed), alpha_ce=0.0, alpha_cos=1.0
    ).with_teacher()  # of which no answer is learned


def test_a_teacher_of_other_labels(
    refused: Callable[..., str],
    teacher: Path,
    distilbert: Path,
    glue: Path,
    tmp_path: Path,
    new_job: NewJob,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = with_labels(teacher, tmp_path / "other", "good", "negative", order=[1, 0])
    message = refused(teacher=other)
    assert "lacks the task's label 'positive', and has 'good', which the task does not have: give one " in message
    fewer = with_labels(teacher, tmp_path / "fewer", "LABEL_0", "LABEL_1", "LABEL_2", order=[1, 0, 0])
    assert "has 3 labels without names, but the task has 2" in refused(teacher=fewer)
    twice = with_labels(teacher, tmp_path / "twice", "good", "positive", "Good", order=[1, 0, 0])
    assert "has the label 'good' more than once" in refused(teacher=twice)

    options: dict[str, Any] = {"model": str(distilbert), "task": "sst2", "task_data": str(glue)}
    expected = new_job(**options, teacher=str(teacher)).with_teacher().train.values["soft"]
    capsys.readouterr()
    more = with_labels(teacher, tmp_path / "more", "positive", "unclear", "Negative", order=[1, 0, 0])
    taught = new_job(**options, teacher=str(more)).with_teacher()
    np.testing.assert_allclose(taught.train.values["soft"], expected, atol=1e-6)
    odds = np.exp(np.asarray(expected, np.float64))  # the label that is left out has the logits of negative
    left_out = 100 * (odds[:, 0] / (odds.sum(1) + odds[:, 0])).mean()
    assert taught.teacher_on_labels is not None
    assert taught.teacher_on_labels["probability_left_out"] == pytest.approx(left_out, abs=1e-3)
    line = f"label 'unclear' is left out, because the task does not have it; the teacher gave {left_out:.1f} %"
    assert line in capsys.readouterr().err


def test_a_teacher_whose_scores_are_the_wrong_way_round(
    refused: Callable[..., str], bert: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    for split in ("train", "dev"):  # the first word tells the score
        pairs = [(f"{('bol', 'kim')[n % 2]} do", "lum", 5.0 * (n % 2)) for n in range(20)]
        rows = [{"sentence1": first, "sentence2": second, "label": score} for first, second, score in pairs]
        write_lines(data / "STS-B" / f"{split}.jsonl", rows)
    found, options = tmp_path / "teacher", {"task": "stsb", "task_data": data}
    learned = finetuned(model=bert, output_dir=found, num_train_epochs=15, learning_rate=5e-3, **options)
    assert learned["metrics"]["pearson"] > 90
    weights = load_file(found / "model.safetensors")
    turned = {name: -tensor for name, tensor in weights.items() if name.startswith("classifier")}
    save_file(weights | turned, found / "model.safetensors", {"format": "pt"})
    message = refused(teacher=found, **options)
    assert re.search(r"contradicts the training labels: the Pearson .* with the labels is -(9|100)", message)
    assert "its scores are high where the labels are low" in message


def test_a_recorded_run_says_how_its_teacher_fares(
    span_teacher: Path, bert: Path, squad: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"model": bert, "task": "squad", "task_data": squad, "without_teacher_too": False}
    found = finetuned(teacher=span_teacher, output_dir=tmp_path / "out", max_steps=1, **options)
    assert 0 <= found["teacher_on_labels"]["exact"] <= 100
    assert "of the windows with an answer have their best start and end at the answer" in capsys.readouterr().err
