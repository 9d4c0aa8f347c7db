"""What does not fit a sentence encoder is refused in one sentence, before anything is written."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import SPECIAL, WORDS
from sentence_samples import random_dense, small_encoder
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

from potstill import DistillationArguments, DistillationTrainer, PretrainingArguments, distill, pretrain
from potstill.corpus import Corpus, prepare
from potstill.errors import PotstillError
from potstill.sentences import SentenceEncoder, build_sentence_student
from potstill.sentences.new_student import beginnings
from potstill.sentences.trainer import SentenceTrainer


def refused(says: str, teacher: Path | str, corpus: Path, output: Path, **options: Any) -> None:
    args = DistillationArguments(
        teacher=str(teacher), corpus=str(corpus), output_dir=str(output), use_cpu=True, max_steps=1, **options
    )
    with pytest.raises(PotstillError, match=says) as caught:
        distill(args)
    assert "\n" not in str(caught.value)
    assert not output.exists() or not [file for file in output.iterdir() if not file.name.startswith(".")]


@pytest.mark.parametrize(
    "option",
    [
        {"alpha_ce": 1.0},
        {"alpha_mlm": 0.0},
        {"alpha_cos": 2.0},
        {"temperature": 3.0},
        {"soft_targets": "masked"},
        {"masking": "uniform"},
        {"mlm_probability": 0.3},
        {"mlm_smoothing": 0.5},
        {"short_block_size": 8},
        {"short_block_size": 8, "short_first": 0.5},
        {"teacher_weights": [1.0]},
        {"fold_token_types": False},
    ],
    ids=lambda option: next(iter(option)),
)
def test_options_of_language_models(
    encoder_folder: Path, texts_corpus: Path, tmp_path: Path, option: dict[str, Any]
) -> None:
    says = f"--{next(iter(option))} is for language models, but the corpus .* holds whole texts"
    refused(says, encoder_folder, texts_corpus, tmp_path / "student", **option)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layers_seconds": 5.0}, "--layers_seconds limits the time of --layers auto: add --layers auto, or leave"),
        ({"losses": {"masked_lm": 1}}, "losses: masked_lm is not for a sentence encoder: choose from embedding_cosine"),
        ({"losses": {"embedding_mse": 1, "soft_targets": 1}}, "losses: soft_targets is not for a sentence encoder"),
        ({"losses": {"attention_relations": 1}}, "losses: attention_relations is not for a sentence encoder"),
        ({"losses": {"embedding_mze": 1}}, "there is no loss 'embedding_mze'; did you mean embedding_mse?"),
        ({"losses": {}}, "losses is {}"),
        (
            {"hidden_size": 16, "losses": {"hidden_cosine": 1}},
            "the teacher's are 24 wide and the student's 16: replace it by hidden_mse",
        ),
        ({"hidden_size": 17}, "hidden_size is 17, which is not a multiple of 8"),
        ({"hidden_size": 48}, "hidden_size is 48, but the teacher's is 24"),
        ({"num_hidden_layers": 9}, "9"),
        ({"losses": {"hidden_mse": {"layers": {5: 1}}}}, "names layer 5 of the student, which has 2 layers"),
    ],
    ids=str,
)
def test_options_that_do_not_fit(
    encoder_folder: Path, texts_corpus: Path, tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    refused(says, encoder_folder, texts_corpus, tmp_path / "student", **options)


def test_several_teachers(encoder_folder: Path, texts_corpus: Path, tmp_path: Path) -> None:
    teachers = [str(encoder_folder), str(shutil.copytree(encoder_folder, tmp_path / "copy"))]
    args = DistillationArguments(
        teacher=teachers, corpus=str(texts_corpus), output_dir=str(tmp_path / "out"), use_cpu=True
    )
    with pytest.raises(PotstillError, match="A sentence encoder learns from one teacher"):
        distill(args)


@pytest.mark.parametrize("model_type", ["mpnet", "deberta-v2", "modernbert"])
def test_a_family_that_does_not_read_rows(texts_corpus: Path, tmp_path: Path, model_type: str) -> None:
    small_encoder(model_type).save(tmp_path / "teacher")
    says = f"The teacher is a {model_type}, which cannot read several texts in one block: use a BERT"
    refused(says, tmp_path / "teacher", texts_corpus, tmp_path / "student")


def test_a_dense_module_needs_the_width_that_it_reads(texts_corpus: Path, tmp_path: Path) -> None:
    small_encoder(dense=random_dense(24, 6)).save(tmp_path / "teacher")
    says = "hidden_size is 16, but the Dense module of the teacher reads vectors that are made of .* 24 wide"
    refused(says, tmp_path / "teacher", texts_corpus, tmp_path / "student", hidden_size=16)


def test_blocks_longer_than_the_encoder_reads(texts_corpus: Path, tmp_path: Path) -> None:
    small_encoder(max_length=12).save(tmp_path / "teacher")
    says = "The teacher reads at most 12 tokens but the blocks of .* have 19: .* smaller --block_size"
    refused(says, tmp_path / "teacher", texts_corpus, tmp_path / "student")


def test_each_kind_of_training_refuses_the_corpus_of_the_other(
    encoder_folder: Path, texts_corpus: Path, texts_path: Path, tmp_path: Path
) -> None:
    blocks = prepare([str(texts_path)], str(tmp_path / "blocks"), str(encoder_folder), 16, num_proc=1)
    teacher = small_encoder()
    args = DistillationArguments(output_dir=str(tmp_path / "b"), use_cpu=True)
    with pytest.raises(PotstillError, match="holds blocks of running text, but a sentence encoder reads whole texts"):
        SentenceTrainer(build_sentence_student(teacher), blocks, args, teacher)

    whole = r"holds whole texts \(--unit texts\) for a sentence encoder, but this is a language model"
    model = BertForMaskedLM(BertConfig(vocab_size=200, hidden_size=16, num_hidden_layers=1, num_attention_heads=1))
    with pytest.raises(PotstillError, match=whole):
        DistillationTrainer(model, texts_corpus, args, model)
    new = PretrainingArguments(
        corpus=str(texts_corpus), output_dir=str(tmp_path / "c"), use_cpu=True, hidden_size=16, num_hidden_layers=1,
        num_attention_heads=1, intermediate_size=16, max_position_embeddings=32, max_steps=1,
    )  # fmt: skip
    with pytest.raises(PotstillError, match=whole):
        pretrain(new)


def test_another_tokenizer(texts_corpus: Path, tmp_path: Path) -> None:
    other = small_encoder()
    other.tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate([*SPECIAL, *sorted(WORDS), "."])})
    other.save(tmp_path / "teacher")
    refused("was prepared with the tokenizer", tmp_path / "teacher", texts_corpus, tmp_path / "student")


@pytest.mark.parametrize("inner", [False, True])
def test_prepare_reads_the_tokenizer_as_the_encoder_does(tmp_path: Path, inner: bool) -> None:
    folder = tmp_path / "teacher"
    encoder = small_encoder()
    encoder.lower_case = True  # and the tokenizer itself does not lower-case
    encoder.tokenizer.backend_tokenizer.normalizer = None
    encoder.save(folder)
    if inner:
        (folder / "0_Transformer").mkdir()
        for file in [file for file in folder.iterdir() if file.is_file() and "modules" not in file.name]:
            file.rename(folder / "0_Transformer" / file.name)
        modules = (folder / "modules.json").read_text()
        (folder / "modules.json").write_text(modules.replace('"path": ""', '"path": "0_Transformer"'))
    text = tmp_path / "text.txt"
    text.write_text("BOL dome KINE\n")
    corpus = prepare([str(text)], str(tmp_path / "corpus"), str(folder), 19,
                     validation_fraction=0, num_proc=1, unit="texts")  # fmt: skip
    teacher = SentenceEncoder.load(folder)
    assert corpus.cut_needed(teacher.tokenizer, "it") is None
    ids = corpus.train.__getitems__([0])["input_ids"][0]
    assert ids[ids != 0].tolist() == teacher.tokenizer("bol dome kine")["input_ids"]


def test_importance_is_measured_on_the_beginnings_of_texts(
    encoder_folder: Path, texts_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("potstill.sentences.new_student.MEASURED_BLOCKS", 10**6)
    corpus, encoder = Corpus.open(texts_corpus), SentenceEncoder.load(encoder_folder)
    texts: list[list[int]] = []
    for item in corpus.train:
        for token in item["input_ids"].tolist():
            if token == encoder.tokenizer.cls_token_id:
                texts.append([])
            if token != encoder.tokenizer.pad_token_id:
                texts[-1].append(token)
    found = beginnings(corpus, encoder)
    length = sorted(map(len, texts))[(len(texts) - 1) // 2]
    assert found.tolist() == [text[:length] for text in texts if len(text) >= length]


def test_a_student_of_fewer_heads_and_neurons_keeps_its_width() -> None:
    teacher = small_encoder(dense=random_dense(24, 6))
    texts = torch.randint(5, 60, (8, 7), generator=torch.Generator().manual_seed(1))
    student = build_sentence_student(teacher, 2, intermediate_size=20, texts=texts)
    assert student.width == 6
    assert student.model.config.intermediate_size == 20
    wide = teacher.model.encoder.layer[0].intermediate.dense.weight
    rows = student.model.encoder.layer[0].intermediate.dense.weight
    assert all((wide == row).all(1).any() for row in rows)
    random = build_sentence_student(teacher, 1, initialise="random", intermediate_size=30, num_attention_heads=4)
    assert random.model.config.num_attention_heads == 4
