"""The recipes of docs/how-to/extend.md are applied as they stand, and what they add works."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import test_every_family as every_family
import torch
import yaml
from families_samples import random_model
from runs import distillation, new_trainer
from samples import WORDS
from sklearn.metrics import f1_score
from transformers import AutoModelForSequenceClassification, BertTokenizer, ErnieConfig

import potstill
from potstill.cli import main
from potstill.errors import PotstillError
from potstill.export.runtime import ExportedFolder
from potstill.objective import objective_from
from potstill.student import Reads, build_student, family_of, load_masked_lm
from potstill.training.step import DistillationStep

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "how-to" / "extend.md"
SOURCE = Path(potstill.__file__).parent
REGISTRIES = {
    "src/potstill/objective/losses.py": "LOSSES",
    "src/potstill/student/family.py": "_FAMILIES",
    "src/potstill/tasks/registry.py": "TASKS",
    "src/potstill/tasks/metrics.py": "METRICS",
    "src/potstill/export/formats.py": "FORMATS",
    "tests/student/families_samples.py": "CONFIGS",
}
"""A file that a recipe edits → the dictionary in it that gets an entry."""


class Block(NamedTuple):
    """A fenced block: its language, the file that it names in its first line ("" if none), and the rest."""

    language: str
    path: str
    text: str


def section(title: str) -> list[Block]:
    """The fenced blocks under a heading."""
    body = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (found,) = [part for part in body if part.startswith(f"{title}\n")]
    blocks = []
    for language, text in re.findall(r"^```(\w+)\n(.*?)^```$", found, re.MULTILINE | re.DOTALL):
        named = re.match(r"# (\S+\.py)\n", text)
        blocks.append(Block(language, named[1] if named else "", text[named.end() :] if named else text))
    return blocks


def written(blocks: list[Block]) -> dict[str, str]:
    """Path → text of the files that the blocks write and edit."""
    files: dict[str, str] = {}
    for block in blocks:
        if block.path and block.language == "python":
            assert not (ROOT / block.path).exists(), f"{block.path} is there already"
            files[block.path] = block.text
        elif block.path and block.language == "diff":
            text = files[block.path] if block.path in files else (ROOT / block.path).read_text(encoding="utf-8")
            for hunk in block.text.split("@@\n"):
                lines = hunk.splitlines(keepends=True)
                old = "".join(line[1:] for line in lines if line[0] in " -")
                assert text.count(old) == 1, f"{block.path} has other lines than the page says:\n{old}"
                text = text.replace(old, "".join(line[1:] for line in lines if line[0] in " +"))
            files[block.path] = text
    return files


def commands(title: str) -> list[list[str]]:
    """The words of each command line of a section."""
    lines = next(block.text for block in section(title) if block.language == "bash").splitlines()
    return [shlex.split(line.removeprefix("potstill ")) for line in lines]


class Recipe:
    """Sections of the page, applied."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, titles: tuple[str, ...]) -> None:
        self.blocks = section(titles[-1])
        self.files = written([block for title in titles for block in section(title)])
        self.entries: dict[str, Any] = {}
        self._folder, self._monkeypatch = folder, monkeypatch
        # New files first: those that are edited import them.
        for path in sorted(self.files, key=lambda path: (path in REGISTRIES, path.startswith("tests"))):
            module = self._module(path)
            if path in REGISTRIES:
                self._add(path, getattr(module, REGISTRIES[path]))
            if hasattr(module, "FormatName"):  # as if `make options` had been run
                monkeypatch.setattr("potstill.export.export.FormatName", module.FormatName)
                monkeypatch.setattr("potstill.option_table.TABLE", folder / "none.json")

    def _module(self, path: str) -> ModuleType:
        """The module that a file is."""
        file = self._folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(self.files[path], encoding="utf-8")
        name = self._name(path)
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        with self._monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, module)
            spec.loader.exec_module(module)
        if path not in REGISTRIES:
            self._monkeypatch.setitem(sys.modules, name, module)
        return module

    def _add(self, path: str, edited: dict[str, Any]) -> None:
        """Give the registry in use the entries that the edited file has more."""
        registry = getattr(importlib.import_module(self._name(path)), REGISTRIES[path])
        assert list(edited)[: len(registry)] == list(registry) or set(edited) > set(registry)
        for name in edited.keys() - registry.keys():
            self._monkeypatch.setitem(registry, name, edited[name])
            self.entries[path] = edited[name]

    @staticmethod
    def _name(path: str) -> str:
        return path.removesuffix(".py").removeprefix("src/").removeprefix("tests/student/").replace("/", ".")

    def text(self, language: str) -> str:
        """The block of this language that is no file."""
        (found,) = [block.text for block in self.blocks if block.language == language and not block.path]
        return found


Apply = Callable[..., Recipe]
pytestmark = pytest.mark.usefixtures("signals_restored", "no_hub")


@pytest.fixture
def apply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Apply:
    """Apply sections of the page."""
    return lambda *titles: Recipe(tmp_path / "checkout", monkeypatch, titles)


@pytest.fixture
def helpdesk(tmp_path: Path, make_teacher: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a student and messages to sort, whose second word tells the class, to run commands in."""
    shutil.copytree(make_teacher(num_hidden_layers=1), tmp_path / "student")
    rng = np.random.default_rng(0)
    (tmp_path / "data" / "support").mkdir(parents=True)
    for split, count in (("train", 24), ("dev", 12)):
        with open(tmp_path / "data" / "support" / f"{split}.jsonl", "w", encoding="utf-8") as file:
            for number in range(count):
                word, category = (("bol", "billing"), ("kim", "other"), ("met", "technical"))[number % 3]
                print(json.dumps({"message": f"{rng.choice(WORDS)} {word}", "category": category}), file=file)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path


SMALL = {
    "finetune": ["--max_length", "24", "--use_cpu"],
    "evaluate": ["--max_length", "24", "--use_cpu", "--seeds", "2", "--max_steps", "2"],
    "export": [],
}
"""What makes the commands of the page fit the tiny model, which reads 32 tokens."""


def run(command: list[str]) -> None:
    assert main([*command, *SMALL[command[0]]]) == 0


# The page.


@pytest.mark.parametrize("title", ["A loss", "A family", "A task", "A metric", "A format"])
def test_the_table_says_how_many_files_a_recipe_touches(title: str) -> None:
    """It counts the package's files; a metric is then named in a task, which the table says beside it."""
    anchor = title.lower().replace(" ", "-")
    (row,) = re.findall(
        rf"^\| \[{title.lower()}\]\(#{anchor}\) \|(.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    new, edited, _, _ = (cell.strip() for cell in row.split("|"))
    blocks = [block for block in section(title) if block.path]
    assert new == (str(sum(block.language == "python" for block in blocks)) if title != "A metric" else "none")
    files = [block.path for block in blocks if block.language == "diff" and block.path in REGISTRIES]
    assert edited.startswith(f"{len(files)}:")
    assert all(file.removeprefix("src/potstill/") in edited for file in files)
    assert all(block.text.count("\n") <= 60 for block in blocks)


def test_the_tree_has_every_folder_of_the_source() -> None:
    tree = next(block.text for block in section("The source"))
    listed, path = set(), [""]
    for indent, name in re.findall(r"^((?:│   |    )*)[├└]── (\S+)", tree, re.MULTILINE):
        depth = len(indent) // 4
        path[depth:] = [name.rstrip("/")]
        listed.add("/".join(path))
    folders = {p.relative_to(SOURCE).as_posix() for p in SOURCE.rglob("*") if p.is_dir() and p.name != "__pycache__"}
    nested = {folder for folder in folders if re.search(r"assets/|static/", folder)}
    assert folders - nested <= listed
    for name in listed:
        assert (SOURCE / name).exists() or (ROOT / name).is_dir(), name


def test_modules_that_the_page_names_exist() -> None:
    text = PAGE.read_text(encoding="utf-8")
    figure = next(block.text for block in section("The path of the data"))
    modules = set(re.findall(r"\b(?:corpus|student|finetuning|tasks|training|export)/\w+", figure))
    named = {name for name in re.findall(r"`(\w+(?:/\w+)+\.py)`", text) if not name.startswith("tests/")}
    assert len(modules) > 8
    assert len(named) > 8
    for file in {f"{module}.py" for module in modules} | named:
        assert (SOURCE / file).is_file(), file


# What the recipes add.


def test_a_loss(
    apply: Apply, make_teacher: Callable[..., Path], teacher_folder: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    recipe = apply("A loss")
    sizes = {"max_steps": 3, "save_strategy": "no", "report_to": "none"}

    # From Python, by an objective.
    args = distillation(teacher_folder, corpus_folder, tmp_path / "python", **sizes)
    teacher = load_masked_lm(str(teacher_folder))
    given = {"student": build_student(teacher), "corpus": str(corpus_folder), "args": args, "teacher": teacher}
    exec(recipe.text("python"), given)
    trained: Any = given["trainer"]
    logged = [entry["loss_pooled_mse"] for entry in trained.state.log_history if "loss_pooled_mse" in entry]
    assert len(logged) == 3
    assert logged[-1] < logged[0]

    # By name, in a recipe.
    losses = yaml.safe_load(recipe.text("yaml"))["losses"]
    args = distillation(teacher_folder, corpus_folder, tmp_path / "recipe", losses=losses, **sizes)
    named = new_trainer(args)
    named.train()
    logged = [entry["loss_pooled_mse"] for entry in named.state.log_history if "loss_pooled_mse" in entry]
    assert len(logged) == 3
    assert logged[-1] < logged[0]

    # Its value is what it is said to be, and what does not fit is told.
    ids = torch.randint(6, 90, (2, 16), generator=torch.Generator().manual_seed(1))
    student = named.student.eval()
    for pooling, pooled in (("mean", lambda hidden: hidden.mean(1)), ("first", lambda hidden: hidden[:, 0])):
        objective = objective_from({"pooled_mse": {"pooling": pooling}})
        assert objective.teacher_reads == objective.student_reads == Reads(hidden=frozenset({-1}))
        step = DistillationStep(student, teacher, objective, 0).eval()
        with torch.no_grad():
            found = step(ids, torch.zeros(2, 1, dtype=torch.int64), torch.full((2, 1), -100))["loss"]
            mine, theirs = (model.base_model(ids).last_hidden_state for model in (student, teacher))
            torch.testing.assert_close(found, (pooled(mine) - pooled(theirs)).square().mean())
    with pytest.raises(PotstillError, match="pooling of pooled_mse is 'last': it must be mean or first"):
        objective_from({"pooled_mse": {"pooling": "last"}})
    narrow = load_masked_lm(str(make_teacher(hidden_size=24)))
    with pytest.raises(PotstillError, match="use hidden_mse instead"):
        objective_from({"pooled_mse": 1}).check(teacher.config, narrow.config)


def test_a_family(apply: Apply, monkeypatch: pytest.MonkeyPatch) -> None:
    """ERNIE, which takes the generic path otherwise."""
    assert family_of(ErnieConfig()).encodes_whole
    recipe = apply("A family")
    config: Callable[..., ErnieConfig] = recipe.entries["tests/student/families_samples.py"]
    monkeypatch.setitem(every_family.SAMPLES, "ernie", config)
    for test in (
        every_family.test_every_tensor_of_the_student_is_the_teachers,
        every_family.test_a_model_reads_so_many_tokens_and_no_more,
        every_family.test_what_an_export_computes_of_a_layer_is_what_the_layer_computes,
        every_family.test_encoding_never_waits_for_the_device,
    ):
        test("ernie")
    for tied in (True, False):
        every_family.test_a_student_of_all_layers_gives_the_teachers_logits("ernie", tied)

    model = random_model(config(), torch.float64)
    family = family_of(model)
    assert type(family).__name__ == "Ernie"
    assert not family.encodes_whole
    ids = every_family.ids()
    with torch.no_grad():
        own = model(ids, output_hidden_states=True)
        states = family.encode(model, ids, Reads("all", frozenset({0, 1, 2})))
        for layer in (0, 1, 2):
            torch.testing.assert_close(states.hidden[layer], own.hidden_states[layer + 1], rtol=0, atol=1e-12)
        torch.testing.assert_close(states.last, own.hidden_states[-1], rtol=0, atol=1e-12)
        head = family.head(model)
        logits = head.transform(states.last) @ head.weight.T + head.bias
    torch.testing.assert_close(logits, own.logits, rtol=0, atol=1e-12)


def test_a_teacher_of_a_new_family_is_distilled(
    apply: Apply, tiny_tokenizer: BertTokenizer, corpus_folder: Path, tmp_path: Path
) -> None:
    config = apply("A family").entries["tests/student/families_samples.py"]
    teacher = random_model(config(vocab_size=len(tiny_tokenizer)))
    teacher.save_pretrained(tmp_path / "teacher")
    tiny_tokenizer.save_pretrained(tmp_path / "teacher")
    args = distillation(tmp_path / "teacher", corpus_folder, tmp_path / "student", max_steps=3, save_strategy="no")
    trainer = new_trainer(args)
    trainer.train()
    assert type(trainer.student) is type(teacher)
    assert trainer.student.config.num_hidden_layers == 2
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]


def test_a_task(apply: Apply, helpdesk: Path) -> None:
    apply("A task")
    for command in commands("A task"):
        run(command)
    tuned = json.loads((helpdesk / "support-model" / "results.json").read_text())
    assert (tuned["title"], tuned["suite"], tuned["metrics"].keys()) == ("Support", "support", {"accuracy"})
    model = AutoModelForSequenceClassification.from_pretrained(helpdesk / "support-model")
    assert list(model.config.id2label.values()) == ["billing", "other", "technical"]
    evaluated = [json.loads(file.read_text()) for file in (helpdesk / "results").glob("student/support/*.json")]
    assert [result["rows"] for result in evaluated] == [{"train": 24, "dev": 12}] * 2


def test_a_metric(apply: Apply, helpdesk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = apply("A task", "A metric")
    metric = recipe.entries["src/potstill/tasks/metrics.py"]
    references, predictions = [0, 0, 0, 0, 1, 2], [0, 0, 0, 1, 1, 0]
    each = [100 * f1_score(np.equal(references, c), np.equal(predictions, c)) for c in range(3)]
    expected = np.average(each, weights=[4, 1, 1])
    assert metric(predictions, references) == pytest.approx(expected)
    run(commands("A task")[0])
    result = json.loads((helpdesk / "support-model" / "results.json").read_text())
    assert result["metrics"].keys() == {"accuracy", "weighted_f1"}
    assert result["score"] == pytest.approx(sum(result["metrics"].values()) / 2)
    assert main(["compare", "support-model"]) == 0
    assert "acc/weighted F1" in capsys.readouterr().out


def test_a_format(apply: Apply, helpdesk: Path) -> None:
    apply("A task", "A format")
    run(commands("A task")[0])
    run(*commands("A format"))
    found = ExportedFolder.read(helpdesk / "support-pt2")
    assert (found.file.name, found.title, found.weight_bits) == ("model.pt2", "torch.export", 32)
    model = AutoModelForSequenceClassification.from_pretrained(helpdesk / "support-model").eval()
    opened = found.open(threads=1)
    for rows, length in ((1, 2), (3, 7), (5, 32)):  # another number of rows and another length each time
        inputs = {name: np.ones((rows, length), np.int64) for name in found.inputs}
        inputs["input_ids"] = np.random.default_rng(rows).integers(6, 90, (rows, length))
        with torch.no_grad():
            expected = model(**{name: torch.from_numpy(array) for name, array in inputs.items()}).logits.numpy()
        np.testing.assert_allclose(opened.run(inputs)["logits"], expected, atol=1e-5)

    found.file.write_bytes(b"damaged")
    with pytest.raises(PotstillError, match=r"model\.pt2 cannot be run by torch\.export"):
        found.open(threads=1)
