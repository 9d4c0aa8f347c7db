"""The card of a sentence encoder."""

import pytest
from hostile import BROKEN, NAMES, front_matter, rendered
from huggingface_hub import ModelCard
from sentence_samples import random_dense, small_encoder

from potstill.report.markdown import visible
from potstill.report.sentence_card import sentence_card

RECIPE = {"teacher": "somebody/encoder", "num_hidden_layers": 3}


def test_what_the_hub_reads() -> None:
    header, rest = front_matter(sentence_card(small_encoder(), RECIPE, sections=["## Scores\n\nHigh."]))
    assert header["library_name"] == "sentence-transformers"
    assert header["pipeline_tag"] == "sentence-similarity"
    assert header["base_model"] == "somebody/encoder"
    assert {"potstill", "distillation", "sentence-transformers"} <= set(header["tags"])
    page = rendered(rest)
    assert page.headings == ["A student of encoder", "Scores", "Recipe"]
    assert page.tables == [[["option", "value"], ["teacher", "somebody/encoder"], ["num_hidden_layers", "3"]]]


def test_measured_figures_are_in_the_form_of_the_hub() -> None:
    results = {
        "held_out": {"initial": {"loss": 9.0}, "final": {"loss": 0.75, "distance": 0.0271}},
        "cost": {"hardware": "an abacus"},
        "emissions": {"grams": 12.5, "source": "codecarbon 3.0"},
        "changed_on_resume": [],
    }
    card = ModelCard(sentence_card(small_encoder(), RECIPE, results=results), ignore_metadata_errors=False)
    assert card.data.model_name == "encoder-student"
    found = {(one.metric_type, one.metric_name): one.metric_value for one in card.data.eval_results}
    assert found == {("loss", "loss"): 0.75, ("distance", "1 − cosine"): 0.0271}
    assert {(one.task_type, one.dataset_name) for one in card.data.eval_results} == {
        ("sentence-similarity", "held-out texts of the corpus")
    }
    assert card.data.co2_eq_emissions["emissions"] == 12.5
    for nothing in (None, results | {"held_out": {"initial": None, "final": None}}):
        header, _ = front_matter(sentence_card(small_encoder(), RECIPE, results=nothing))
        assert "model-index" not in header


def test_what_the_encoder_is() -> None:
    encoder = small_encoder(modes=("mean_sqrt_len_tokens",), dense=random_dense(24, 6), normalize=False)
    header, rest = front_matter(sentence_card(encoder))
    assert "base_model" not in header
    assert "distillation" not in header["tags"]
    page = rendered(rest)
    assert page.headings == ["A sentence encoder"]
    parameters = sum(tensor.numel() for tensor in encoder.parameters())
    assert f"A bert of 4 layers, 24 wide, {parameters:,} parameters." in page.text
    assert "a text of up to 19 tokens into a vector of 6 numbers: pooling by mean_sqrt_len_tokens, then 1 Dense." in (
        page.text
    )


@pytest.mark.parametrize("name", [*NAMES, *BROKEN])
def test_prompts_are_shown_as_they_are(name: str) -> None:
    encoder = small_encoder(prompts={"query": f"a{name}b", "document": ""}, default_prompt_name="query")
    page = rendered(front_matter(sentence_card(encoder))[1])
    assert page.headings == ["A sentence encoder", "Prompts"]
    assert page.tables[0][1:] == [["query", f"a{visible(name)}b"]]
    assert "Without prompt_name, the prompt query is used." in page.text
