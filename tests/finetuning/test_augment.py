"""Synthetic texts: what becomes of the words, and how millions of texts are written, resumed and read."""

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from finetuning_samples import VOCABULARY, WORDS, finetuned, flags
from transformers import BertConfig, BertForTokenClassification, BertTokenizer

from potstill.cli import main
from potstill.errors import PotstillError
from potstill.finetuning import augmented as module
from potstill.finetuning.augment import LONGEST, Synthesiser, WordsByClass, split_words
from potstill.finetuning.augment_options import AugmentOptions
from potstill.finetuning.augmented import augmented
from potstill.finetuning.unlabelled import Unlabelled
from potstill.finetuning.word_classes import Endings, Tagger, ending

MASK = "[MASK]"
TEXT = "one two , three four five six seven eight nine ten"
CLASSES = [0, 1, -1, 0, 1, 0, 1, 0, 1, 0, 1]
KINDS = {0: ["aa", "bb", "cc"], 1: ["xx", "yy"]}
SHARES = {"aa": 0.6, "bb": 0.3, "cc": 0.1, "xx": 0.75, "yy": 0.25}


def vocabulary() -> WordsByClass:
    pairs = [("aa", 0)] * 6 + [("bb", 0)] * 3 + [("cc", 0)] + [("xx", 1)] * 3 + [("yy", 1)] + [("never", -1)]
    return WordsByClass.count(pairs)


def near(found: int, of: int, share: float) -> bool:
    """Whether a count is within five standard deviations of its expectation."""
    return abs(found - of * share) <= 5 * math.sqrt(of * share * (1 - share)) + 1e-9


def test_a_text_is_split_into_words_and_put_together_again() -> None:
    text = "  It's  a well-known, 3.5-star\tfilm — naïve (really)!"
    words = split_words(text)
    assert "".join(map("".join, words)) == text
    assert [word for _, word in words] == [
        *("It's", "a", "well-known", ",", "3", ".", "5-star", "film", "—", "naïve", "(", "really", ")", "!")
    ]


def test_words_are_masked_and_replaced_by_their_probabilities() -> None:
    samples, words = 20_000, split_words(TEXT)
    seed = int(np.random.randint(2**31))
    options = AugmentOptions(samples, mask=0.1, replace=0.2, ngram=0, seed=seed)
    texts = Synthesiser(options, vocabulary(), MASK).texts(3, [words], [CLASSES])
    assert len(texts) == samples
    masked, replaced, drawn = Counter[int](), Counter[int](), Counter[str]()
    for (text,) in texts:
        found = text.replace(MASK, "MASK").split()
        assert len(found) == len(words)
        for place, (word, (_, before)) in enumerate(zip(found, words, strict=True)):
            masked[place] += word == "MASK"
            if word not in ("MASK", before):
                assert word in KINDS[CLASSES[place]]
                replaced[place] += 1
                drawn[word] += 1
    for place, kind in enumerate(CLASSES):
        assert near(masked[place], samples, 0.1)
        assert near(replaced[place], samples, 0.2 if kind >= 0 else 0)
    for kind, of in KINDS.items():
        total = sum(replaced[place] for place, one in enumerate(CLASSES) if one == kind)
        assert all(near(drawn[word], total, SHARES[word]) for word in of)


def test_ngrams_are_kept_by_their_probability() -> None:
    samples, words = 20_000, split_words(TEXT)
    seed = int(np.random.randint(2**31))
    options = AugmentOptions(samples, mask=0, replace=0, ngram=0.25, seed=seed)
    texts = [text for (text,) in Synthesiser(options, vocabulary(), MASK).texts(0, [words], [CLASSES])]
    counts = Counter(texts)
    assert near(counts.pop(TEXT), samples, 0.75)
    wanted = {}
    for length in range(1, LONGEST + 1):
        places = len(words) - length + 1
        for start in range(places):
            gram = "".join(map("".join, words[start : start + length])).strip()
            wanted[gram] = 0.25 / LONGEST / places
    assert set(counts) <= set(wanted)
    assert all(near(counts[gram], samples, share) for gram, share in wanted.items())


def test_short_texts_and_no_mask() -> None:
    options = AugmentOptions(50, mask=0.5, replace=0, ngram=0.5)
    synthesiser = Synthesiser(options, vocabulary(), "")
    assert {text for (text,) in synthesiser.texts(0, [[]], [[]])} == {""}
    assert {text for (text,) in synthesiser.texts(0, [split_words("one two")], [[0, 0]])} == {
        "one two",
        "one",
        "two",
        "",
    }


def test_of_a_pair_the_first_the_second_and_both_are_changed_in_turn() -> None:
    options = AugmentOptions(300, mask=1, replace=0, ngram=0)
    row = [split_words("one two"), split_words("three")]
    texts = Synthesiser(options, vocabulary(), MASK).texts(1, row, [[0, 0], [0]])
    masked = "[MASK] [MASK]"
    assert texts == [[masked, "three"], ["one two", MASK], [masked, MASK]] * 100


def test_endings() -> None:
    words = ["walking", "Talking", "KING", "slowly", "the", "1990s", "well-done", "—", "naïve", "good", "o'er"]
    assert [ending(word) for word in words] == ["ng", "ngA", "ngA", "ly", None, "0", "ne", None, "ve", "od", "er"]
    assert Endings()([["walking", "the"], ["slowly", "king"]]) == [[0, -1], [1, 0]]


ROWS = {"text": ["walking slowly home", "good", "talking quickly , then home", "good"], "label": [0, 1, 0, 1]}


def made(train: datasets.Dataset, *scored: datasets.Dataset, **options: Any) -> Unlabelled:
    def no_tagger(name: str) -> Tagger:
        raise AssertionError

    return augmented(train, scored, AugmentOptions(**options), MASK, no_tagger)


def test_each_text_is_there_once_and_no_known_one() -> None:
    train = datasets.Dataset.from_dict(ROWS)
    scored = datasets.Dataset.from_dict({"text": ["home", "[MASK]"], "label": [0, 0]})
    found = made(train, scored, samples=200)
    texts = found.rows["text"][:]
    assert len(texts) == len(set(texts)) == found.counts["texts"] == found.counts["synthetic"] == len(found)
    assert not {*texts} & {*ROWS["text"], "home", "[MASK]"}
    assert {"slowly", "walking slowly [MASK]"} <= {*texts}
    assert sum(value for name, value in found.counts.items() if name != "synthetic") == 800
    assert min(found.counts[name] for name in ("duplicates", "in_training_rows", "in_scored_rows")) > 0
    other = made(train, scored, samples=200, seed=1).rows["text"][:]
    assert texts != other


def test_an_interrupted_run_continues_and_makes_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "ROWS_TAGGED", 2)
    monkeypatch.setattr(module, "TEXTS_PER_PART", 1)
    train = datasets.Dataset.from_dict({"text": [f"{a} {b}" for a in WORDS[:6] for b in WORDS[:6]]})
    whole = made(train, samples=9).rows["text"][:]
    again = made(train, samples=9).rows["text"][:]
    assert again == whole
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "other"))
    done: list[int] = []
    write = module._Parts._write

    def counted(self: Any, synthesiser: Any, start: int, *args: Any) -> None:
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(start)
        write(self, synthesiser, start, *args)

    monkeypatch.setattr(module._Parts, "_write", counted)
    with pytest.raises(KeyboardInterrupt):
        made(train, samples=9)
    assert len(done) == 4
    done[:] = ["resumed"]  # type: ignore[list-item]
    monkeypatch.setattr(module._Parts, "_write", lambda *args: (done.append(args[2]), write(*args)))
    assert made(train, samples=9).rows["text"][:] == whole
    assert done == ["resumed", *range(8, 36, 2)]
    assert [path.name for path in (tmp_path / "other" / "synthetic-texts").glob(".*")] == []


@pytest.fixture(scope="module")
def tagger(word_tokenizer: BertTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tagger of three tags."""
    folder = tmp_path_factory.mktemp("tagger")
    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(vocab_size=len(VOCABULARY), max_position_embeddings=16, num_labels=3, **sizes)
        BertForTokenClassification(config).save_pretrained(folder)
    word_tokenizer.save_pretrained(folder)
    return folder


def test_a_tagger_tells_the_classes(tagger: Path) -> None:
    model = Tagger(str(tagger), torch.device("cpu"), 3)
    sentences = [[WORDS[0], WORDS[9], WORDS[3]], [], ["unknown-word"], WORDS[:20]]
    found = model(sentences)
    assert [len(kinds) for kinds in found] == [3, 0, 1, 20]
    assert found[3][14:] == [-1] * 6  # it reads 16 tokens, two of them special
    for words, kinds in zip(sentences, found, strict=True):
        inputs = model.tokenizer([words[:14]], is_split_into_words=True, return_tensors="pt")
        tags = model.model(**inputs).logits[0, 1:-1].argmax(-1).tolist()
        assert kinds[:14] == tags[: len(kinds[:14])]
    train = datasets.Dataset.from_dict({"text": [" ".join(WORDS), " ".join(WORDS[::-1])]})
    options = AugmentOptions(50, mask=0, replace=1, ngram=0, tagger=str(tagger))
    texts = augmented(train, [], options, MASK, lambda name: Tagger(name, torch.device("cpu"), 8)).rows["text"][:]
    kinds = dict(zip(WORDS[:14], model([WORDS])[0], strict=False))
    other = dict(zip(WORDS[::-1][:14], model([WORDS[::-1]])[0], strict=False))
    words_of = {kind: {w for of in (kinds, other) for w, k in of.items() if k == kind} for kind in (0, 1, 2)}
    for text in texts:
        found_words = text.split()
        source = WORDS if found_words[14:] == WORDS[14:] else WORDS[::-1]
        assert found_words[14:] == source[14:]
        of = kinds if source is WORDS else other
        assert all(word in words_of[of[before]] for word, before in zip(found_words[:14], source, strict=False))


def test_a_student_learns_from_synthetic_texts(
    teacher: Path, distilbert: Path, new_model: Callable[..., Path], glue: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"task": "sst2", "task_data": glue, "teacher": teacher, "num_train_epochs": 1}
    options |= {"without_teacher_too": False}
    found = finetuned(model=distilbert, output_dir=tmp_path / "out", augment=3, **options)
    assert found["unlabelled"]["synthetic"] == found["unlabelled"]["texts"] > 60
    assert found["unlabelled"]["per_epoch"] == found["unlabelled"]["texts"]
    assert found["without_unlabelled"] is not None
    recipe = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    assert recipe["augment"]["samples"] == 3
    assert "synthetic texts" in (tmp_path / "out" / "README.md").read_text()
    # A teacher with another tokenizer reads its own mask.
    options |= {"teacher": tmp_path / "roberta", "without_unlabelled_too": False}
    finetuned(model=new_model("roberta"), task="sst2", task_data=glue, output_dir=tmp_path / "roberta", max_steps=1)
    more = "{samples: 2, mask: 0.5}"
    finetuned(model=distilbert, output_dir=tmp_path / "other", augment=more, unlabelled_ratio=0.5, **options)


def test_every_model_reads_its_own_mask(word_tokenizer: BertTokenizer) -> None:
    rows = datasets.Dataset.from_dict({"text": ["a [MASK] b", "c"], "pair": ["d", "[MASK]"]})
    found = Unlabelled(rows, {}, MASK)
    assert found.rows_for(word_tokenizer) is rows
    other = BertTokenizer(vocab={"<mask>": 0, "[UNK]": 1, "a": 2}, mask_token="<mask>")
    assert found.rows_for(other)[:2] == {"text": ["a <mask> b", "c"], "pair": ["d", "<mask>"]}
    both = found.and_also(Unlabelled(rows, {"texts": 2}, None))
    assert (len(both), both.counts, both.mask) == (4, {"texts": 2}, MASK)


def test_bad_options(
    bert: Path, teacher: Path, glue: Path, squad: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(augment: Any, **options: Any) -> str:
        options = {"model": bert, "task": "sst2", "task_data": glue, "teacher": teacher} | options
        capsys.readouterr()
        assert main(flags(**options, output_dir=tmp_path / "out", augment=json.dumps(augment))) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1, said
        assert not (tmp_path / "out").exists()
        return said

    assert "samples is 0: it must be a whole number from 1" in refused(0)
    assert "--augment is 'many': it must be a number, or a mapping" in refused("many")
    assert "names no samples" in refused({"mask": 0.1})
    assert "there is no 'masks'; it takes samples, mask, replace" in refused({"samples": 1, "masks": 1})
    assert "mask is 2: it must be a probability" in refused({"samples": 1, "mask": 2})
    assert "mask and replace together at most 1" in refused({"samples": 1, "mask": 0.6, "replace": 0.6})
    assert "makes texts that a teacher must teach" in refused(2, teacher=None)
    assert "teaches nothing with --alpha_ce 0" in refused(2, alpha_ce=0)
    assert "is for tasks on texts: leave it out for squad" in refused(2, task="squad", task_data=squad)
    assert "the tagger" in refused({"samples": 1, "tagger": str(tmp_path / "none")})
    assert "has no trained head" in refused({"samples": 1, "tagger": str(bert)})
    with pytest.raises(PotstillError, match="--augment makes no new text from 1 row"):
        made(datasets.Dataset.from_dict({"text": ["a"]}), samples=1, mask=0, ngram=0.5)
