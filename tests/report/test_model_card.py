"""The model card says what was measured, and nothing else."""

import yaml
from transformers import DistilBertConfig

from potstill.corpus.manifest import Manifest, SourceRecord, SplitRecord, TokenizerRecord
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
