"""Several task teachers: the mean of their soft targets, and a head for each."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from finetuning_samples import SPANS, finetuned, flags, with_labels, write_lines
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from potstill.cli import main
from potstill.finetuning.job import Job
from potstill.finetuning.objective import NO_TAG, TaskObjective
from potstill.finetuning.several_teachers import mean_of_targets
from potstill.finetuning.step import TaskStep, run
from potstill.finetuning.teacher_heads import TeacherHeads
from potstill.finetuning.trainer import FinetuneTrainer

NewModel = Callable[..., Path]
NewJob = Callable[..., Job]

ROWS, LENGTH, CLASSES, TEACHERS, WIDTH = 5, 7, 4, 3, 6


@pytest.fixture
def generator() -> torch.Generator:
    generator = torch.Generator()
    generator.seed()
    return generator


def softmax(row: list[Tensor], temperature: float) -> list[Tensor]:
    powers = [torch.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def naive_soft_loss(student: list[Tensor], teachers: list[list[Tensor]], weights: list[float], t: float) -> Tensor:
    """KL of the weighted mean of the teachers' probabilities and the student's, times T², by its definition."""
    each = [softmax(row, t) for row in teachers]
    p = [sum(w * of[n] for w, of in zip(weights, each, strict=True)) for n in range(len(student))]
    return t * t * sum(a * torch.log(a / b) for a, b in zip(p, softmax(student, t), strict=True))


def data_of(kind: str, generator: torch.Generator) -> tuple[tuple[int, ...], dict[str, Tensor]]:
    """The shape of a kind's logits, and a batch with its labels."""
    batch = {"attention_mask": torch.ones(ROWS, LENGTH, dtype=torch.long)}
    if kind == "classes":
        return (ROWS, CLASSES), batch | {"labels": torch.randint(CLASSES, (ROWS,), generator=generator)}
    if kind == "scores":
        return (ROWS, 1), batch | {"labels": torch.randn(ROWS, generator=generator)}
    if kind == "sets":
        return (ROWS, CLASSES), batch | {"labels": torch.randint(2, (ROWS, CLASSES), generator=generator).float()}
    if kind == "tags":
        labels = torch.randint(CLASSES, (ROWS, LENGTH), generator=generator)
        labels[:, 0] = NO_TAG
        return (ROWS, LENGTH, CLASSES), batch | {"labels": labels}
    answers = torch.rand(ROWS, LENGTH, generator=generator) < 0.5
    answers[:, 2:4] = True
    batch["attention_mask"][0, -1], answers[0, -1] = 0, False
    places = torch.full((ROWS,), 2), torch.full((ROWS,), 3)
    batch |= {"answer_mask": answers, "start_positions": places[0], "end_positions": places[1]}
    return (ROWS, LENGTH, 2), batch


def naive_mean_square(kind: str, found: Tensor, teachers: Tensor, batch: dict[str, Tensor], w: list[float]) -> Tensor:
    """The squared difference to the mean of the logits, mean over rows of the mean over classes or positions."""
    inside = {"tags": batch.get("labels") != NO_TAG if kind == "tags" else None, "spans": batch.get("answer_mask")}
    rows = []
    for n in range(ROWS):
        each = [(found[n] - sum(a * z[n] for a, z in zip(w, teachers, strict=True))) ** 2]
        each = [each[0][at] for at in range(LENGTH) if inside[kind][n, at]] if kind in inside else each
        rows += [one.mean() for one in each] if kind == "tags" else [torch.stack(each).mean()]
    return sum(rows) / len(rows)


def naive(
    kind: str, found: Tensor, teachers: Tensor, batch: dict[str, Tensor], weights: list[float], t: float
) -> Tensor:
    """The loss on the mean of the soft targets in float64; logits and teachers are as the last layer gives them."""
    rows = []
    for n in range(ROWS):
        if kind == "scores":
            rows.append((found[n, 0] - sum(w * z[n, 0] for w, z in zip(weights, teachers, strict=True))) ** 2)
        elif kind == "classes":
            rows.append(naive_soft_loss([*found[n]], [[*z[n]] for z in teachers], weights, t))
        elif kind == "sets":  # two classes each, of which the second has the logit 0
            zero = torch.zeros((), dtype=found.dtype)
            rows += [
                naive_soft_loss([value, zero], [[z[n, c], zero] for z in teachers], weights, t)
                for c, value in enumerate(found[n])
            ]
        elif kind == "tags":
            inside = [at for at in range(LENGTH) if batch["labels"][n, at] != NO_TAG]
            rows += [naive_soft_loss([*found[n, at]], [[*z[n, at]] for z in teachers], weights, t) for at in inside]
        else:
            inside = [at for at in range(LENGTH) if batch["answer_mask"][n, at]]
            ends = [
                naive_soft_loss([*found[n, inside, e]], [[*z[n, inside, e]] for z in teachers], weights, t)
                for e in (0, 1)
            ]
            rows.append(sum(ends) / 2)
    return sum(rows) / len(rows)


class LastLayer(nn.Module):
    """A model that is a linear layer on states which stand in place of the ids."""

    def __init__(self, classes: int, spans: bool) -> None:
        super().__init__()
        self.last, self.spans = nn.Linear(WIDTH, classes), spans

    def forward(self, input_ids: Tensor, attention_mask: Tensor, output_hidden_states: bool = False) -> Any:
        logits = self.last(input_ids)
        start, end = (logits[..., 0], logits[..., 1]) if self.spans else (None, None)
        return SimpleNamespace(logits=logits, start_logits=start, end_logits=end)


@pytest.mark.parametrize(("heads", "soft_loss"), [("average", "kl"), ("separate", "kl"), ("average", "mse")])
@pytest.mark.parametrize("kind", ["classes", "scores", "sets", "tags", "spans"])
def test_losses_and_gradients_against_a_naive_version(
    generator: torch.Generator, kind: str, heads: str, soft_loss: Any
) -> None:
    spans = kind == "spans"
    shape, batch = data_of(kind, generator)
    teachers = 2 * torch.randn(TEACHERS, *shape, generator=generator)
    given = torch.rand(TEACHERS, generator=generator).double() + 0.1
    weights, t = (given / given.sum()).tolist(), 1.5
    for number, one in enumerate(teachers):
        suffix = f"_{number + 1}" if number else ""
        names = ("soft_start", "soft_end") if spans else ("soft",)
        batch |= {name + suffix: (one[..., e] if spans else one) for e, name in enumerate(names)}
    states = torch.randn(*shape[:-1], WIDTH, generator=generator).requires_grad_()
    model = LastLayer(shape[-1], spans)
    of_teachers = TeacherHeads(model.last, weights) if heads == "separate" else None
    if of_teachers is not None:
        for head in of_teachers.heads:  # they begin as copies
            assert torch.equal(head.weight, model.last.weight)
            nn.init.normal_(head.weight)
    objective = TaskObjective(alpha_ce=0.7, alpha_task=0.4, temperature=t, soft_loss=soft_loss)
    step = TaskStep(model, objective, weights=weights, heads=of_teachers)
    losses = step(input_ids=states, **batch)

    exact = states.detach().double().requires_grad_()
    layers = [model.last, *(of_teachers.heads if of_teachers is not None else ())]
    leaves = [[p.detach().double().requires_grad_() for p in layer.parameters()] for layer in layers]
    found = [exact @ weight.T + bias for weight, bias in leaves]
    if soft_loss == "mse":
        expected = naive_mean_square(kind, found[0], teachers.double(), batch, weights)
    elif of_teachers is None:
        expected = naive(kind, found[0], teachers.double(), batch, weights, t)
    else:
        each = [naive(kind, found[1 + n], teachers[n : n + 1].double(), batch, [1.0], t) for n in range(TEACHERS)]
        expected = sum(w * loss for w, loss in zip(weights, each, strict=True))
    torch.testing.assert_close(losses["ce"].double(), expected, rtol=1e-5, atol=1e-6)
    ours = torch.autograd.grad(losses["loss"], [states, *step.parameters()])
    start_end = (found[0][..., 0], found[0][..., 1]) if spans else found[0]
    task = TaskStep(model, objective)._of_task(start_end, batch, None)["task"]
    theirs = torch.autograd.grad(0.7 * expected + 0.4 * task, [exact, *(p for layer in leaves for p in layer)])
    assert len(ours) == len(theirs) == 1 + 2 * len(layers)
    for mine, other in zip(ours, theirs, strict=True):
        if not (spans and other.ndim == 1):  # a bias moves the scores of all positions alike: its gradient is 0
            assert other.abs().sum() > 0
        torch.testing.assert_close(mine.double(), other, rtol=1e-4, atol=1e-6)


def test_the_mean_of_one_teacher_is_that_teacher(generator: torch.Generator) -> None:
    """Its softmax is, over the positions of answers, and the mean of equal teachers too."""
    shape, batch = data_of("spans", generator)
    start, end = torch.randn(2, *shape[:-1], generator=generator)
    found = mean_of_targets([(start, end)] * 3, batch, (0.2, 0.3, 0.5), TaskObjective(temperature=2.0))
    outside = ~batch["answer_mask"]
    for mine, other in zip(found, (start, end), strict=True):
        assert (mine[outside] == 0).all()
        expected = (other / 2).masked_fill(outside, -torch.inf).softmax(dim=1)
        torch.testing.assert_close((mine / 2).masked_fill(outside, -torch.inf).softmax(dim=1), expected)


@pytest.fixture
def second(teacher: Path, tmp_path: Path) -> Path:
    """The teacher of SST-2 once more, with its labels in another order."""
    return with_labels(teacher, tmp_path / "second", "Positive", "NEGATIVE", order=[1, 0])


def test_each_teacher_has_its_labels_matched_and_its_fit_measured(
    teacher: Path, second: Path, distilbert: Path, glue: Path, new_job: NewJob
) -> None:
    options: dict[str, Any] = {"model": str(distilbert), "task": "sst2", "task_data": str(glue)}
    job = new_job(**options, teacher=[str(teacher), str(second)]).with_teacher()
    assert job.teacher_on_labels is not None
    assert job.teacher_on_labels[str(teacher)] == job.teacher_on_labels[str(second)]
    np.testing.assert_allclose(job.train.values["soft"], job.train.values["soft_2"], atol=1e-6)
    one = new_job(**options, teacher=[str(teacher)]).with_teacher()
    assert one.args.teacher == str(teacher)
    assert "soft_2" not in one.train.values
    np.testing.assert_array_equal(one.train.values["soft"], job.train.values["soft"])


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "modernbert"])
@pytest.mark.parametrize("alpha_task", [0.5, 0.0])
def test_folded_heads_give_the_mean_of_the_logits(
    teacher: Path, second: Path, new_model: NewModel, glue: Path, new_job: NewJob, kind: str, alpha_task: float
) -> None:
    model = str(new_model(kind))
    options: dict[str, Any] = {"model": model, "task": "sst2", "task_data": str(glue), "alpha_task": alpha_task}
    options |= {"teacher": [str(teacher), str(second)], "teacher_heads": "separate", "teacher_weights": [3.0, 1.0]}
    job = new_job(**options).with_teacher()
    trainer = FinetuneTrainer(job.new_model(), job)
    heads = trainer.model.heads
    for head in heads.heads:
        nn.init.normal_(head.weight)
    trained, batch = trainer.trained.eval(), job.train.__getitems__([0, 3, 4])
    with torch.no_grad():
        label, (first, other) = run(trained, batch).logits, heads(False)
        shares = (1 / 3, 1 / 2, 1 / 6) if alpha_task else (0, 3 / 4, 1 / 4)
        expected = sum(share * one.double() for share, one in zip(shares, (label, first, other), strict=True))
        with heads.folded():
            torch.testing.assert_close(run(trained, batch).logits.double(), expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(run(trained, batch).logits, label)
        heads.fold()
        torch.testing.assert_close(run(trained, batch).logits.double(), expected, rtol=1e-5, atol=1e-6)


def test_questions(span_teacher: Path, squad: Path, distilbert: Path, tmp_path: Path) -> None:
    """The saved model is an ordinary one and scores as the run says; the run without the teachers is made too."""
    finetuned(model=span_teacher, task="squad", task_data=squad, output_dir=tmp_path / "b", max_steps=3, seed=1)
    options: dict[str, Any] = {"task": "squad", "task_data": squad, "teacher": [span_teacher, tmp_path / "b"]}
    out = tmp_path / "out"
    found = finetuned(model=span_teacher, num_hidden_layers=1, output_dir=out, teacher_heads="separate", **options)
    assert found["teacher"] == f"{span_teacher}, {tmp_path / 'b'}"
    assert set(found["teacher_on_labels"]) == {str(span_teacher), str(tmp_path / "b")}
    assert found["without_teacher"]["steps"] == found["steps"]
    card = (out / "README.md").read_text()
    assert "soft targets of squad and b" in card
    assert "each by a head of its own; the head of this model is the mean of all heads" in card
    names = {name.removeprefix("distilbert.") for name in load_file(out / "model.safetensors")}
    assert {name for name in names if name.startswith("qa_outputs")} == {"qa_outputs.weight", "qa_outputs.bias"}
    model = AutoModelForQuestionAnswering.from_pretrained(out)
    assert model.config.num_hidden_layers == 1

    out = tmp_path / "mean"
    found = finetuned(model=distilbert, output_dir=out, teacher_weights=[2, 1], without_teacher_too=False, **options)
    assert found["hyperparameters"]["teacher_heads"] == "average"
    assert found["hyperparameters"]["teacher_weights"] == [2.0, 1.0]


def test_the_score_amid_and_after_the_training_is_that_of_the_saved_model(
    teacher: Path, second: Path, distilbert: Path, glue: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options: dict[str, Any] = {"model": distilbert, "task": "sst2", "task_data": glue, "eval_strategy": "epoch"}
    options |= {"teacher": [teacher, second], "teacher_heads": "separate", "without_teacher_too": False}
    found = finetuned(output_dir=out, learning_rate=5e-3, num_train_epochs=6, **options)
    scores = [entry["eval_score"] for entry in found["log_history"] if "eval_score" in entry]
    assert scores[-1] == scores[-2] == found["score"] > 80
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert type(model).__name__ == "DistilBertForSequenceClassification"
    again = finetuned(model=out, task="sst2", task_data=glue, output_dir=tmp_path / "again", learning_rate=1e-12)
    assert again["score"] == found["score"]


def test_rerankers_learn_from_the_mean_of_scores(bert: Path, tmp_path: Path, new_job: NewJob) -> None:
    rows = [{"query": f"bol {w}", "passage": f"{w} dola", "label": n % 2} for w in ("kim", "lun") for n in range(2)]
    rows = [row | {"passage": f"{row['passage']} {'bole' * n}"} for n, row in enumerate(rows)]
    write_lines(tmp_path / "rows.jsonl", rows)
    data = {"task": "rerank", "train_data": str(tmp_path / "rows.jsonl"), "eval_data": str(tmp_path / "rows.jsonl")}
    for name, seed in (("a", 1), ("b", 2)):
        finetuned(model=bert, output_dir=tmp_path / name, max_steps=1, seed=seed, **data)
    pair = [str(tmp_path / "a"), str(tmp_path / "b")]
    job = new_job(model=str(bert), teacher=pair, teacher_weights=[1.0, 3.0], **data).with_teacher()
    trainer = FinetuneTrainer(job.new_model(), job)
    trainer.model.eval()
    batch = next(iter(trainer.get_train_dataloader()))
    values = job.train.values
    mean = 0.25 * np.asarray(values["soft"], np.float64) + 0.75 * np.asarray(values["soft_2"], np.float64)
    assert not np.allclose(values["soft"], values["soft_2"])
    alone = {name: tensor for name, tensor in batch.items() if name != "soft_2"}
    order = [int(np.abs(np.asarray(values["soft"]) - value).argmin()) for value in batch["soft"].tolist()]
    alone["soft"] = torch.tensor(mean[order], dtype=torch.float32)
    torch.testing.assert_close(trainer.model(**batch)["loss"], trainer.model(**alone)["loss"])


def test_bad_input_is_refused_before_the_training(
    teacher: Path, second: Path, span_teacher: Path, new_model: NewModel, bert: Path, glue: Path, squad: Path,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def refused(**options: Any) -> str:
        args = {"model": bert, "task": "sst2", "task_data": glue, "output_dir": tmp_path / "refused"} | options
        capsys.readouterr()
        assert main(flags(**args)) == 1
        printed = capsys.readouterr().err
        assert len(printed.splitlines()) == 1, printed
        assert not (tmp_path / "refused").exists()
        return printed

    pair = [teacher, second]
    assert "has no trained head for this task" in refused(teacher=[teacher, bert])
    message = refused(teacher=[teacher, span_teacher])
    assert str(span_teacher) in message
    assert "has no trained head for this task" in message
    roberta = new_model("roberta")
    finetuned(model=roberta, task="squad", task_data=squad, output_dir=tmp_path / "roberta", max_steps=1)
    capsys.readouterr()
    spans = {"task": "squad", "task_data": squad, "teacher": [span_teacher, tmp_path / "roberta"]} | SPANS
    assert "has another tokenizer than the model: give a teacher with the same one" in refused(**spans)
    assert "--teacher_weights has 3 numbers, but there are 2 teachers" in refused(
        teacher=pair, teacher_weights=[1, 2, 3]
    )
    assert "--teacher_weights has 0.0: each weight must be above 0" in refused(teacher=pair, teacher_weights=[1, 0])
    twice = "twice: name it once, and let it count for more with --teacher_weights"
    for weights in (None, [2, 1]):
        assert twice in refused(teacher=[teacher, teacher], teacher_weights=weights)
    assert "is for several teachers: name them in --teacher" in refused(teacher=teacher, teacher_heads="separate")
    assert "is for several teachers: name them in --teacher" in refused(teacher=teacher, teacher_weights=[1])
    assert "compares with the hidden states of one teacher" in refused(teacher=pair, alpha_cos=1)
    message = refused(teacher=pair, teacher_heads="separate", quantization="int8")
    assert "does not go with --quantization, because rounded heads cannot be averaged" in message
    assert "teaches nothing with --alpha_ce 0" in refused(teacher=pair, teacher_heads="separate", alpha_ce=0)
    lists = {"task": "rerank", "train_data": glue / "x", "eval_data": glue / "x", "task_data": None}
    assert "is no option of rerank: give average" in refused(teacher=pair, teacher_heads="separate", **lists)


def test_heads_need_a_last_layer_that_is_linear(
    teacher: Path, second: Path, new_model: NewModel, glue: Path, new_job: NewJob
) -> None:
    options: dict[str, Any] = {"model": str(new_model("gpt2")), "task": "sst2", "task_data": str(glue)}
    job = new_job(**options, teacher=[str(teacher), str(second)], teacher_heads="separate").with_teacher()
    with pytest.raises(Exception, match=r"those of a gpt2 are not: give --teacher_heads average\."):
        FinetuneTrainer(job.new_model(), job)
