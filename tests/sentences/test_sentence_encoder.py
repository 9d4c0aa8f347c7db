"""An encoder computes what sentence-transformers does, and its folder loads there."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from families_samples import CONFIGS
from sentence_samples import TEXTS, random_dense, small_encoder
from transformers import AutoModel, AutoTokenizer

from potstill.demo.demo import demo
from potstill.errors import PotstillError
from potstill.sentences import MODES, SentenceEncoder

PROMPTS = {"query": "bola dome ", "passage": ""}
DATA = os.environ.get("POTSTILL_TEST_DATA")


def by_hand(encoder: SentenceEncoder, text: str) -> np.ndarray:
    """The embedding of one text alone, without padding, pooled by the mean and normalised, in float64."""
    ids = encoder.tokenizer(text, truncation=True, max_length=encoder.max_length)["input_ids"]
    with torch.no_grad():
        hidden = encoder.model(torch.tensor([ids])).last_hidden_state[0].double().numpy()
    mean = sum(hidden) / len(hidden)
    return mean / np.sqrt(sum(mean**2))


def test_each_text_is_encoded_as_if_it_were_alone() -> None:
    encoder = small_encoder()
    expected = np.stack([by_hand(encoder, text) for text in TEXTS])
    found = encoder.encode(TEXTS, batch_size=4)
    assert found.dtype == np.float32
    assert found.shape == (len(TEXTS), encoder.width)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_dense_modules_come_before_the_normalisation() -> None:
    dense = random_dense(48, 10, 6, activation="Tanh")
    encoder = small_encoder(modes=("cls", "max"), dense=dense, normalize=True)
    pooled = torch.randn(3, 48, generator=torch.Generator().manual_seed(1))
    expected = pooled.double().numpy()
    for part in dense:
        expected = np.tanh(expected @ part.linear.weight.double().detach().numpy().T + part.linear.bias.tolist())
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.finish(pooled).detach().numpy(), expected, atol=1e-6)
    assert encoder.width == 6


def test_texts_that_are_too_long_are_cut_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    encoder = small_encoder(max_length=8)
    long = " ".join(["bol"] * 50)
    with caplog.at_level(logging.WARNING):
        found = encoder.encode(["bol", long, long, " ".join(["bol"] * 6)])
    assert encoder.cut == 2
    assert caplog.messages == ["2 of 4 texts are longer than 8 tokens and were cut."]
    np.testing.assert_allclose(found[1], found[3], atol=1e-6)
    encoder.encode(["bol"])
    assert encoder.cut == 0


def test_prompts() -> None:
    encoder = small_encoder(prompts=PROMPTS, default_prompt_name="query")
    with_prompt = encoder.encode([PROMPTS["query"] + text for text in TEXTS], prompt="")
    np.testing.assert_allclose(encoder.encode(TEXTS), with_prompt, atol=1e-6)
    np.testing.assert_allclose(encoder.encode(TEXTS, prompt="bola dome "), with_prompt, atol=1e-6)
    assert np.abs(encoder.encode(TEXTS, prompt="") - with_prompt).max() > 1e-2


def test_no_text_an_empty_text_and_a_text_that_is_no_list() -> None:
    encoder = small_encoder()
    assert encoder.encode([]).shape == (0, encoder.width)
    assert np.isfinite(encoder.encode([""])).all()
    with pytest.raises(PotstillError, match="give a list of texts"):
        encoder.encode("bol")
    encoder.tokenizer.backend_tokenizer.post_processor = None  # the special tokens are gone
    with pytest.raises(PotstillError, match="text 2 of 2 has no token"):
        encoder.encode(["bol", ""])


def test_encoding_leaves_the_mode_of_training_as_it_was() -> None:
    encoder = small_encoder().train()
    np.testing.assert_array_equal(encoder.encode(TEXTS), encoder.encode(TEXTS))  # no dropout
    assert encoder.training
    assert encoder.model.training


@pytest.mark.parametrize("model_type", CONFIGS)
def test_what_was_saved_comes_back(model_type: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    encoder = small_encoder(
        model_type,
        ("mean", "cls"),
        random_dense(48, 6, bias=False),
        normalize=False,
        max_length=11,
        prompts=PROMPTS,
        default_prompt_name="query",
        similarity_fn_name="dot",
        lower_case=True,
    )
    encoder.save(tmp_path / "new" / "folder")
    loaded = SentenceEncoder.load(tmp_path / "new" / "folder")
    for name in ("pooling", "normalize", "max_length", "prompts", "default_prompt_name", "similarity_fn_name", "width"):
        assert getattr(loaded, name) == getattr(encoder, name), name
    assert loaded.lower_case
    assert not loaded.training
    np.testing.assert_array_equal(loaded.encode(TEXTS), encoder.encode(TEXTS))


def test_a_folder_can_be_saved_over_and_says_the_same(tmp_path: Path) -> None:
    encoder = small_encoder(dense=random_dense(24, 6))
    encoder.save(tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    encoder.encode(TEXTS)
    encoder.save(tmp_path, card="# A card\n")
    after = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert after.pop(tmp_path / "README.md") == b"# A card\n"
    assert before.pop(tmp_path / "README.md").startswith(b"---\nlibrary_name: sentence-transformers\n")
    assert after == before


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("lower_case", [False, True])
@pytest.mark.parametrize(
    ("modes", "sizes", "normalize"),
    [*(((mode,), (), False) for mode in MODES), (("mean", "cls"), (48, 10, 6), True), (MODES, (), True)],
)
def test_sentence_transformers_and_transformers_load_the_folder(
    tmp_path: Path, modes: tuple[str, ...], sizes: tuple[int, ...], normalize: bool, lower_case: bool
) -> None:
    library = pytest.importorskip("sentence_transformers")
    encoder = small_encoder(
        modes=modes, dense=random_dense(*sizes, activation="GELU"), normalize=normalize, max_length=11, prompts=PROMPTS
    )
    encoder.lower_case = lower_case
    encoder.save(tmp_path)
    ours = SentenceEncoder.load(tmp_path)
    theirs = library.SentenceTransformer(str(tmp_path), device="cpu")
    assert theirs.max_seq_length == 11
    assert {name: theirs.prompts[name] for name in PROMPTS} == PROMPTS
    texts = [*TEXTS, " BOLA  dome. "]
    np.testing.assert_allclose(ours.encode(texts, batch_size=3), theirs.encode(texts), atol=1e-5)
    with_prompt = theirs.encode(texts, prompt_name="query")
    np.testing.assert_allclose(ours.encode(texts, prompt=PROMPTS["query"]), with_prompt, atol=1e-5)

    model, tokenizer = AutoModel.from_pretrained(tmp_path).eval(), AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.model_max_length == 11
    inputs = tokenizer(TEXTS[0], return_tensors="pt")
    expected = encoder.model(**inputs).last_hidden_state
    torch.testing.assert_close(model(**inputs).last_hidden_state, expected)


@pytest.mark.usefixtures("no_hub")
def test_a_folder_that_sentence_transformers_saved(tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    small_encoder(modes=("cls",), dense=random_dense(24, 6), prompts=PROMPTS, max_length=9).save(tmp_path / "ours")
    theirs = library.SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    theirs.save(str(tmp_path / "theirs"))
    types = [module["type"] for module in json.loads((tmp_path / "theirs" / "modules.json").read_text())]
    assert not any(kind.startswith("sentence_transformers.models.") for kind in types)  # the newer names
    encoder = SentenceEncoder.load(tmp_path / "theirs")
    assert encoder.max_length == 9
    np.testing.assert_allclose(encoder.encode(TEXTS), theirs.encode(TEXTS), atol=1e-5)


@pytest.mark.skipif(DATA is None, reason="POTSTILL_TEST_DATA names no folder of real data")
@pytest.mark.usefixtures("no_hub")
def test_real_sentences(tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    SentenceEncoder.load(Path(demo.__code__.co_filename).parent / "assets" / "teacher").save(tmp_path)
    lines = Path(DATA or "", "sts", "2014-images.tsv").read_text(encoding="utf-8").splitlines()[:100]
    texts = [text for line in lines for text in line.split("\t")[1:3]]
    ours = SentenceEncoder.load(tmp_path).encode(texts)
    theirs = library.SentenceTransformer(str(tmp_path), device="cpu").encode(texts)
    assert (ours * theirs).sum(1).min() > 0.99999
