"""What is particular to an architecture stands in its family, and nowhere else in the package."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING

import potstill
from potstill.student.family import FAMILIES

SOURCE = Path(potstill.__file__).parent
OUTSIDE = sorted(path for path in SOURCE.rglob("*.py") if path.parent != SOURCE / "student")
TYPES = {family.model_type for family in FAMILIES} | {"gpt2", "modernbert", "electra", "deberta-v2", "mpnet"}
CLASSES = tuple(CONFIG_MAPPING[name].__name__.removesuffix("Config") for name in sorted(TYPES))


def particular(code: str) -> Iterator[str]:
    """What of a module is about one architecture: imports, names of types, and questions of which type it is."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformers"):
            yield from (f"imports {name.name}" for name in node.names if name.name.startswith(CLASSES))
        elif isinstance(node, ast.Constant) and node.value in TYPES:
            yield f"names {node.value!r}"
        elif isinstance(node, ast.Compare) and not isinstance(node.ops[0], ast.Is | ast.IsNot):  # whether there is one
            asked = [side.attr for side in (node.left, *node.comparators) if isinstance(side, ast.Attribute)]
            others = [side for side in (node.left, *node.comparators) if not isinstance(side, ast.Attribute)]
            if "model_type" in asked and others:  # two models may be compared with each other
                yield "asks for a model_type"


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_module_outside_the_families_is_about_one_of_them(path: Path) -> None:
    assert list(particular(path.read_text())) == []


@pytest.mark.parametrize(
    "code",
    [
        "from transformers import BertConfig",
        "from transformers.models.roberta import RobertaModel",
        'if config.model_type == "made-up": pass',
        "if config.model_type in KNOWN: pass",
        'BERTS = ("bert", "distilbert")',
    ],
)
def test_the_search_finds_what_it_is_for(code: str) -> None:
    assert list(particular(code))
