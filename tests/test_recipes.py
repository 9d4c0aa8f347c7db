"""Every recipe that ships is parsed as the command line parses it, and run for two steps."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForMaskedLM

from potstill.cli import main

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))

QUICK = ["--max_steps", "2", "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1"]
QUICK += ["--bf16", "false", "--torch_compile", "false", "--use_cpu", "--dataloader_num_workers", "0"]
TINY = ["--hidden_size", "32", "--num_attention_heads", "2", "--intermediate_size", "64"]
TINY += ["--max_position_embeddings", "32"]


def test_there_are_recipes() -> None:
    assert {path.stem for path in RECIPES} >= {"distilbert", "distil-tiny", "no-teacher", "pretrain-tiny"}


@pytest.mark.usefixtures("signals_restored", "no_hub")
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_runs(recipe: Path, make_teacher: Callable[..., Path], corpus_folder: Path, tmp_path: Path) -> None:
    folder, teacher_folder = tmp_path / "out", make_teacher(num_hidden_layers=12)  # recipes may name layers by number
    where = ["--config", str(recipe), "--corpus", str(corpus_folder), "--output_dir", str(folder)]
    if recipe.stem.startswith("pretrain"):
        status = main(["pretrain", *where, "--tokenizer", str(teacher_folder), *QUICK, *TINY])
    else:
        status = main(["distill", *where, "--teacher", str(teacher_folder), *QUICK])
    assert status == 0
    assert json.loads((folder / "results.json").read_text())["cost"]["steps"] == 2
    assert AutoModelForMaskedLM.from_pretrained(folder).config.hidden_size == 32
