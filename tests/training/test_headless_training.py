"""Distilling teachers without a language-model head into encoders for fine-tuning."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from families_samples import SAMPLES
from runs import assert_same_tensors, distillation, tensors
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModel, BertForMaskedLM, BertModel, BertTokenizer, ElectraForPreTraining, PreTrainedModel

from potstill import (
    Corpus,
    DistillationTrainer,
    FinetuneArguments,
    PotstillError,
    build_student,
    distill,
    finetune,
)
from potstill.bench.flops import forward_flops
from potstill.student import family_of, is_headless, load_masked_lm, load_teacher
from potstill.training.layer_search import find_layers

SHARED = ("roberta", "distilbert", "deberta-v2")  # the other tests here use them, or those with the same code
FAMILIES = ("bert", "electra", "mpnet", "modernbert", "data2vec-text")
MEASURED = {"eval_strategy": "steps", "eval_on_start": True, "max_steps": 6, "save_strategy": "no"}
QUICK = {"gradient_accumulation_steps": 1, "per_device_train_batch_size": 8, "layers": "alternate"}


def random_encoder(model_type: str, vocab_size: int) -> PreTrainedModel:
    """An encoder of 4 layers, 24 wide, with every parameter random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = SAMPLES[model_type](vocab_size=vocab_size)
        model = ElectraForPreTraining(config) if model_type == "electra" else AutoModel.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


@pytest.fixture(scope="module")
def make_encoder(tiny_tokenizer: BertTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def make(model_type: str) -> Path:
        folder = tmp_path_factory.mktemp(model_type) / "teacher"
        random_encoder(model_type, len(tiny_tokenizer)).save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def bert_encoder(make_encoder: Callable[..., Path]) -> Path:
    return make_encoder("bert")


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("model_type", [*FAMILIES, *(pytest.param(kind, marks=pytest.mark.slow) for kind in SHARED)])
def test_an_encoder_of_each_family_learns(
    make_encoder: Callable[..., Path],
    corpus_folder: Path,
    tmp_path: Path,
    model_type: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    teacher = make_encoder(model_type)
    folder = distill(distillation(teacher, corpus_folder, tmp_path / "student", **MEASURED, **QUICK))
    assert "has no language-model head: its hidden states and its attention are distilled" in caplog.text
    initial, final = (results(folder)["held_out"][when] for when in ("initial", "final"))
    assert final["loss"] < initial["loss"] - 0.01
    assert final["cosine"] > initial["cosine"]
    assert initial.keys() == {"loss", "cosine"} | {
        name for name in initial if "per_second" in name or "runtime" in name
    }
    student, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert json.loads((folder / "config.json").read_text())["architectures"] == [type(student).__name__]
    assert type(student) is type(AutoModel.from_pretrained(teacher))
    assert student.config.num_hidden_layers == 2
    ids = torch.arange(5, 21)[None]
    found = family_of(student).encode(student, ids).last
    torch.testing.assert_close(student.eval()(input_ids=ids).last_hidden_state, found)
    losses = yaml.safe_load((folder / "recipe.yaml").read_text())["losses"]
    assert set(losses) == {"hidden_cosine", *(["attention_relations"] if model_type != "data2vec-text" else [])}


@pytest.mark.parametrize("layout", ["deberta", "sentence-transformers"])
def test_other_folders_without_a_head(
    make_encoder: Callable[..., Path],
    corpus_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    layout: str,
) -> None:
    teacher = make_encoder("deberta-v2" if layout == "deberta" else "bert")
    if layout == "deberta":  # a discriminator of version 3, with the head of the generator beside its own
        weights = {f"deberta.{name}": tensor for name, tensor in tensors(teacher).items()}
        heads = {"mask_predictions.dense.weight": torch.ones(24, 24), "lm_predictions.lm_head.bias": torch.ones(3)}
        save_file(weights | heads, teacher / "model.safetensors", {"format": "pt"})
        expected = "has no language-model head"
    else:
        (teacher / "modules.json").write_text("[]")
        expected = "A corpus prepared with --unit sentences would distil its embeddings."
    options = {"max_steps": 1, "save_strategy": "no", **QUICK}
    folder = distill(distillation(teacher, corpus_folder, tmp_path / "student", **options))
    assert expected in caplog.text
    assert is_headless(load_teacher(folder))


def test_the_pooler_and_all_outside_of_the_layers_are_copied(bert_encoder: Path, tmp_path: Path) -> None:
    teacher = BertModel.from_pretrained(bert_encoder)
    student = build_student(bert_encoder, layers=[1, 3])
    assert torch.equal(student.pooler.dense.weight, teacher.pooler.dense.weight)
    assert torch.equal(student.embeddings.token_type_embeddings.weight, teacher.embeddings.token_type_embeddings.weight)
    ours, theirs = student.encoder.layer[1].state_dict(), teacher.encoder.layer[3].state_dict()
    assert_same_tensors(ours, theirs)
    BertModel(teacher.config, add_pooling_layer=False).save_pretrained(tmp_path)
    assert build_student(tmp_path).pooler is None  # a random one would look as if it had been trained


def test_a_part_of_a_head_is_no_encoder(teacher_folder: Path, tmp_path: Path) -> None:
    model = BertForMaskedLM.from_pretrained(teacher_folder)
    model.save_pretrained(tmp_path)
    weights = tensors(tmp_path)
    del weights["cls.predictions.transform.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(PotstillError, match="no complete language-model head"):
        load_teacher(tmp_path)


@pytest.mark.parametrize("narrow", [False, True])
def test_the_held_out_figures(bert_encoder: Path, corpus_folder: Path, tmp_path: Path, narrow: bool) -> None:
    """They are those of a naive computation in float64, of plain text."""
    teacher = load_teacher(bert_encoder).double()
    student = build_student(teacher, 2, hidden_size=16 if narrow else None, seed=3)
    if narrow:
        losses: dict[str, Any] = {"attention_relations": {"weight": 0.5, "relation_heads": 4}, "hidden_mse": 2}
    else:
        losses = {"attention_relations": {"weight": 0.5, "relation_heads": 6}, "hidden_cosine": 2}
    args = distillation(bert_encoder, corpus_folder, tmp_path, losses=losses)
    trainer = DistillationTrainer(student, corpus_folder, args, teacher)
    found = trainer.evaluate()
    corpus = Corpus.open(corpus_folder)
    ids = torch.stack([block["input_ids"] for block in corpus.validation])
    project: Callable[[Tensor], Tensor] = lambda hidden: hidden  # noqa: E731
    if narrow:
        [linear] = trainer.step.objective_modules["hidden_mse"]
        project = lambda hidden: hidden @ linear.weight.double().T + linear.bias.double()  # noqa: E731
    heads = losses["attention_relations"]["relation_heads"]
    states, relations = [], []
    for model in (teacher, student.double().eval()):
        layer = model.encoder.layer[-1]
        with torch.no_grad():
            hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
            made = [part(hidden[-2]) for part in (layer.attention.self.query, layer.attention.self.key)]
            made.append(layer.attention.self.value(hidden[-2]))
        states.append(hidden[-1])
        split = [one.unflatten(-1, (heads, -1)).transpose(1, 2) for one in made]
        relations.append([(one @ one.mT / math.sqrt(one.shape[-1])).softmax(-1) for one in split])
    with torch.no_grad():
        mapped = project(states[1])
    cosine = F.cosine_similarity(mapped, states[0], dim=-1).mean().item()
    of_states = (mapped - states[0]).square().mean().item() if narrow else 1 - cosine
    kl = sum((p * (p / q).log()).sum(-1).mean().item() for p, q in zip(*relations, strict=True))
    assert found["eval_cosine"] == pytest.approx(cosine, rel=1e-5)
    assert found["eval_loss"] == pytest.approx(2 * of_states + 0.5 * kl, rel=1e-4)


def test_a_narrow_student_resumes_exactly(bert_encoder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    """With its dropout, and the projection that is trained with it."""
    options = {"hidden_size": 16, "max_steps": 6, "save_steps": 4, **QUICK}
    whole = distill(distillation(bert_encoder, corpus_folder, tmp_path / "whole", **options))
    losses = yaml.safe_load((whole / "recipe.yaml").read_text())["losses"]
    assert losses == {"hidden_mse": 1.0, "attention_relations": {"weight": 1.0, "relation_heads": 2}}
    resumed = distill(
        distillation(
            bert_encoder, corpus_folder, tmp_path / "resumed", **options, resume_from_checkpoint=f"{whole}/checkpoint-4"
        )
    )
    assert_same_tensors(tensors(resumed), tensors(whole))
    card = " ".join((whole / "README.md").read_text().split())
    assert "An encoder for fine-tuning, without a head: a `bert` of 2 layers, 16 wide" in card
    assert "pipeline_tag: feature-extraction" in card
    assert "| student, trained |" in card


def test_an_encoder_of_a_language_model(teacher_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    options = {"headless": True, "max_steps": 2, "save_strategy": "no", "layers": None} | MEASURED
    folder = distill(distillation(teacher_folder, corpus_folder, tmp_path / "student", **(QUICK | options)))
    assert type(load_teacher(folder)) is BertModel
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert recipe["headless"] is True
    assert not {"masking", "mlm_probability", "alpha_ce", "fold_token_types"} & recipe.keys()
    search = results(folder)["layer_search"]
    assert recipe["layers"] == ",".join(map(str, search["tried"][0]["layers"]))
    assert search["tried"][0].keys() == {"layers", "loss"}
    assert "| layers | 1 − cosine |" in (folder / "README.md").read_text()


def test_several_teachers(bert_encoder: Path, teacher_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    """If one of them has no head, none is used with its head; their widths may differ."""
    options = {"max_steps": 1, "save_strategy": "no", "teacher_weights": [3, 1], **QUICK}
    args = distillation(teacher_folder, corpus_folder, tmp_path / "student", **options)
    args.teacher = [str(teacher_folder), str(bert_encoder)]
    folder = distill(args)
    losses = yaml.safe_load((folder / "recipe.yaml").read_text())["losses"]
    assert losses == {"hidden_mse": 1.0, "attention_relations": {"weight": 1.0, "relation_heads": 2}}
    assert type(load_teacher(folder)) is BertModel
    assert "The losses are weighted means of those for each teacher." in (folder / "README.md").read_text()


def test_layers_are_measured_by_hidden_states(bert_encoder: Path, corpus_folder: Path) -> None:
    teacher = load_teacher(bert_encoder)
    search = find_layers(teacher, corpus_folder, 2)
    ids = torch.stack([block["input_ids"] for block in Corpus.open(corpus_folder).validation])
    with torch.no_grad():
        expected = teacher(input_ids=ids).last_hidden_state
        for score in search.tried:
            found = build_student(teacher, layers=score.layers)(input_ids=ids).last_hidden_state
            assert score.loss == pytest.approx(1 - F.cosine_similarity(found, expected, dim=-1).mean().item(), abs=1e-5)
    assert search.layers == list(min(search.tried, key=lambda score: score.loss).layers)


def test_the_models_read_plain_text(bert_encoder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    args = distillation(bert_encoder, corpus_folder, tmp_path)
    trainer = DistillationTrainer(build_student(bert_encoder), corpus_folder, args, str(bert_encoder))
    batch = Corpus.open(corpus_folder).train.__getitems__([0, 3])
    read = trainer.labelling(batch["input_ids"], batch["sample_index"])
    assert torch.equal(read.input_ids, batch["input_ids"])
    assert read.labels.shape == (2, 0)


def test_a_budget_for_an_encoder(bert_encoder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    options = {"max_size": "50kB", "max_steps": 1, "save_strategy": "no", **QUICK}
    found = results(distill(distillation(bert_encoder, corpus_folder, tmp_path / "student", **options)))["max_size"]
    assert found["file_bytes"] <= 50_000
    assert found["estimate"]["file_bytes"] == pytest.approx(found["file_bytes"], rel=0.01)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"masking": "uniform"}, "--masking is for language models.*reads plain text: leave it out"),
        ({"alpha_mlm": 1.0}, "--alpha_mlm is for language models.*give the losses with --losses"),
        ({"fold_token_types": False}, "--fold_token_types is for language models"),
        ({"losses": {"soft_targets": 1, "hidden_cosine": 1}}, "losses: soft_targets cannot be computed without a lang"),
        (
            {"losses": {"hidden_cosine": {"tokens": "masked"}}},
            "hidden_cosine is taken at masked tokens, but this",
        ),
        ({"losses": {"masked_lm": 1}}, "losses: masked_lm cannot be computed without a language-model head"),
        ({"losses": {"embedding_cosine": 1}}, "losses: embedding_cosine cannot be computed here.*and not whole texts"),
        ({"hidden_size": 16, "losses": {"hidden_cosine": 1}}, "16"),
    ],
)
def test_what_is_refused(
    bert_encoder: Path, corpus_folder: Path, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(PotstillError, match=said):
        distill(distillation(bert_encoder, corpus_folder, tmp_path / "student", **(QUICK | options)))
    assert not (tmp_path / "student").exists()


def test_it_is_fine_tuned(bert_encoder: Path, tmp_path: Path, no_hub: None) -> None:
    """As a sentence encoder without a pooler, too."""
    folder = tmp_path / "encoder"
    encoder = build_student(bert_encoder, 2)
    encoder.pooler = None
    encoder.save_pretrained(folder)
    BertTokenizer.from_pretrained(bert_encoder).save_pretrained(folder)
    (folder / "modules.json").write_text("[]")
    (tmp_path / "SST-2").mkdir()
    rows = "".join(f"{word} lum\t{label}\n" for word, label in (("bol", 0), ("kim", 1)) * 8)
    for split in ("train", "dev"):
        (tmp_path / "SST-2" / f"{split}.tsv").write_text("sentence\tlabel\n" + rows)
    options: dict[str, Any] = {"num_train_epochs": 1, "max_length": 16, "use_cpu": True, "save_strategy": "no"}
    args = FinetuneArguments(str(tmp_path / "out"), model=str(folder), task="sst2", task_data=str(tmp_path), **options)
    assert finetune(args).results["rows"]["train"] == 16
    tuned = BertModel.from_pretrained(tmp_path / "out")
    assert tuned.config.num_hidden_layers == 2


def test_a_pooler_is_not_counted(bert_encoder: Path) -> None:
    """It is computed for one token of a block, and not for each."""
    encoder = load_teacher(bert_encoder)
    assert forward_flops(encoder, 16) == forward_flops(BertForMaskedLM(encoder.config), 16, head_share=0)


def test_a_head_on_one_side_alone(teacher_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    teacher = load_masked_lm(teacher_folder)
    args = distillation(teacher_folder, corpus_folder, tmp_path)
    with pytest.raises(PotstillError, match="The student has no language-model head but the teacher has one"):
        DistillationTrainer(build_student(load_teacher(teacher_folder, headless=True)), corpus_folder, args, teacher)
