"""The trainer and its teacher: which never learns, is never saved, and only runs when it is needed."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from runs import distillation, new_trainer, pretraining, tensors
from transformers import BertConfig, BertForMaskedLM, BertTokenizer, TrainerCallback, TrainingArguments

from potstill import Corpus, DistillationTrainer, PotstillError, build_student, distill, prepare
from potstill.arguments import RunArguments
from potstill.finetuning.finetune_arguments import FinetuneArguments
from potstill.recipe import Recipe
from potstill.student import load_masked_lm
from potstill.training import compatibility
from potstill.training.predictor import Predictor


class Watch(TrainerCallback):
    """Note what the optimiser holds."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.learned = {id(p) for group in kwargs["optimizer"].param_groups for p in group["params"]}


def test_teacher_is_out_of_reach(teacher_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    watch = Watch()
    trainer = new_trainer(distillation(teacher_folder, corpus_folder, tmp_path / "student", max_steps=3), [watch])
    before = {name: tensor.clone() for name, tensor in trainer.teacher.state_dict().items()}
    initial = {name: tensor.clone() for name, tensor in trainer.student.state_dict().items()}
    trainer.train()

    assert watch.learned == {id(parameter) for parameter in trainer.student.parameters()}
    assert {id(p) for p in trainer.model.parameters()} == watch.learned
    assert not trainer.teacher.training
    assert trainer.student.training
    assert all(p.grad is None and not p.requires_grad for p in trainer.teacher.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.teacher.state_dict().items())
    assert not any(torch.equal(tensor, initial[name]) for name, tensor in trainer.student.named_parameters())

    saved = tensors(tmp_path / "student" / "checkpoint-3")
    assert saved.keys() == tensors_saved_by(trainer)
    moments = torch.load(tmp_path / "student" / "checkpoint-3" / "optimizer.pt", weights_only=True)
    assert len(moments["state"]) == len(list(trainer.student.parameters()))


def tensors_saved_by(trainer: DistillationTrainer) -> set[str]:
    """The student's tensors under its own names; the projection is tied to the word embeddings, so left out."""
    return {name for name in trainer.student.state_dict() if name != "vocab_projector.weight"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"embedding_size": 8}, "--embedding_size is for sentence encoders, which have an embedding of a text: leave"),
        ({"teacher_embeddings": "kept"}, "--teacher_embeddings is for sentence encoders, which learn embeddings of"),
    ],
)
def test_options_of_sentence_encoders_are_refused(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    args = distillation(teacher_folder, corpus_folder, tmp_path / "student", max_steps=1, **options)
    for train in (new_trainer, distill):
        with pytest.raises(PotstillError, match=told):
            train(args)
    assert not (tmp_path / "student").exists()


def test_placeholders_are_masked_and_control_tokens_never(
    text_path: Path, tiny_tokenizer: BertTokenizer, tmp_path: Path
) -> None:
    tokenizer = BertTokenizer(vocab=tiny_tokenizer.get_vocab(), extra_special_tokens=["<url>"], model_max_length=32)
    blocks = tmp_path / "blocks"
    prepare([str(text_path)], str(blocks), tokenizer=tokenizer, block_size=16, validation_fraction=0)  # type: ignore[arg-type]
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    student = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **sizes))
    trainer = DistillationTrainer(student, blocks, pretraining(blocks, tmp_path / "student", use_cpu=True))
    never = {name for name, number in tokenizer.get_vocab().items() if trainer.labelling.log_weights[number].isinf()}
    assert never == {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}


def test_teacher_rests_when_no_loss_needs_it(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict, used = Predictor.__call__, []

    def noting(self: Predictor, *args: Any, **options: Any) -> Any:
        used.append(type(self.model).__name__)
        return predict(self, *args, **options)

    monkeypatch.setattr(Predictor, "__call__", noting)
    options = {"max_steps": 2, "gradient_accumulation_steps": 1}
    args = distillation(teacher_folder, corpus_folder, tmp_path / "student", alpha_ce=0, alpha_cos=0, **options)
    trainer = new_trainer(args)
    trainer.train()
    assert used == ["DistilBertForMaskedLM"] * 2
    entry = trainer.state.log_history[0]
    assert entry["loss_mlm"] > 0
    assert "loss_ce" not in entry
    assert "loss_cos" not in entry
    assert "eval_teacher_loss" in trainer.evaluate()

    used.clear()
    new_trainer(distillation(teacher_folder, corpus_folder, tmp_path / "other", alpha_mlm=0, **options)).train()
    assert used == ["BertForMaskedLM", "DistilBertForMaskedLM"] * 2


def test_python_without_a_teacher(teacher_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    student = build_student(teacher_folder)
    args = distillation(teacher_folder, corpus_folder, tmp_path / "student", max_steps=1)
    with pytest.raises(PotstillError, match="need a teacher"):
        DistillationTrainer(student, corpus_folder, args)
    args.alpha_ce = args.alpha_cos = 0
    trainer = DistillationTrainer(student, str(corpus_folder), args)
    trainer.train()
    assert trainer.evaluate().keys() >= {"eval_loss", "eval_accuracy"}
    assert "eval_kl" not in trainer.evaluate()


def test_distilling_lowers_every_loss(teacher_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    args = distillation(teacher_folder, corpus_folder, tmp_path / "student", num_train_epochs=8)
    trainer = new_trainer(args)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_kl"] < 0.5 * before["eval_kl"]
    assert after["eval_cosine"] > before["eval_cosine"]
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    for name, share in (("loss", 0.9), ("loss_ce", 0.5), ("loss_cos", 0.8)):
        assert sum(e[name] for e in history[-5:]) < share * sum(e[name] for e in history[:5]), name


def test_bert_base_shape_on_a_cpu(teacher_folder: Path, text_path: Path, tmp_path: Path) -> None:
    corpus = prepare(
        [str(text_path)], str(tmp_path / "blocks"), str(teacher_folder), 32, validation_fraction=0.2, num_proc=1
    )
    teacher = BertForMaskedLM(BertConfig(vocab_size=30_522))
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student = build_student(teacher)
    assert sum(p.numel() for p in student.parameters()) == 66_985_530  # DistilBERT with its masked-LM head
    args = distillation(
        tmp_path,
        tmp_path,
        tmp_path / "student",
        max_steps=3,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        save_strategy="no",
    )
    trainer = DistillationTrainer(student, corpus, args, teacher)
    initial = student.vocab_transform.weight.clone()
    trainer.train()
    assert trainer.state.global_step == 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert not torch.equal(student.vocab_transform.weight, initial)


def test_gradient_checkpointing_changes_nothing(
    make_teacher: Callable[..., Path], corpus_folder: Path, tmp_path: Path
) -> None:
    teacher = make_teacher(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    learned = []
    for name, options in (("plain", {}), ("checkpointed", {"gradient_checkpointing": True})):
        folder = distill(distillation(teacher, corpus_folder, tmp_path / name, max_steps=2, **options))
        learned.append(tensors(folder))
    for name, tensor in learned[0].items():
        torch.testing.assert_close(learned[1][name], tensor, atol=1e-5, rtol=0)


def test_best_model_is_loaded_at_the_end(teacher_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    options = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_steps": 1,
        "max_steps": 3,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_learning_progress",
    }
    args = distillation(teacher_folder, corpus_folder, tmp_path / "student", greater_is_better=True, **options)
    trainer = new_trainer(args)
    evaluate = trainer.evaluate
    # The first step is made out to be the best one.
    trainer.evaluate = lambda *a, **o: evaluate() | {"eval_learning_progress": -trainer.state.global_step}
    trainer.train()
    saved = tensors(tmp_path / "student" / "checkpoint-1")
    assert all(torch.equal(trainer.student.state_dict()[name], tensor) for name, tensor in saved.items())
    assert trainer.state.best_model_checkpoint == str(tmp_path / "student" / "checkpoint-1")


def test_several_gpus_in_one_process_are_refused(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = distillation(teacher_folder, corpus_folder, tmp_path / "student")
    monkeypatch.setattr(Recipe, "n_gpu", 4)
    with pytest.raises(PotstillError, match=r"sees 4 GPUs: .*torchrun --nproc_per_node 4"):
        new_trainer(args)


@pytest.mark.parametrize(
    ("teacher", "student", "told"),
    [
        ({"vocab_size": 100}, {}, "The teacher knows 100 tokens"),
        ({"max_position_embeddings": 8}, {}, "The teacher reads at most 8 tokens"),
        ({}, {"max_position_embeddings": 8}, "The student reads at most 8 tokens"),
        ({}, {"vocab_size": 400}, "must share one vocabulary"),
        ({"hidden_size": 48}, {}, "give --alpha_cos 0"),
    ],
)
def test_models_that_do_not_fit(
    corpus: Corpus, tmp_path: Path, teacher: dict[str, int], student: dict[str, int], told: str
) -> None:
    def model(options: dict[str, int]) -> SimpleNamespace:
        sizes = {"vocab_size": 186, "hidden_size": 32, "num_attention_heads": 2, "max_position_embeddings": 32}
        return SimpleNamespace(config=BertConfig(**(sizes | options)))

    args = distillation(tmp_path, tmp_path, tmp_path / "student")
    objective = compatibility.objective_of(args)
    with pytest.raises(PotstillError, match=told):
        compatibility.check_fit(model(student), [model(teacher)], corpus, corpus.tokenizer(), objective)


def test_processes_that_do_not_know_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    args = SimpleNamespace(n_gpu=1, world_size=1, use_cpu=False, report_to=[], fp16=False)
    with pytest.raises(PotstillError, match=r"2 processes, but they are not connected.*--use_cpu"):
        compatibility.check_launch(args)
    fine = {"n_gpu": 1, "world_size": 2, "use_cpu": True, "report_to": [], "fp16": False, "unrecorded": ""}
    compatibility.check_launch(SimpleNamespace(**fine))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU would record")
def test_graphs_that_cannot_be_recorded_are_told_once(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compatibility._say_once.cache_clear()
    options: dict[str, Any] = {"max_steps": 2, "report_to": []}
    for cuda_graphs, lines in ((False, 0), (True, 1), (True, 0)):
        new_trainer(distillation(teacher_folder, corpus_folder, tmp_path, cuda_graphs=cuda_graphs, **options))
        assert capsys.readouterr().err.count("--cuda_graphs has no effect here: ") == lines


def test_why_graphs_are_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def why(device: str, processes: int, kind: type[RunArguments] = Recipe, **options: Any) -> str:
        args = kind(output_dir=str(tmp_path), use_cpu=True, **options)
        monkeypatch.setattr(RunArguments, "device", torch.device(device), raising=False)
        monkeypatch.setattr(RunArguments, "world_size", processes, raising=False)
        return args.unrecorded

    on_cpu = "it records the work of an NVIDIA GPU, and this run is on cpu"
    assert why("cpu", 1, cuda_graphs=True) == why("cpu", 2, cuda_graphs=True) == on_cpu
    assert why("cuda", 1, cuda_graphs=True) == why("cuda", 2, cuda_graphs=True) == why("cpu", 1) == ""
    assert FinetuneArguments.cuda_graphs  # by default, so nobody asked for it
    assert why("cpu", 1, FinetuneArguments, task="sst2", model="x") == ""


def test_a_cpu_has_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With several processes it has one. transformers before 5.18 loads the optimiser onto that device, which fails."""
    monkeypatch.setattr(TrainingArguments, "_setup_devices", property(lambda self: torch.device("cpu", 0)))
    assert TrainingArguments(output_dir=str(tmp_path), use_cpu=True).device.index == 0
    assert Recipe(output_dir=str(tmp_path), use_cpu=True).device.index is None


def test_half_precision_without_a_gpu_is_an_error(teacher_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PotstillError, match="--fp16 is for GPUs"):
        new_trainer(distillation(teacher_folder, corpus_folder, tmp_path / "student", fp16=True))


def test_pretraining_has_one_loss(corpus_folder: Path, teacher_folder: Path, tmp_path: Path) -> None:
    args = pretraining(corpus_folder, tmp_path / "model", max_steps=1)
    trainer = DistillationTrainer(load_masked_lm(teacher_folder), corpus_folder, args)
    trainer.train()
    entry = trainer.state.log_history[0]
    assert entry["loss"] == pytest.approx(entry["loss_mlm"], rel=1e-5)
    assert trainer.teacher is None


@pytest.mark.parametrize("as_object", [False, True])
def test_a_teacher_of_another_tokenizer_is_refused_from_python_too(
    teacher_folder: Path, text_path: Path, tmp_path: Path, as_object: bool
) -> None:
    corpus = prepare([str(text_path)], str(tmp_path / "other"), train_tokenizer=True, vocab_size=96, block_size=16)
    teacher = load_masked_lm(str(teacher_folder)) if as_object else str(teacher_folder)
    args = distillation(teacher_folder, tmp_path / "other", tmp_path / "student")
    with pytest.raises(PotstillError, match="was prepared with the tokenizer"):
        DistillationTrainer(build_student(str(teacher_folder)), corpus, args, teacher)


@pytest.mark.parametrize("name", ["label_smoothing_factor", "neftune_noise_alpha"])
def test_options_without_a_meaning_here_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PotstillError, match=f"--{name}"):
        distillation(tmp_path, tmp_path, tmp_path, **{name: 0.1})
