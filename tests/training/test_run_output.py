"""What a run leaves: a folder that loads anywhere, a card and results that agree, a recipe that reruns it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from runs import assert_same_tensors, checkpoints, distillation, new_trainer, pretraining, tensors
from samples import WORDS
from transformers import AutoModelForMaskedLM, AutoTokenizer

from potstill import distill, pretrain
from potstill.cli import main

FILES = ["README.md", "config.json", "model.safetensors", "recipe.yaml", "results.json"]
FILES += ["tokenizer.json", "tokenizer_config.json"]


@pytest.fixture(scope="module")
def student(teacher_folder: Path, corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = {
        "eval_strategy": "steps",
        "eval_steps": 4,
        "eval_on_start": True,
        "num_train_epochs": 2,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr": 1e-4},
        "layers": "1,3",
        "alpha_ce": 3.5,
        "soft_targets": "masked",
        "masking": "uniform",
        "seed": 5,
        "bf16": False,
    }
    folder = tmp_path_factory.mktemp("output") / "student"
    return distill(distillation(teacher_folder, corpus_folder, folder, **options))


def test_nothing_private_is_written(teacher_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    args = distillation(teacher_folder, corpus_folder, tmp_path / "student", max_steps=1, hub_token="hf_secret")
    folder = distill(args)
    for name in ("README.md", "recipe.yaml", "results.json"):
        assert "hf_secret" not in (folder / name).read_text(), name
    header = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert "base_model" not in header  # the teacher is a folder of this machine, not a model of the hub


def test_a_spent_budget_leaves_a_checkpoint(teacher_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    options = {"max_train_minutes": 1e-6, "save_strategy": "steps", "save_steps": 1000, "num_train_epochs": 50}
    distill(distillation(teacher_folder, corpus_folder, tmp_path / "student", **options))
    assert checkpoints(tmp_path / "student") == ["checkpoint-1"]


ELSEWHERE = """
import sys
sys.modules["potstill"] = None  # importing it now fails
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

folder = sys.argv[1]
model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
assert type(model).__name__ == "DistilBertForMaskedLM", type(model)
assert model.config.num_hidden_layers == 2
assert tokenizer.is_fast
answers = pipeline("fill-mask", model=folder)(sys.argv[2])
assert len(answers) == 5 and all(0 < answer["score"] < 1 for answer in answers), answers
"""


def test_it_loads_where_there_is_no_potstill(student: Path) -> None:
    sentence = f"{WORDS[3]} [MASK] {WORDS[5]} ."
    run = subprocess.run([sys.executable, "-c", ELSEWHERE, str(student), sentence], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_no_pickles_beside_the_checkpoints(student: Path) -> None:
    assert sorted(path.name for path in student.iterdir()) == sorted([*FILES, "checkpoint-10"])


def test_all_tensors_are_there(student: Path) -> None:
    model, report = AutoModelForMaskedLM.from_pretrained(student, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.float32


def test_its_tokenizer_offers_what_it_takes(
    student: Path, teacher_folder: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    def offered(folder: Path) -> set[str]:
        return set(AutoTokenizer.from_pretrained(folder)("a b", return_tensors="pt"))

    assert offered(teacher_folder) == {"input_ids", "attention_mask", "token_type_ids"}
    assert offered(student) == {"input_ids", "attention_mask"}
    inputs = AutoTokenizer.from_pretrained(student)(WORDS[0], return_tensors="pt")
    assert AutoModelForMaskedLM.from_pretrained(student)(**inputs).logits.isfinite().all()

    trainer = new_trainer(distillation(teacher_folder, corpus_folder, tmp_path / "from python"))
    trainer.save_model()
    assert offered(tmp_path / "from python") == {"input_ids", "attention_mask"}
    bert = pretrain(pretraining(corpus_folder, tmp_path / "bert", max_steps=1))
    assert offered(bert) == {"input_ids", "attention_mask", "token_type_ids"}


def test_card_tells_what_was_measured(student: Path, corpus_folder: Path) -> None:
    card, results = (student / "README.md").read_text(), json.loads((student / "results.json").read_text())
    _, header, _ = card.split("---\n", 2)
    fields = yaml.safe_load(header)
    (named,) = fields.pop("model-index")
    assert fields == {
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["potstill", "distillation"],
    }  # and no base_model: a folder is no model of the hub
    initial, final = results["held_out"]["initial"], results["held_out"]["final"]
    assert initial["loss"] != final["loss"]
    measured = {one["type"]: one["value"] for found in named["results"] for one in found["metrics"]}
    assert measured["loss"] == final["loss"]
    assert measured["accuracy"] == final["accuracy"]
    rows = {line.split(" | ")[0].strip("| "): line for line in card.splitlines() if line.startswith("|")}
    for name, metrics in (("student, as initialised", initial), ("student, trained", final)):
        figures = [f"{metrics['loss']:.3f}", f"{metrics['accuracy']:.1%}", f"{metrics['kl']:.3f}"]
        figures += [f"{metrics['agreement']:.1%}", f"{metrics['cosine']:.3f}"]
        assert [cell.strip() for cell in rows[name].strip("| ").split("|")[1:]] == figures
    assert f"{final['teacher_loss']:.3f} | {final['teacher_accuracy']:.1%}" in rows["teacher"]

    assert results["parameters"] == sum(p.numel() for p in AutoModelForMaskedLM.from_pretrained(student).parameters())
    assert f"{results['parameters']:,} parameters" in card
    assert results["cost"]["steps"] == 10
    assert results["cost"]["tokens"] == 10 * 8 * 16
    assert "10 steps, 1,280 tokens" in card
    manifest = json.loads((corpus_folder / "manifest.json").read_text())
    assert manifest["sources"][0]["sha256"][:16] in card
    for name, value in yaml.safe_load((student / "recipe.yaml").read_text()).items():
        assert f"| `{name}` | `{value}` |" in card


def test_results_hold_the_curves(student: Path) -> None:
    history = json.loads((student / "results.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == list(range(1, 11))
    assert [entry["step"] for entry in history if "eval_loss" in entry] == [0, 4, 8, 10]
    for entry in (entry for entry in history if "loss" in entry):
        terms = 3.5 * entry["loss_ce"] + 2 * entry["loss_mlm"] + entry["loss_cos"]
        assert entry["loss"] == pytest.approx(terms, rel=1e-4)
        assert entry["tokens_per_second"] > 0


def test_recipe_reruns_it(student: Path, tmp_path: Path, signals_restored: None) -> None:
    again = tmp_path / "again"
    assert main(["distill", "--config", str(student / "recipe.yaml"), "--output_dir", str(again)]) == 0
    assert_same_tensors(tensors(again), tensors(student))
    recipes = [yaml.safe_load((folder / "recipe.yaml").read_text()) for folder in (student, again)]
    assert recipes[0] == recipes[1]
    assert recipes[0]["lr_scheduler_kwargs"] == {"min_lr": 1e-4}
    held_out = [json.loads((folder / "results.json").read_text())["held_out"] for folder in (student, again)]
    assert held_out[0] == held_out[1]


def test_recipe_of_pretraining_reruns_it(corpus_folder: Path, tmp_path: Path, signals_restored: None) -> None:
    folder = pretrain(pretraining(corpus_folder, tmp_path / "model", max_steps=4, grow="2,4"))
    again = tmp_path / "again"
    assert main(["pretrain", "--config", str(folder / "recipe.yaml"), "--output_dir", str(again)]) == 0
    assert_same_tensors(tensors(again), tensors(folder))
    card = (folder / "README.md").read_text()
    assert "pre-trained by masked LM" in card
    assert "base_model" not in card


def test_other_files_in_an_overwritten_folder_stay(teacher_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "student"
    distill(distillation(teacher_folder, corpus_folder, folder, max_steps=3, save_steps=1))
    (folder / "notes.txt").write_text("mine")
    (folder / "checkpoint-3").rename(folder / ".checkpoint-3.replaced")  # as a kill may leave it
    distill(distillation(teacher_folder, corpus_folder, folder, max_steps=1, overwrite_output_dir=True))
    assert (folder / "notes.txt").read_text() == "mine"
    assert checkpoints(folder) == ["checkpoint-1"]


def test_without_held_out_text(teacher_folder: Path, text_path: Path, tmp_path: Path, signals_restored: None) -> None:
    blocks = str(tmp_path / "blocks")
    options = ["--validation_fraction", "0", "--block_size", "16", "--num_proc", "1", "--output_dir", blocks]
    assert main(["prepare", "--text", str(text_path), "--tokenizer", str(teacher_folder), *options]) == 0
    args = distillation(
        teacher_folder, Path(blocks), tmp_path / "student", max_steps=1, eval_strategy="steps", eval_on_start=True
    )
    folder = distill(args)
    assert json.loads((folder / "results.json").read_text())["held_out"] == {"initial": None, "final": None}
    assert "Not measured" in (folder / "README.md").read_text()
