"""The model card says what was measured, and nothing else."""

import dataclasses
import math
import re
from pathlib import Path

import pytest
import yaml
from hostile import BROKEN, NAMES, front_matter, rendered
from transformers import DistilBertConfig

from potstill.corpus.manifest import Manifest, SourceRecord, SplitRecord, TokenizerRecord
from potstill.report.markdown import visible
from potstill.report.model_card import model_card

MANIFEST = Manifest(
    potstill_version="0",
    tokenizer=TokenizerRecord("tok", "BertTokenizer", 100, "f" * 64),
    block_size=64,
    dtype="uint8",
    seed=0,
    validation_fraction=0.1,
    splits={"train": SplitRecord(9, 700, 11, 18), "validation": SplitRecord(1, 70, 1, 8)},
    skipped={"bad_text": 0, "empty": 0},
    sources=[SourceRecord("a.txt", 1234, "ab" * 32, 10)],
    created="2026-01-01T00:00:00+00:00",
)
METRICS = {"loss": 3.25, "accuracy": 0.4, "teacher_loss": 3.0, "teacher_accuracy": 0.5, "kl": 0.125, "agreement": 0.75}
RESULTS = {
    "held_out": {"initial": {**METRICS, "loss": 5.5, "accuracy": 0.1}, "final": METRICS},
    "cost": {"steps": 7, "tokens": 7168, "seconds": 61.0, "processes": 2, "hardware": "an abacus"},
    "parameters": 12345,
    "versions": {"torch": "9.9"},
}
RECIPE = {
    "teacher": "me/my-bert",
    "initialise": "teacher",
    "layers": "alternate",
    "fold_token_types": True,
    "alpha_ce": 5.0,
}


def card(recipe=RECIPE, results=RESULTS):
    return model_card(DistilBertConfig(n_layers=2, dim=32, vocab_size=100), recipe, results, MANIFEST)


def test_header_is_yaml_that_the_hub_reads():
    header = yaml.safe_load(card().split("---")[1])
    assert header["library_name"] == "transformers"
    assert header["base_model"] == "me/my-bert"
    assert header["pipeline_tag"] == "fill-mask"


def test_every_measured_figure_is_there():
    text = card()
    for figure in ("3.000 | 50.0%", "5.500 | 10.0%", "3.250 | 40.0% | 0.125 | 75.0%", "keeps 80.0%", "12,345"):
        assert figure in text, figure
    for figure in (
        "7 steps",
        "7,168 tokens",
        "61 seconds",
        "2 × an abacus",
        "torch 9.9",
        "| a.txt | 10 |",
        "| train | 9 | 11 | 704 |",
    ):
        assert figure in text, figure


def test_what_was_not_measured_is_said_to_be_missing():
    text = card(results={**RESULTS, "held_out": {"initial": None, "final": None}})
    assert "Not measured" in text
    assert "nan" not in text.lower()


def test_no_share_of_a_teacher_that_has_nothing_right():
    held_out = {"initial": None, "final": {**METRICS, "teacher_accuracy": 0.0}}
    text = card(results={**RESULTS, "held_out": held_out})
    assert "| teacher | 3.000 | 0.0% |" in text
    assert "keeps" not in text


def test_a_model_without_a_teacher_claims_none():
    held_out = {"initial": None, "final": {"loss": 3.25, "accuracy": 0.4}}
    text = card({"masking": "uniform"}, {**RESULTS, "held_out": held_out})
    assert "base_model" not in text
    assert "keeps" not in text
    assert "| model, trained | 3.250 | 40.0% |" in text


@pytest.mark.parametrize("name", [*NAMES, *BROKEN])
def test_names_are_shown_as_they_are(name):
    seen, path = visible(name), f"/models/{name.replace('/', '-')}"
    last = visible(Path(path).name)
    manifest = dataclasses.replace(
        MANIFEST,
        sources=[SourceRecord(path, 1234, None, 10), SourceRecord("b.txt", 1, name, 10)],
        splits={name: SplitRecord(9, 700, 11, 18)},
    )
    results = RESULTS | {
        "cost": RESULTS["cost"] | {"hardware": name},
        "versions": {"torch": name},
    }
    recipe = RECIPE | {"teacher": path, "layers": name, name: name, "text": [name]}
    config = DistilBertConfig(n_layers=2, dim=32, vocab_size=100)
    header, rest = front_matter(model_card(config, recipe, results, manifest))
    assert header.keys() == {"library_name", "pipeline_tag", "tags", "model-index"}
    page = rendered(rest)
    assert (page.html, page.links) == ([], [])
    headings = ["Held-out text", "Recipe", "Corpus", "Cost"]
    assert page.headings == [f"A student of {last}", *headings]
    _, options, splits, sources = page.tables
    assert [seen, seen] in options
    assert ["teacher", visible(path)] in options
    assert ["text", visible(str([name]))] in options
    assert splits[1] == [seen, "9", "11", "704"]
    assert sources[1] == [last, "10", " "]
    assert f"the rule {seen}." in page.text
    assert f"2 × {seen}; torch {seen}." in page.text


def test_figures_that_are_no_numbers_are_told():
    nothing = math.nan
    final = METRICS | {"loss": nothing, "kl": math.inf, "teacher_accuracy": nothing}
    text = card(results=RESULTS | {"held_out": {"initial": RESULTS["held_out"]["initial"], "final": final}})
    assert "| teacher | 3.000 | – |" in text
    assert "| student, trained | – | 40.0% | – | 75.0% |" in text
    said = "A dash means not finite (NaN or infinity): trained loss, trained teacher_accuracy, trained kl."
    assert said in rendered(front_matter(text)[1]).text
    assert not re.search(r"\b(nan|inf)\b", text)
    assert "A dash means" not in card()
