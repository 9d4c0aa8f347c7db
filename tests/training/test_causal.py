"""A GPT-2 from text: its tokenizer, its blocks, its training, its student, and what does not fit it."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runs import pretraining
from samples import BLOCK_SIZE
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, GPT2Tokenizer, pipeline

from potstill import (
    DistillationArguments,
    DistillationObjective,
    DistillationTrainer,
    PotstillError,
    build_student,
    distill,
    prepare,
    pretrain,
)
from potstill.corpus import Corpus, next_tokens
from potstill.objective import CausalLM, MaskedLM, Objective, SoftTargets
from potstill.student import load_masked_lm
from potstill.training.compatibility import check_fit


@pytest.fixture(scope="module")
def gpt2_corpus(text_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2") / "blocks"
    options = {"train_tokenizer": True, "model_type": "gpt2", "vocab_size": 300, "block_size": BLOCK_SIZE}
    prepare([str(text_path)], str(folder), validation_fraction=0.2, num_proc=1, **options)
    return folder


@pytest.fixture(scope="module")
def teacher(gpt2_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grown") / "gpt2"
    return pretrain(pretraining(gpt2_corpus, folder, model_type="gpt2", grow="2,4", max_steps=20))


def arguments(corpus: Path, folder: Path, **options: object) -> DistillationArguments:
    values = {"max_steps": 4, "per_device_train_batch_size": 8, "logging_steps": 1, "report_to": "none", **options}
    return DistillationArguments(corpus=str(corpus), output_dir=str(folder), use_cpu=True, **values)


def test_blocks_are_bare_and_documents_end(gpt2_corpus: Path) -> None:
    corpus = Corpus.open(gpt2_corpus)
    tokenizer = corpus.tokenizer()
    assert isinstance(tokenizer, GPT2Tokenizer)
    assert (len(tokenizer), tokenizer.eos_token_id, corpus.framed) == (300, 0, False)
    blocks = corpus.train.__getitems__(list(range(len(corpus.train))))["input_ids"]
    assert (blocks == 0).any()
    assert not (blocks[:, 0] == 0).all()


def test_each_token_is_labelled_with_the_next() -> None:
    blocks = torch.arange(12).reshape(2, 6)
    labelled = next_tokens(blocks, torch.tensor([3, 4]))
    assert torch.equal(labelled.input_ids, blocks)
    assert torch.equal(labelled.labels, blocks.gather(1, labelled.positions) + 1)
    assert labelled.positions.tolist() == [[0, 1, 2, 3, 4]] * 2


def test_it_learns_and_says_what_it_is(teacher: Path) -> None:
    results = json.loads((teacher / "results.json").read_text())
    losses = [entry["loss"] for entry in results["log_history"] if "loss" in entry]
    assert losses[-1] < losses[0] - 0.5
    final = results["held_out"]["final"]
    assert final["perplexity"] == pytest.approx(math.exp(final["loss"]))
    card = (teacher / "README.md").read_text()
    assert "pipeline_tag: text-generation" in card
    assert "pre-trained by causal LM" in card
    assert "perplexity" in card
    generate = pipeline("text-generation", model=str(teacher))
    assert isinstance(generate("bol dol", max_new_tokens=3)[0]["generated_text"], str)


def test_its_student_is_half_as_deep_and_loads_anywhere(teacher: Path, gpt2_corpus: Path, tmp_path: Path) -> None:
    folder = distill(arguments(gpt2_corpus, tmp_path / "student", teacher=str(teacher)))
    student = GPT2LMHeadModel.from_pretrained(folder)
    assert student.config.n_layer == 2
    assert AutoTokenizer.from_pretrained(folder)("bol", return_tensors="pt").input_ids.shape[0] == 1
    final = json.loads((folder / "results.json").read_text())["held_out"]["final"]
    assert final["teacher_perplexity"] == pytest.approx(math.exp(final["teacher_loss"]))
    assert "| teacher |" in (folder / "README.md").read_text()


@pytest.mark.parametrize("mean", ["probabilities", "logits"])
def test_a_student_of_two_learns_from_their_mean(mean: str, teacher: Path, gpt2_corpus: Path, tmp_path: Path) -> None:
    two = [load_masked_lm(teacher, dtype=torch.float64) for _ in range(2)]
    with torch.no_grad():
        for parameter in two[1].parameters():
            parameter.add_(torch.randn_like(parameter) / 10)
    student = build_student(two[0])
    args = arguments(gpt2_corpus, tmp_path, teacher_weights=[3, 1], teacher_mean=mean)
    trainer = DistillationTrainer(student, str(gpt2_corpus), args, two)
    batch = trainer.corpus.train.__getitems__([0, 3, 5])
    losses = trainer.compute_losses(trainer.step.eval(), batch)
    with torch.no_grad():
        first, second = (model(batch["input_ids"]).logits / 2 for model in two)
        log_q = (student(batch["input_ids"]).logits / 2).log_softmax(-1)
    if mean == "logits":
        p = (0.75 * first + 0.25 * second).softmax(-1)
    else:
        p = 0.75 * first.softmax(-1) + 0.25 * second.softmax(-1)
    torch.testing.assert_close(losses["ce"], (p * (p.log() - log_q)).sum(-1).mean() * 4, check_dtype=False)
    measured = trainer.evaluate()
    for name in ("", "teacher_", "teacher_1_", "teacher_2_"):
        assert measured[f"eval_{name}perplexity"] == pytest.approx(math.exp(measured[f"eval_{name}loss"]))


def test_a_masked_model_among_causal_teachers_is_named(
    teacher: Path, gpt2_corpus: Path, make_teacher: Callable[..., Path], tmp_path: Path
) -> None:
    causal = load_masked_lm(teacher)
    masked = load_masked_lm(make_teacher())
    with pytest.raises(PotstillError, match=f"The teacher {masked.name_or_path} and the student must be of one kind"):
        check_fit(
            build_student(causal),
            [causal, masked],
            Corpus.open(gpt2_corpus),
            Corpus.open(gpt2_corpus).tokenizer(),
            DistillationObjective(causal=True),
        )


def test_the_losses_are_those_of_a_naive_version_in_float64(teacher: Path, gpt2_corpus: Path, tmp_path: Path) -> None:
    large = load_masked_lm(teacher, dtype=torch.float64)
    student = build_student(large)
    args = arguments(gpt2_corpus, tmp_path, alpha_ce=5.0, alpha_mlm=2.0, alpha_cos=1.0)
    trainer = DistillationTrainer(student, str(gpt2_corpus), args, large)
    batch = trainer.corpus.train.__getitems__([0, 3, 5])
    losses = trainer.compute_losses(trainer.step.eval(), batch)
    losses["loss"].backward()
    gradient = student.get_input_embeddings().weight.grad.clone()
    student.zero_grad()

    blocks = batch["input_ids"]
    mine, theirs = student(blocks, output_hidden_states=True), large(blocks, output_hidden_states=True)
    log_q, p = (mine.logits / 2).log_softmax(-1), (theirs.logits / 2).softmax(-1)
    ce = (p * (p.log() - log_q)).sum(-1).mean() * 4
    clm = torch.nn.functional.cross_entropy(mine.logits[:, :-1].flatten(0, 1), blocks[:, 1:].flatten())
    cos = 1 - torch.nn.functional.cosine_similarity(mine.hidden_states[-1], theirs.hidden_states[-1], dim=-1).mean()
    expected = 5 * ce + 2 * clm + cos
    for name, value in {"ce": ce, "clm": clm, "cos": cos, "loss": expected}.items():
        torch.testing.assert_close(losses[name], value, check_dtype=False, rtol=1e-9, atol=1e-9)
    expected.backward()
    torch.testing.assert_close(gradient, student.get_input_embeddings().weight.grad, rtol=1e-7, atol=1e-10)


def test_nothing_after_a_token_changes_what_is_learnt_of_it(teacher: Path, gpt2_corpus: Path, tmp_path: Path) -> None:
    from potstill.student import family_of

    model = load_masked_lm(teacher)
    blocks = Corpus.open(gpt2_corpus).train.__getitems__([1])["input_ids"]
    changed = blocks.clone()
    changed[:, 8:] = 7
    one, other = (family_of(model).encode(model, ids).last for ids in (blocks, changed))
    torch.testing.assert_close(one[:, :8], other[:, :8])
    assert not torch.allclose(one[:, 8:], other[:, 8:])


def test_framed_blocks_are_not_for_it_and_bare_ones_not_for_a_bert(
    teacher: Path, teacher_folder: Path, text_path: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    causal = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=8, n_layer=2, n_head=2, n_positions=64))
    bidirectional = load_masked_lm(teacher_folder)
    for frame, right, wrong, says in (
        (None, bidirectional, causal, "the model is causal: prepare the text again with --frame_blocks False"),
        (False, causal, bidirectional, "reads both ways: prepare the text again without --frame_blocks False"),
    ):
        folder = tmp_path / f"blocks-{frame}"
        prepare([str(text_path)], str(folder), str(teacher_folder), BLOCK_SIZE, num_proc=1, frame_blocks=frame)
        with pytest.raises(PotstillError, match=says):
            DistillationTrainer(build_student(wrong), str(folder), arguments(folder, tmp_path / "run"), wrong)
        DistillationTrainer(build_student(right), str(folder), arguments(folder, tmp_path / "run"), right)
    with pytest.raises(PotstillError, match="no \\[CLS\\] or no \\[SEP\\] to put around blocks"):
        prepare([str(text_path)], str(tmp_path / "x"), str(teacher), BLOCK_SIZE, num_proc=1, frame_blocks=True)


@pytest.mark.parametrize(
    ("objective", "says"),
    [
        (Objective([MaskedLM()]), "masked_lm needs a student that reads both ways: say causal_lm"),
        (
            Objective([SoftTargets(tokens="masked")]),
            "soft_targets is taken at masked tokens, but a causal model has no masked ones",
        ),
        (DistillationObjective(soft_targets="masked", causal=True), "tokens: all"),
    ],
)
def test_losses_that_a_causal_model_cannot_learn(
    objective: Objective, says: str, teacher: Path, gpt2_corpus: Path, tmp_path: Path
) -> None:
    model = load_masked_lm(teacher)
    with pytest.raises(PotstillError, match=says):
        DistillationTrainer(
            build_student(model), str(gpt2_corpus), arguments(gpt2_corpus, tmp_path), model, objective=objective
        )


@pytest.mark.parametrize(("name", "value"), [("masking", "uniform"), ("mlm_probability", 0.3), ("mlm_smoothing", 0.5)])
def test_options_of_masks_are_refused(
    name: str, value: object, teacher: Path, gpt2_corpus: Path, tmp_path: Path
) -> None:
    args = arguments(gpt2_corpus, tmp_path / "student", teacher=str(teacher), **{name: value})
    model = load_masked_lm(str(teacher))
    for train in (lambda: distill(args), lambda: DistillationTrainer(build_student(model), gpt2_corpus, args, model)):
        with pytest.raises(PotstillError, match=f"--{name} is for models that read both ways"):
            train()
    assert not (tmp_path / "student").exists()


def test_a_bert_cannot_learn_the_next_token(teacher_folder: Path, corpus_folder: Path, tmp_path: Path) -> None:
    model = load_masked_lm(teacher_folder)
    args = arguments(corpus_folder, tmp_path)
    with pytest.raises(PotstillError, match="causal_lm needs a causal student"):
        DistillationTrainer(build_student(model), str(corpus_folder), args, model, objective=Objective([CausalLM()]))


def test_both_kinds_of_labels_at_once_are_refused() -> None:
    with pytest.raises(PotstillError, match="masked_lm and causal_lm are both given"):
        Objective([MaskedLM(), CausalLM()])


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"scale_attn_by_inverse_layer_idx": True}, "scales attention by the number of the layer"),
        ({"add_cross_attention": True}, "is the decoder of an encoder-decoder"),
    ],
)
def test_a_gpt2_that_cannot_be_a_teacher(option: dict[str, bool], says: str, tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=2, n_head=2, **option)).save_pretrained(tmp_path)
    with pytest.raises(PotstillError, match=says):
        load_masked_lm(tmp_path)
