"""Distilling on a corpus whose vocabulary is cut."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families_samples import CONFIGS, random_model
from runs import distillation, pretraining
from safetensors.torch import load_file, save_file
from samples import VOCABULARY
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerFast, XLMRobertaTokenizer, pipeline

from potstill import (
    Corpus,
    DistillationObjective,
    DistillationTrainer,
    PotstillError,
    build_student,
    distill,
    prepare,
    pretrain,
    prune_embeddings,
)
from potstill.student import load_masked_lm
from potstill.student.family import new_tokenizer_kind
from potstill.training.compatibility import check_fit
from potstill.training.parts import load_teachers

STEPS = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 3, "eval_on_start": True}


@pytest.fixture(scope="module")
def cut_corpus(teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of few words of the vocabulary."""
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text("bol dol kil lul mel sol bola dola .\n" * 100)
    folder = tmp_path_factory.mktemp("cut") / "blocks"
    prepare([str(text)], str(folder), str(teacher_folder), 16, validation_fraction=0.2, prune_vocabulary=True)
    return folder


def test_the_student_of_a_cut_teacher_loads_anywhere(teacher_folder: Path, cut_corpus: Path, tmp_path: Path) -> None:
    folder = distill(distillation(teacher_folder, cut_corpus, tmp_path / "student", **STEPS))
    corpus = Corpus.open(cut_corpus)
    tokenizer, student = AutoTokenizer.from_pretrained(folder), AutoModelForMaskedLM.from_pretrained(folder)
    corpus.check_tokenizer(tokenizer, "the student")
    assert student.config.vocab_size == len(tokenizer) == len(corpus.kept_tokens) == 14
    assert "token_type_ids" not in tokenizer.model_input_names
    fill = pipeline("fill-mask", model=str(folder))
    assert fill("bol dol [MASK] .")[0]["token_str"] in tokenizer.get_vocab()
    whole = load_masked_lm(teacher_folder).config.vocab_size
    told = f"The vocabulary of teacher was cut to the 14 of its {whole} tokens that the corpus needs."
    assert told in (folder / "README.md").read_text()


def _unigram(text: Path) -> XLMRobertaTokenizer:
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    words = [f"▁{word}" for word in VOCABULARY[5:]]
    letters = sorted({*"".join(words)})
    scores = [(piece, -3.0 - 0.01 * number) for number, piece in enumerate([*words, *letters])]
    return XLMRobertaTokenizer(vocab=[*((token, 0.0) for token in special), *scores, ("<mask>", 0.0)])


def _byte_level(text: Path) -> PreTrainedTokenizerFast:
    return new_tokenizer_kind("roberta").train(lambda: text.read_bytes().splitlines(), 400, None, 32)


@pytest.mark.parametrize(("model_type", "make"), [("roberta", _byte_level), ("xlm-roberta", _unigram)])
def test_other_kinds_of_tokenizers(
    model_type: str, make: Callable[[Path], PreTrainedTokenizerFast], text_path: Path, tmp_path: Path
) -> None:
    tokenizer = make(text_path)
    model = random_model(CONFIGS[model_type](vocab_size=len(tokenizer)))
    for part in (tokenizer, model):
        part.save_pretrained(tmp_path / "teacher")
    (tmp_path / "text.txt").write_text("bol dol kil lul mel sol bola dola .\n" * 50)
    prepare(
        [str(tmp_path / "text.txt")], str(tmp_path / "blocks"), str(tmp_path / "teacher"), 16, prune_vocabulary=True
    )
    corpus = Corpus.open(tmp_path / "blocks")
    folder = distill(distillation(tmp_path / "teacher", tmp_path / "blocks", tmp_path / "student", max_steps=2))
    small = AutoTokenizer.from_pretrained(folder)
    corpus.check_tokenizer(small, "the student")
    assert len(corpus.kept_tokens) == len(small) < len(tokenizer) - 50
    for words in ("bol dol kil .", "mel sol bola", "dola" + small.mask_token):
        assert (corpus.kept_tokens[small(words)["input_ids"]] == tokenizer(words)["input_ids"]).all()
    filled = pipeline("fill-mask", model=str(folder))(f"bol dol {small.mask_token} .")
    assert filled[0]["token_str"]


def test_the_first_held_out_figures_are_those_of_the_teachers_kept_tokens(
    teacher_folder: Path, cut_corpus: Path, tmp_path: Path
) -> None:
    args = distillation(teacher_folder, cut_corpus, tmp_path / "student", **STEPS)
    corpus = Corpus.open(cut_corpus)
    [teacher], tokenizer = load_teachers([str(teacher_folder)], corpus)
    trainer = DistillationTrainer(build_student(teacher), corpus, args, teacher, processing_class=tokenizer)
    batch = trainer.held_out_labelling(corpus.validation[0]["input_ids"][None], torch.tensor([0]))
    kept = torch.from_numpy(corpus.kept_tokens)
    whole = load_masked_lm(teacher_folder)
    with torch.no_grad():
        expected = whole(kept[batch.input_ids]).logits[..., kept]
        torch.testing.assert_close(teacher(batch.input_ids).logits, expected, rtol=0, atol=1e-5)


def test_a_named_teacher_is_cut_and_a_whole_model_is_refused(
    teacher_folder: Path, cut_corpus: Path, tmp_path: Path
) -> None:
    args = distillation(teacher_folder, cut_corpus, tmp_path / "student")
    corpus = Corpus.open(cut_corpus)
    whole = load_masked_lm(teacher_folder)
    teacher = prune_embeddings(whole, corpus.kept_tokens)
    student = build_student(teacher)
    named = DistillationTrainer(student, cut_corpus, args, str(teacher_folder))
    given = DistillationTrainer(student, cut_corpus, args, teacher)
    assert named.fingerprints == given.fingerprints
    told = r"The {0} knows \d+ tokens, but the vocabulary of the corpus .* is cut to 14 of \d+: cut the {0} with"
    with pytest.raises(PotstillError, match=told.format("teacher")):
        DistillationTrainer(student, cut_corpus, args, whole)
    with pytest.raises(PotstillError, match=told.format("student")):
        DistillationTrainer(build_student(whole), cut_corpus, args, teacher)
    with pytest.raises(PotstillError, match="but that of the tokenizer given is whole"):
        DistillationTrainer(
            student, cut_corpus, args, teacher, processing_class=AutoTokenizer.from_pretrained(teacher_folder)
        )


def test_several_named_teachers_are_cut(
    teacher_folder: Path, make_teacher: Callable[..., Path], cut_corpus: Path, tmp_path: Path
) -> None:
    args = distillation(teacher_folder, cut_corpus, tmp_path / "student", **STEPS)
    args.teacher = [str(teacher_folder), str(make_teacher(seed=1))]
    folder = distill(args)
    assert AutoModelForMaskedLM.from_pretrained(folder).config.vocab_size == 14
    assert "teacher_2_loss" in json.loads((folder / "results.json").read_text())["held_out"]["final"]


def test_of_several_teachers_the_whole_one_is_named(teacher_folder: Path, cut_corpus: Path, tmp_path: Path) -> None:
    args = distillation(teacher_folder, cut_corpus, tmp_path / "student")
    [teacher], _ = load_teachers([str(teacher_folder)], Corpus.open(cut_corpus))
    whole = load_masked_lm(teacher_folder)
    whole.name_or_path = ""
    with pytest.raises(PotstillError, match=r"The teacher number 2 knows \d+ tokens, .* cut the teacher number 2"):
        DistillationTrainer(build_student(teacher), cut_corpus, args, [teacher, whole])


def test_a_cut_model_fits_no_whole_corpus(teacher_folder: Path, cut_corpus: Path, corpus: Corpus) -> None:
    [small], tokenizer = load_teachers([str(teacher_folder)], Corpus.open(cut_corpus))
    with pytest.raises(PotstillError, match="prepare the corpus with the teacher's own tokenizer"):
        check_fit(small, [small], corpus, corpus.tokenizer(), DistillationObjective())
    with pytest.raises(PotstillError, match="different from that of the student: prepare the text again"):
        corpus.check_tokenizer(tokenizer, "the student")


def test_a_teacher_that_knows_too_few_tokens_is_refused(teacher_folder: Path, cut_corpus: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    model = load_masked_lm(teacher_folder)
    prune_embeddings(model, torch.arange(50)).save_pretrained(broken)
    AutoTokenizer.from_pretrained(teacher_folder).save_pretrained(broken)
    with pytest.raises(PotstillError, match=r"go up to the id \d+, but the model '.*broken' knows 50 tokens"):
        distill(distillation(broken, cut_corpus, tmp_path / "student"))
    assert not (tmp_path / "student").exists()


def test_another_teacher_is_refused_before_its_weights_are_read(
    teacher_folder: Path, cut_corpus: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(other)
    with pytest.raises(PotstillError, match=r"different from that of .*other: prepare the text again"):
        distill(distillation(other, cut_corpus, tmp_path / "student"))


def test_padded_rows_of_the_teacher_go_too(teacher_folder: Path, cut_corpus: Path, tmp_path: Path) -> None:
    padded = tmp_path / "padded"
    model = load_masked_lm(teacher_folder)
    rows = model.config.vocab_size
    state = load_file(teacher_folder / "model.safetensors")
    for name, tensor in state.items():
        if len(tensor) == rows:
            state[name] = torch.cat([tensor, torch.ones_like(tensor[:6])])
    AutoTokenizer.from_pretrained(teacher_folder).save_pretrained(padded)
    config = json.loads((teacher_folder / "config.json").read_text())
    (padded / "config.json").write_text(json.dumps(config | {"vocab_size": rows + 6}))
    save_file(state, padded / "model.safetensors", {"format": "pt"})
    corpus = Corpus.open(cut_corpus)
    [teacher], _ = load_teachers([str(padded)], corpus)
    [expected], _ = load_teachers([str(teacher_folder)], corpus)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(teacher.state_dict()[name], tensor), name


def test_a_new_model_is_pre_trained_on_the_cut_corpus(teacher_folder: Path, cut_corpus: Path, tmp_path: Path) -> None:
    folder = pretrain(pretraining(cut_corpus, tmp_path / "model", max_steps=2))
    assert AutoModelForMaskedLM.from_pretrained(folder).config.vocab_size == 14
    with pytest.raises(PotstillError, match=r"The student knows \d+ tokens, but the vocabulary of the corpus"):
        pretrain(pretraining(cut_corpus, tmp_path / "other", model=str(teacher_folder)))
