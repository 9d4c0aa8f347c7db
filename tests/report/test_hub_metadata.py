"""The header of a card as the hub reads it: licence, results, emissions."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from transformers.integrations import CodeCarbonCallback

from potstill.report.hub_metadata import emissions_field, licence_of, model_index
from potstill.report.markdown import front_matter
from potstill.report.task_card import task_card
from potstill.tasks.registry import TASKS
from potstill.training.emissions import measured_emissions

RESULTS: dict[str, Any] = {
    "seed": 42,
    "steps": 1234,
    "seconds": {"training": 56.0},
    "hardware": "an abacus",
    "versions": {"torch": "9.9"},
    "rows": {"train": 67349, "dev": 872},
    "metrics": {"accuracy": 91.5, "dev_matched": {"f1": 84.25, "score": 84.25}, "threshold": float("nan")},
    "without_teacher": None,
    "emissions": {"grams": 12.5, "source": "codecarbon 3.0"},
}


def with_card(folder: Path, header: str) -> str:
    folder.mkdir()
    (folder / "README.md").write_text(f"---\n{header}\n---\n# A teacher\n")
    return str(folder)


def test_a_card_is_what_the_hub_reads(tmp_path: Path) -> None:
    """`ModelCard` checks what can be checked without the hub: the names and the types of the fields."""
    teacher = with_card(tmp_path / "teacher", "license: cc-by-4.0\nlanguage: en")
    recipe = {"model": teacher, "task": "sst2"}
    card = ModelCard(task_card(recipe, RESULTS, TASKS["sst2"], frozen=False), ignore_metadata_errors=False)
    assert card.data.license == "cc-by-4.0"
    assert card.data.pipeline_tag == "text-classification"
    assert "potstill" in card.data.tags
    assert card.data.co2_eq_emissions == {
        "emissions": 12.5,
        "source": "codecarbon 3.0",
        "training_type": "fine-tuning",
        "hardware_used": "an abacus",
    }
    assert card.data.model_name == "teacher-sst2"
    found = {(one.dataset_split, one.metric_type): one.metric_value for one in card.data.eval_results}
    assert found == {(None, "accuracy"): 91.5, ("dev_matched", "f1"): 84.25, ("dev_matched", "score"): 84.25}
    assert {(one.task_type, one.dataset_type, one.dataset_name) for one in card.data.eval_results} == {
        ("text-classification", "sst2", "SST-2")
    }


def test_no_field_without_its_figure() -> None:
    header = ModelCard(
        task_card({"model": "me/x", "task": "sst2"}, RESULTS | {"emissions": None}, TASKS["sst2"], False)
    )
    assert "co2_eq_emissions" not in header.data.to_dict()
    assert "license" not in header.data.to_dict()
    assert header.data.base_model == "me/x"
    assert model_index("m", "fill-mask", "text", {"loss": float("inf"), "name": "x"}) == {}
    assert emissions_field(None, "an abacus", "fine-tuning") == {}


def test_results_survive_the_way_through_yaml() -> None:
    index = model_index("m: #1", "fill-mask", "held-out", {"accuracy": 0.5, "loss": 2.25}, "text: <b>")
    card = ModelCard(front_matter({"tags": ["a"]} | index, None) + "\n")
    name, results = model_index_to_eval_results(index["model-index"])
    assert name == "m: #1"
    assert card.data.eval_results == results
    assert results[0].dataset_name == "text: <b>"


@pytest.mark.parametrize(
    ("headers", "fields"),
    [
        (["license: apache-2.0"], {"license": "apache-2.0"}),
        (["license: mit", "license: mit"], {"license": "mit"}),
        (["license: mit", "license: apache-2.0"], {}),
        (["license: mit", "tags: [a]"], {}),
        (["license: other\nlicense_name: own\nlicense_link: LICENSE"],
         {"license": "other", "license_name": "own", "license_link": "LICENSE"}),
        (["license: {a: 1}"], {}),
        (["license: [mit, unclosed"], {}),
        (["- a list"], {}),
    ],
)  # fmt: skip
def test_the_licence_of_the_teachers(tmp_path: Path, headers: list[str], fields: dict[str, str]) -> None:
    folders = [with_card(tmp_path / f"teacher-{number}", header) for number, header in enumerate(headers)]
    assert licence_of(folders) == fields
    assert licence_of(folders[0] if len(folders) == 1 else folders) == fields


def test_the_licence_of_a_model_of_the_hub_is_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = with_card(tmp_path / "cached", "license: mit") + "/README.md"
    cached = {"me/teacher": card}
    monkeypatch.setattr("potstill.report.hub_metadata.try_to_load_from_cache", lambda name, file: cached.get(name))
    assert licence_of("me/teacher") == {"license": "mit"}
    assert licence_of("me/other") == {}
    assert licence_of(None) == {}
    assert licence_of(str(tmp_path)) == {}  # a folder without a card


def test_emissions_are_those_that_codecarbon_measured() -> None:
    callback = CodeCarbonCallback.__new__(CodeCarbonCallback)
    callback.tracker = SimpleNamespace(final_emissions=0.0125)
    trainer: Any = SimpleNamespace(callback_handler=SimpleNamespace(callbacks=[object(), callback]), resumed=False)
    pytest.importorskip("codecarbon")
    found = measured_emissions(trainer)
    assert found is not None
    assert found["grams"] == 12.5
    assert found["source"].startswith("codecarbon ")
    trainer.resumed = True
    assert measured_emissions(trainer) is None
    callback.tracker = SimpleNamespace()
    trainer.resumed = False
    assert measured_emissions(trainer) is None
