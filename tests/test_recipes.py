"""Every recipe that ships is parsed as the command line parses it, and run for two steps."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from families_samples import CONFIGS, random_model
from samples import BLOCK_SIZE
from transformers import AutoConfig

from potstill import prepare
from potstill.cli import main
from potstill.objective.attention_relations import AttentionRelations
from potstill.recipe_file import read_recipe
from potstill.student import load_teacher
from potstill.student.family import new_tokenizer_kind

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))

PUBLISHED = {
    "distilbert-base-uncased": ("bert-base-uncased", "bert"),
    "distilbert-base-cased": ("bert-base-cased", "bert"),
    "distilbert-base-multilingual-cased": ("bert-base-multilingual-cased", "bert"),
    "distilroberta-base": ("roberta-base", "roberta"),
    "distilgpt2": ("gpt2", "gpt2"),
    "modernbert-half": ("answerdotai/ModernBERT-base", "modernbert"),
    "minilmv2-l6-h384": ("bert-base-uncased", "bert"),
}
"""Recipe: the teacher that it names, and the architecture of that teacher."""

OF_FINETUNE = {"pretrained-distillation"}  # tests/finetuning/test_stages.py runs it

QUICK = ["--max_steps", "2", "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "1"]
QUICK += ["--bf16", "false", "--torch_compile", "false", "--use_cpu", "--dataloader_num_workers", "0"]
QUICK += ["--max_eval_samples", "4"]
CUT = ["--short_block_size", str(BLOCK_SIZE // 2)]  # for recipes that cut blocks
TINY = ["--hidden_size", "32", "--num_attention_heads", "2", "--intermediate_size", "64"]
TINY += ["--max_position_embeddings", "32"]

# The 48 relation heads of the recipe have to divide both widths.
NARROW = ["--hidden_size", "48", "--num_attention_heads", "2", "--intermediate_size", "64"]


@pytest.fixture(scope="session")
def other_teachers(text_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Path]]:
    """Make a small teacher that is no BERT, with a tokenizer of its own, and a corpus for it."""

    def make(model_type: str, depth: int) -> tuple[Path, Path]:
        folder = tmp_path_factory.mktemp(model_type)
        documents = text_path.read_bytes().splitlines()
        tokenizer = new_tokenizer_kind(model_type).train(lambda: documents, 300, None, BLOCK_SIZE)
        layers = {"n_layer" if model_type == "gpt2" else "num_hidden_layers": depth}
        random_model(CONFIGS[model_type](vocab_size=300, **layers)).save_pretrained(folder / "teacher")
        tokenizer.save_pretrained(folder / "teacher")
        options = {"validation_fraction": 0.2, "num_proc": 1}
        prepare([str(text_path)], str(folder / "blocks"), str(folder / "teacher"), BLOCK_SIZE, **options)
        return folder / "teacher", folder / "blocks"

    return make


def test_there_are_recipes() -> None:
    assert {path.stem for path in RECIPES} >= {
        "distilbert",
        "distil-tiny",
        "no-teacher",
        "pretrain-tiny",
        *PUBLISHED,
        *OF_FINETUNE,
    }


@pytest.mark.usefixtures("signals_restored", "no_hub")
@pytest.mark.parametrize(
    "recipe", [path for path in RECIPES if path.stem not in PUBLISHED.keys() | OF_FINETUNE], ids=lambda path: path.stem
)
def test_recipe_runs(recipe: Path, make_teacher: Callable[..., Path], corpus_folder: Path, tmp_path: Path) -> None:
    folder, teacher_folder = tmp_path / "out", make_teacher(num_hidden_layers=12)  # recipes may name layers by number
    where = ["--config", str(recipe), "--corpus", str(corpus_folder), "--output_dir", str(folder)]
    if recipe.stem.startswith("pretrain"):
        status = main(["pretrain", *where, "--tokenizer", str(teacher_folder), *QUICK, *TINY])
    else:
        cut = CUT if "short_block_size" in read_recipe(recipe) else []
        status = main(["distill", *where, "--teacher", str(teacher_folder), *QUICK, *cut])
    assert status == 0
    assert json.loads((folder / "results.json").read_text())["cost"]["steps"] == 2
    assert load_teacher(str(folder), "student").config.hidden_size == 32


@pytest.mark.usefixtures("signals_restored", "no_hub")
@pytest.mark.parametrize("name", PUBLISHED)
def test_recipe_for_a_published_teacher_runs(
    name: str,
    make_teacher: Callable[..., Path],
    corpus_folder: Path,
    other_teachers: Callable[..., tuple[Path, Path]],
    tmp_path: Path,
) -> None:
    teacher_name, model_type = PUBLISHED[name]
    recipe, folder = Path(__file__).parent.parent / "recipes" / f"{name}.yaml", tmp_path / "out"
    assert read_recipe(recipe)["teacher"] == teacher_name
    narrow = name.startswith("minilm")
    if model_type == "bert":
        teacher = make_teacher(num_hidden_layers=12, hidden_size=96 if narrow else 32)
        corpus = corpus_folder
    else:
        teacher, corpus = other_teachers(model_type, 22 if model_type == "modernbert" else 12)
    where = ["--config", str(recipe), "--teacher", str(teacher), "--corpus", str(corpus), "--output_dir", str(folder)]
    assert main(["distill", *where, *QUICK, *(NARROW if narrow else [])]) == 0
    results = json.loads((folder / "results.json").read_text())
    assert results["cost"]["steps"] == 2
    config = AutoConfig.from_pretrained(folder)
    assert config.model_type == ("distilbert" if model_type == "bert" else model_type)
    assert config.num_hidden_layers == (11 if model_type == "modernbert" else 6)
    assert config.hidden_size == (48 if narrow else AutoConfig.from_pretrained(teacher).hidden_size)
    [logged] = [entry for entry in results["log_history"] if entry.get("step") == 1 and "loss" in entry]
    parts = {"loss_attention_relations"} if narrow else {"loss_ce", "loss_cos"}
    parts |= set() if narrow else {"loss_clm" if model_type == "gpt2" else "loss_mlm"}
    assert {part for part in logged if part.startswith("loss_")} == parts
    assert all(math.isfinite(logged[part]) for part in parts)


def test_the_relation_heads_of_minilm_divide_the_widths_of_its_recipe() -> None:
    values = read_recipe(next(path for path in RECIPES if path.stem.startswith("minilm")))
    options = json.loads(values["losses"])["attention_relations"]
    term = AttentionRelations(**options)
    term.check(CONFIGS["bert"](hidden_size=768, num_hidden_layers=12), CONFIGS["distilbert"](dim=384, n_layers=6))
    large = AttentionRelations(**(options | {"relation_heads": 64, "teacher_layer": 18}))  # as its comment says
    large.check(
        CONFIGS["roberta"](hidden_size=1024, num_hidden_layers=24),
        CONFIGS["roberta"](hidden_size=384, num_hidden_layers=6),
    )
