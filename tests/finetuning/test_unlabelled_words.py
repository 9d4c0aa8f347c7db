"""Words without tags, which the teacher alone teaches: how they are read and learned from, and how they fit memory."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from finetuning_samples import Json, flags, results, sentence, write, write_lines
from test_finetune_resume import assert_same, interrupt

from potstill.cli import main
from potstill.errors import PotstillError
from potstill.finetuning import unlabelled_words
from potstill.finetuning.finetune_arguments import FinetuneArguments
from potstill.finetuning.job import Job
from potstill.finetuning.objective import NO_TAG, UNKNOWN_TAG, TaskObjective
from potstill.finetuning.rows import Pieces, Rows
from potstill.finetuning.tags import TagData
from potstill.finetuning.unlabelled_words import read_unlabelled_words, words_of
from potstill.tasks.own import KINDS
from potstill.tasks.task import OwnFiles

TRAIN = datasets.Dataset.from_dict({"tokens": [["I", "do", "n't"]]})
DEV = datasets.Dataset.from_dict({"tokens": [["Go", "!"]]})


def read(folder: Path, *names: str, **options: Any) -> Any:
    args = FinetuneArguments(
        task="tagging",
        teacher="t",
        train_data="t.conll",
        unlabelled=[str(folder / name) for name in names],
        output_dir=str(folder / "out"),
        use_cpu=True,
        **options,
    )
    return read_unlabelled_words(args, TRAIN, [DEV])


def test_words_of_a_text() -> None:
    assert words_of("Don't stop: 3.5 e-mails, U.S.") == ["Don't", "stop", ":", "3.5", "e-mails", ",", "U.S", "."]
    assert words_of("(l’homme)…\u200b") == ["(", "l’homme", ")", "…"]
    assert words_of("我去 Rom。") == ["我", "去", "Rom", "。"]
    assert words_of("नमस्ते दुनिया") == ["नमस्ते", "दुनिया"]  # marks belong to their letters
    assert words_of(" \n") == []


def test_every_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = "\t_" * 6
    write(tmp_path / "a.conllu", f"# x\n1-2\tdu\t_\t_{head}\n1\tde\t_\t_{head}\n2\tle\t_\t_{head}\n")
    write(tmp_path / "b.conll", "one\n\ntwo\n\n")  # words alone
    write(tmp_path / "c.tsv", "three\tB-X\nfour\tO\n")
    write_lines(tmp_path / "d.jsonl", [{"tokens": ["five", 6], "tags": [1, 0]}, {"tokens": None}])
    write_lines(tmp_path / "e.jsonl", [{"text": "Six. Seven, eight!", "id": 1}, {"text": " "}])
    write(tmp_path / "f.csv", "text,x\nNine ten,1\n")
    write(tmp_path / "g.txt", "Eleven twelve. Thirteen?\n\nI don't\nI do n't\nGo!\none\n")
    datasets.Dataset.from_dict({"words": [["fourteen"]]}).to_parquet(tmp_path / "h.parquet")
    datasets.Dataset.from_dict({"tokens": [["fifteen"]]}).save_to_disk(tmp_path / "i")
    found = read(tmp_path, "a.*", "b.conll", "c.tsv", "d.jsonl", "e.jsonl", "f.csv", "g.txt", "h.*", "i")
    capsys.readouterr()
    texts = ["de le", "one", "two", "three four", "five 6", "Six .", "Seven , eight !", "Nine ten", "Eleven twelve ."]
    assert [" ".join(words) for words in found.rows["tokens"]] == [*texts, "Thirteen ?", "fourteen", "fifteen"]
    left_out = {"empty": 2, "duplicates": 1, "in_training_rows": 2, "in_scored_rows": 1, "bad": 0}
    assert found.counts == {"texts": 12} | left_out
    write_lines(tmp_path / "j.jsonl", [{"text": "no", "said": "yes"}])
    assert read(tmp_path, "j.jsonl", unlabelled_columns=["said"]).rows["tokens"][:] == [["yes"]]
    with pytest.raises(PotstillError, match="--unlabelled_columns names 2: it must name the column of the words"):
        read(tmp_path, "j.jsonl", unlabelled_columns=["text", "said"])


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", "one\ttwo\n" * 6, "a.txt seems to have a word on each line, but a line of a .txt file is a text"),
        ("a.txt", "one\ntwo\n\nthree\nfour\nfive\n", "a.txt seems to have a word on each line"),
        ("a.conllu", "1\ta\tNOUN\n", "a.conllu, line 1, has 3 columns instead of 10"),
        ("a.conll", "a\tO\nb\n", "a.conll, line 2, has 1 column instead of 2"),
        ("a.jsonl", '{"body": "x"}\n', "has no column 'tokens', only 'body'"),
        ("a.jsonl", '{"tokens": ["a", null]}\n', "row 1: a word was expected, not None"),
        ("a.jsonl", '{"text": 7}\n', "row 1: a list of words, or a text, was expected, not 7"),
        ("a.docx", "x", "has a kind that cannot be read: give .conll, .conllu, "),
        ("a.txt", "Go!\n", "no text is left of .*a.txt, because of its texts 1 is a scored row"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, text: str, said: str) -> None:
    write(tmp_path / name, text)
    with pytest.raises(PotstillError, match=said):
        read(tmp_path, name)


def test_plain_text_of_equal_lines_is_plain_text(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "我们去\n他来了\n我不去\n他不来\n你去吗\n")
    write(tmp_path / "b.txt", "".join(f"a line of the same number of words as others, by {n}\n" for n in range(9)))
    assert len(read(tmp_path, "a.txt").rows) == 5
    assert len(read(tmp_path, "b.txt").rows) == 9


def test_many_sentences_take_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of lists of words would take 9 MB. The table of Arrow, which is not traced, takes as much as the text."""
    monkeypatch.setattr(unlabelled_words, "SENTENCES_AT_A_TIME", 500)
    rng = np.random.default_rng(0)
    with (tmp_path / "a.jsonl").open("w") as file:
        for number in range(6_000):
            words = [f"w{word}" for word in rng.integers(0, 10**4, 25)]
            file.write(json.dumps({"tokens": [str(number), *words]}) + "\n")
    tracemalloc.start()
    found = read(tmp_path, "a.jsonl")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.rows) == 6_000
    assert most < 5 * 2**20


def test_pieces_are_read_where_they_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    one, two, more = (rng.normal(size=(count, 4)).astype(np.float32) for count in (5, 7, 3))
    np.save(tmp_path / "two.npy", two)
    mapped = np.load(tmp_path / "two.npy", mmap_mode="r")
    rows = [
        Rows({"input_ids": np.zeros(len(soft), np.int32), "soft": soft}, {}, np.array([len(soft)]))
        for soft in (one, Pieces([mapped], [2, 0, 1, 3]), more)
    ]
    both = rows[0].followed_by(rows[1]).followed_by(rows[2])
    whole = np.concatenate([one, two[:, [2, 0, 1, 3]], more])
    column = both.tokens["soft"]
    assert isinstance(column, Pieces)
    assert (column.shape, column.dtype, len(column)) == ((15, 4), np.float32, 15)
    np.testing.assert_array_equal(column, whole)
    for key in (3, slice(2, 11), rng.integers(0, 15, 40), np.array([], np.int64)):
        np.testing.assert_array_equal(column[key], whole[key])
    batch = both.__getitems__([2, 0])["soft"]
    np.testing.assert_array_equal(batch[0, :3], more)
    np.testing.assert_array_equal(batch[1, :5], one)
    np.testing.assert_array_equal(both.part(1, 3).tokens["soft"], whole[5:])


@pytest.mark.parametrize("soft_loss", ["kl", "mse"])
def test_losses_of_words_with_and_without_tags(soft_loss: Any) -> None:
    """Against a naive float64 version: every word counts the same, and a word without a tag has soft targets alone."""
    generator = torch.Generator().manual_seed(5)
    logits, teacher = (torch.randn(3, 6, 4, generator=generator) for _ in range(2))
    labels = torch.tensor([[NO_TAG, 2, NO_TAG, 0, NO_TAG, NO_TAG], [NO_TAG, -1, -1, NO_TAG, -1, NO_TAG], [3] * 6])
    assert UNKNOWN_TAG == -1
    weights = torch.tensor([0.5, 1.0, 2.0, 3.0])
    logits.requires_grad_()
    objective = TaskObjective(alpha_ce=0.7, alpha_task=0.3, temperature=1.5, soft_loss=soft_loss)
    losses = objective.sum_up(objective.tags(logits, labels, teacher, weights))
    losses["loss"].backward()

    x, t = logits.detach().double().requires_grad_(), teacher.double()
    hard, soft, words = [], [], 0
    for row in range(3):
        for place in range(6):
            tag = int(labels[row, place])
            if tag == NO_TAG:
                continue
            words += 1
            if tag >= 0:
                hard.append(-weights[tag].double() * (x[row, place].exp() / x[row, place].exp().sum()).log()[tag])
            if soft_loss == "mse":
                soft.append(((x[row, place] - t[row, place]) ** 2).mean())
                continue
            p, q = ((of[row, place] / 1.5).exp() for of in (t, x))
            p, q = p / p.sum(), q / q.sum()
            soft.append((p * (p / q).log()).sum() * 1.5**2)
    expected = {"task": sum(hard) / words, "ce": sum(soft) / words}
    total = 0.7 * expected["ce"] + 0.3 * expected["task"]
    total.backward()
    assert losses["task"].item() == pytest.approx(expected["task"].item(), rel=1e-5)
    assert losses["ce"].item() == pytest.approx(expected["ce"].item(), rel=1e-5)
    torch.testing.assert_close(logits.grad, x.grad.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("tags", [True, False])
def test_the_first_token_of_each_word_under_truncation(
    new_model: Any, tmp_path: Path, kind: str, tags: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """The places of words agree with those that are counted by tokenising one word after another."""
    job_rows, tokenizer = tag_rows(new_model(kind), tmp_path, tags, max_length=9)
    words = [["bol", "dom", "kim"], ["lula", "bolbol", "kina", "dol", "bon", "kil", "lul", "boma", "dona"], ["."]]
    ids = [[tokenizer(f" {word}" if kind == "roberta" else word, add_special_tokens=False)["input_ids"] for word in of]
           for of in words]  # fmt: skip
    start = 0
    kept = 0
    for pieces, length in zip(ids, job_rows.lengths.tolist(), strict=True):
        expected = [NO_TAG]
        for number, piece in enumerate(pieces):
            expected += [number % 3 if tags else UNKNOWN_TAG, *[NO_TAG] * (len(piece) - 1)]
        expected = [*expected[:8], NO_TAG]  # the last token is [SEP]
        assert job_rows.tokens["labels"][start : start + length].tolist() == expected
        assert (
            job_rows.tokens["input_ids"][start + 1 : start + length - 1].tolist()
            == [one for piece in pieces for one in piece][:7]
        )
        kept += sum(label != NO_TAG for label in expected)
        start += length
    assert f"{13 - kept:,} of 13 words have no token within --max_length 9" in capsys.readouterr().err


def tag_rows(model: Path, folder: Path, tags: bool, max_length: int) -> Any:
    from transformers import AutoTokenizer

    write(folder / "a.conll", "bol\tA\ndom\tB\nkim\tC\n")
    data = TagData(KINDS["tagging"]("tagging", "Tagging"), OwnFiles(str(folder / "a.conll"), str(folder / "a.conll")))
    words = [["bol", "dom", "kim"], ["lula", "bolbol", "kina", "dol", "bon", "kil", "lul", "boma", "dona"], ["."]]
    columns: Json = {"tokens": words}
    if tags:
        columns["tags"] = [[number % 3 for number in range(len(of))] for of in words]
    tokenizer = AutoTokenizer.from_pretrained(model)
    return data.rows(datasets.Dataset.from_dict(columns), tokenizer, max_length, 8), tokenizer


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words whose first letter tells their tag: a few sentences, and many without tags."""
    folder = tmp_path_factory.mktemp("tagged")
    rng = random.Random(4)
    for name, count in (("train", 60), ("few", 3), ("dev", 20)):
        texts = ["bol dol kil lul", *(sentence(rng, rng.randint(2, 9)) for _ in range(count - 1))]
        tagged = ["".join(f"{word}\t{word[0].upper()}\n" for word in of.split()) for of in texts]
        write(folder / f"{name}.conll", "\n".join(tagged))
    write(folder / "texts.txt", "".join(sentence(rng, rng.randint(3, 12)) + " .\n" for _ in range(40)))
    return folder


@pytest.fixture(scope="module")
def tagger(tagged: Path, bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tagger") / "tagger"
    options = flags(model=bert, task="tagging", train_data=tagged / "train.conll", eval_data=tagged / "dev.conll")
    assert main([*options, f"--output_dir={folder}", "--num_train_epochs=12", "--learning_rate=6e-3"]) == 0
    return folder


def test_a_student_learns_from_words_without_tags(
    tagged: Path,
    tagger: Path,
    distilbert: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options: Json = {"model": distilbert, "task": "tagging", "teacher": tagger, "unlabelled": tagged / "texts.txt"}
    options |= {"train_data": tagged / "few.conll", "eval_data": tagged / "dev.conll", "learning_rate": 6e-3}
    options |= {"num_train_epochs": 5, "save_strategy": "epoch", "without_teacher_too": False}
    assert main(flags(**options, output_dir=tmp_path / "out")) == 0
    found = results(tmp_path / "out")
    assert found["score"] > found["without_unlabelled"]["score"] + 10
    assert found["unlabelled"]["texts"] == found["unlabelled"]["per_epoch"] == 40
    assert found["rows"] == {"train": 3, "dev": 20}
    printed = capsys.readouterr()
    assert "computing the teacher's logits of 40 unlabelled texts" in printed.err
    assert "3 labelled and 40 of 40 unlabelled rows" in printed.err
    interrupt(monkeypatch, 14)
    options |= {"without_unlabelled_too": False}
    assert main(flags(**options, output_dir=tmp_path / "resumed")) == 143
    assert main(flags(**options, output_dir=tmp_path / "resumed", resume_from_checkpoint="true")) == 0
    assert "computing the teacher's logits" not in capsys.readouterr().err  # they are kept
    assert_same(tmp_path / "resumed", tmp_path / "out")


def test_soft_targets_are_the_teachers_logits_at_first_tokens(
    tagged: Path, tagger: Path, distilbert: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    args = FinetuneArguments(
        model=str(distilbert),
        task="tagging",
        teacher=str(tagger),
        unlabelled=str(tagged / "texts.txt"),
        train_data=str(tagged / "few.conll"),
        eval_data=str(tagged / "dev.conll"),
        unlabelled_ratio=2.0,
        output_dir=str(tmp_path / "out"),
        use_cpu=True,
    )
    job = Job.prepare(args).with_teacher()
    assert (job.train.labelled, len(job.train), job.drawn) == (3, 43, 6)
    batch = job.train.__getitems__([1, 5, 42])
    assert (batch["labels"][0] >= 0).any()
    assert set(batch["labels"][1:].unique().tolist()) == {NO_TAG, UNKNOWN_TAG}
    model = AutoModelForTokenClassification.from_pretrained(tagger).double()
    tokenizer = AutoTokenizer.from_pretrained(tagger)
    lines = (tagged / "texts.txt").read_text().splitlines()
    for row, line in ((1, lines[2]), (2, lines[39])):
        encoded = tokenizer(line.split(), is_split_into_words=True, return_tensors="pt")
        logits = model(**encoded).logits[0]
        first = [number for number, label in enumerate(batch["labels"][row].tolist()) if label == UNKNOWN_TAG]
        assert [encoded.word_ids()[number] for number in first] == list(range(len(line.split())))
        torch.testing.assert_close(batch["soft"][row, first].double(), logits[first], rtol=1e-3, atol=1e-4)


def test_the_teacher_alone_teaches_tags(
    tagged: Path, tagger: Path, distilbert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: Json = {"model": distilbert, "task": "tagging", "teacher": tagger, "unlabelled": tagged / "texts.txt"}
    options |= {"learning_rate": 6e-3, "num_train_epochs": 6, "output_dir": tmp_path / "out"}
    assert main([*flags(**options), "--eval_data", str(tagged / "dev.conll"), str(tagged / "few.conll")]) == 0
    found = results(tmp_path / "out")
    assert found["metrics"].keys() == {"dev", "few"}
    assert found["rows"] == {"train": 0, "dev": 20, "few": 3}
    assert found["score"] > 60
    config = [json.loads((folder / "config.json").read_text())["id2label"] for folder in (tmp_path / "out", tagger)]
    assert config[0] == config[1]
    assert "the teacher on the scored labels: " in capsys.readouterr().err
    write(tmp_path / "other.conll", "bol\tX\n")
    options["output_dir"] = tmp_path / "no"
    assert main([*flags(**options), "--eval_data", str(tmp_path / "other.conll")]) == 1
    assert "other.conll, line 1, has the tag 'X'; the teacher does not have 'X'" in capsys.readouterr().err


def test_words_without_tags_can_be_a_stage_of_their_own(
    tagged: Path, tagger: Path, distilbert: Path, tmp_path: Path
) -> None:
    options: Json = {"model": distilbert, "task": "tagging", "teacher": tagger, "unlabelled": tagged / "texts.txt"}
    options |= {"train_data": tagged / "few.conll", "eval_data": tagged / "dev.conll", "learning_rate": 6e-3}
    options |= {"stages": "{distill: {num_train_epochs: 6}, finetune: {learning_rate: 1e-4}}"}
    assert main(flags(**options, output_dir=tmp_path / "out")) == 0
    taught, tuned = results(tmp_path / "out")["stages"]
    assert (taught["texts"], taught["rows"], tuned["rows"]) == (40, 0, 3)
    assert min(taught["score"], tuned["score"]) > 70
