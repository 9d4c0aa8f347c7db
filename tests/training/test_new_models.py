"""New models of a family from text: the tokenizer, the corpus, the model that grows, and its student."""

import json
from pathlib import Path

import pytest
import torch
from runs import pretraining
from samples import BLOCK_SIZE
from transformers import AutoTokenizer, BertForMaskedLM, RobertaForMaskedLM, RobertaTokenizer

from potstill import DistillationArguments, PotstillError, PretrainingArguments, distill, prepare, pretrain
from potstill.bench.train import bench_train
from potstill.bench.train_arguments import BenchTrainArguments
from potstill.corpus import Corpus
from potstill.training.pretrain import initial_model


@pytest.fixture(scope="module")
def bytes_corpus(text_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bytes") / "blocks"
    options = {"train_tokenizer": True, "model_type": "roberta", "vocab_size": 300, "block_size": BLOCK_SIZE}
    prepare([str(text_path)], str(folder), validation_fraction=0.2, num_proc=1, **options)
    return folder


@pytest.fixture(scope="module")
def grown(bytes_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grown") / "roberta"
    return pretrain(pretraining(bytes_corpus, folder, model_type="roberta", grow="2,4", max_steps=20))


def test_blocks_of_bytes_are_framed_as_the_model_reads_text(bytes_corpus: Path) -> None:
    corpus = Corpus.open(bytes_corpus)
    assert corpus.manifest.tokenizer.class_name == "RobertaTokenizer"
    blocks = corpus.train.__getitems__([0, 1])["input_ids"]
    assert blocks[:, 0].tolist() == [0, 0]
    assert blocks[:, -1].tolist() == [2, 2]
    assert not torch.isin(blocks, torch.tensor([1, 3, 4])).any()


def test_a_roberta_grows_and_learns(grown: Path) -> None:
    model = RobertaForMaskedLM.from_pretrained(grown)
    config = model.config
    assert (config.num_hidden_layers, config.vocab_size, config.type_vocab_size) == (4, 300, 1)
    assert (config.max_position_embeddings, config.pad_token_id) == (34, 1)  # of which it reads 32
    assert (config.bos_token_id, config.eos_token_id) == (0, 2)
    assert config.layer_norm_eps == 1e-5
    assert isinstance(AutoTokenizer.from_pretrained(grown), RobertaTokenizer)
    history = json.loads((grown / "results.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.5


def test_its_student_is_a_shallower_one_and_its_card_says_so(grown: Path, bytes_corpus: Path, tmp_path: Path) -> None:
    args = DistillationArguments(
        teacher=str(grown), corpus=str(bytes_corpus), output_dir=str(tmp_path / "student"), max_steps=2, use_cpu=True
    )
    folder = distill(args)
    config = RobertaForMaskedLM.from_pretrained(folder).config
    assert (config.num_hidden_layers, config.max_position_embeddings) == (2, 34)
    card = (folder / "README.md").read_text()
    assert "Everything outside of the layers was copied unchanged." in card
    assert "segment" not in card.split("## Recipe")[0]


def test_blocks_longer_than_the_usable_positions_are_refused(grown: Path, text_path: Path, tmp_path: Path) -> None:
    blocks = tmp_path / "blocks"
    prepare([str(text_path)], str(blocks), str(grown), 34, validation_fraction=0, num_proc=1)
    args = DistillationArguments(
        teacher=str(grown), corpus=str(blocks), output_dir=str(tmp_path / "student"), max_steps=1, use_cpu=True
    )
    with pytest.raises(PotstillError, match=r"The teacher reads at most 32 tokens but the blocks of \S+ have 34"):
        distill(args)


def test_dropout_and_ids_of_special_tokens_reach_the_config(tmp_path: Path) -> None:
    args = pretraining(tmp_path, tmp_path / "model", model_type="roberta", dropout=0.25)
    config = initial_model(args, 2, 300, 7, 5, 6).config
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.25, 0.25)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (7, 5, 6)
    assert config.max_position_embeddings == 32 + 8
    assert isinstance(initial_model(pretraining(tmp_path, tmp_path / "model"), 2, 300, 0), BertForMaskedLM)
    with pytest.raises(PotstillError, match="no token to pad with, from whose id positions are counted"):
        initial_model(args, 2, 300, None)


def test_what_cannot_be_is_told_before_anything_is_written(bytes_corpus: Path, text_path: Path, tmp_path: Path) -> None:
    with pytest.raises(PotstillError, match="'distilbert': new models are of one of the types bert, roberta"):
        pretrain(pretraining(bytes_corpus, tmp_path / "model", model_type="distilbert"))
    with pytest.raises(PotstillError, match="'roberta': it is for a new model: leave it out"):
        PretrainingArguments(output_dir=str(tmp_path), model_type="roberta", model="folder")
    for options, told in (
        ({"train_tokenizer": True, "model_type": "distilbert"}, "one of the types bert, roberta"),
        ({"train_tokenizer": True, "model_type": "roberta", "lowercase": True}, "leave --lowercase out"),
        ({"tokenizer": "folder", "model_type": "roberta"}, "add --train_tokenizer, or leave --model_type out"),
    ):
        with pytest.raises(PotstillError, match=told):
            prepare([str(text_path)], str(tmp_path / "blocks"), **options)
    assert list(tmp_path.iterdir()) == []


BENCHED = [("roberta", {}), ("gpt2", {"pretrain": True}), ("modernbert", {"baseline": True})]
"""Each type and each option once; the long suite has all of their pairs."""


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        pytest.param(
            model_type,
            options,
            marks=() if (model_type, options) in BENCHED else pytest.mark.slow,
            id=f"{model_type} {options}",
        )
        for model_type in ("roberta", "gpt2", "modernbert")
        for options in ({}, {"pretrain": True}, {"baseline": True})
    ],
)
def test_the_bench_takes_a_random_model(model_type: str, options: dict[str, bool]) -> None:
    sizes = {"teacher_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "vocab_size": 60, "block_size": 16}
    steps = {"bench_steps": 1, "bench_warmup": 1, "per_device_train_batch_size": 2, "max_position_embeddings": 16}
    measured = bench_train(BenchTrainArguments(use_cpu=True, model_type=model_type, **sizes, **steps, **options))
    assert measured.model["model_type"] == model_type
    assert (measured.teacher is None) == ("pretrain" in options)


def test_the_bench_takes_the_architecture_of_a_teacher_from_its_folder() -> None:
    with pytest.raises(PotstillError, match="'roberta': it is for a random teacher: leave it out"):
        BenchTrainArguments(model_type="roberta", teacher="folder")
