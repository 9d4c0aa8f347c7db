"""Tagged sentences in every form, the schemes of their tags, and what cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from potstill.errors import PotstillError
from potstill.tasks.own_rows import OwnRows
from potstill.tasks.own_tags import read_own_tags
from potstill.tasks.rows import OnBadRows
from potstill.tasks.task import OwnFiles

SENTENCES = [(["Ann", "Lee", "left", "Rome"], ["B-PER", "I-PER", "O", "B-LOC"]), (["Nobody", "left"], ["O", "O"])]
TAGS = ("B-LOC", "B-PER", "I-PER", "O")

CONLLU = """# text = Don't go
1-2\tDon't\t_\t_\t_\t_\t_\t_\t_\t_
1\tDo\tdo\tAUX\tVB\t_\t3\taux\t_\t_
2\tn't\tnot\tPART\tRB\t_\t3\tadvmod\t_\t_
2.1\tyou\tyou\tPRON\tPRP\t_\t_\t_\t_\t_
3\tgo\tgo\tVERB\tVB\t_\t0\troot\t_\t_

"""


def conll(sentences: list[tuple[list[str], list[str]]], delimiter: str = "\t", before: str = "") -> str:
    return "".join(
        "".join(f"{word}{delimiter}{before}{tag}\n" for word, tag in zip(*one, strict=True)) + "\n" for one in sentences
    )


def read(train: Path, dev: Path | None = None, on_bad_rows: OnBadRows = "stop", **files: object) -> OwnRows:
    return read_own_tags(OwnFiles(train=str(train), eval=str(dev or train), **files), on_bad_rows)  # type: ignore[arg-type]


def sentences_in(rows: OwnRows, split: str = "dev") -> list[tuple[list[str], list[str]]]:
    found = rows.splits[split]
    tags = [[rows.labels[number] for number in row] for row in found["tags"][:]]
    return list(zip(found["tokens"][:], tags, strict=True))


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_every_form_holds_the_same_sentences(tmp_path: Path) -> None:
    rows = [{"tokens": words, "ner_tags": tags} for words, tags in SENTENCES]
    table = datasets.Dataset.from_list(rows)
    table.to_parquet(str(tmp_path / "it.parquet"))
    table.save_to_disk(str(tmp_path / "saved"))
    forms = [
        written(tmp_path / "tabs.conll", conll(SENTENCES)),
        written(tmp_path / "blanks.txt", "-DOCSTART- -X- O\n\n" + conll(SENTENCES, " ", "NN ")),
        written(tmp_path / "it.jsonl", "".join(json.dumps(row) + "\n" for row in rows)),
        written(tmp_path / "it.json", json.dumps(rows)),
        tmp_path / "it.parquet",
        tmp_path / "saved",
    ]
    for form in forms:
        found = read(form)
        assert found.labels == TAGS
        assert sentences_in(found) == sentences_in(found, "train") == SENTENCES


def test_columns_by_name(tmp_path: Path) -> None:
    file = written(tmp_path / "it.conll", conll(SENTENCES, " ", "NN "))
    found = read(file, columns=("word", "pos", "ner"), label_column="ner")
    assert sentences_in(found) == SENTENCES
    with pytest.raises(PotstillError, match=r"no column 'nre', only word, pos, ner: name another with --label_column"):
        read(file, columns=("word", "pos", "ner"), label_column="nre")
    with pytest.raises(PotstillError, match="--label_column pos needs --columns"):
        read(file, label_column="pos")


def test_conllu(tmp_path: Path) -> None:
    file = written(tmp_path / "it.conllu", CONLLU)
    assert sentences_in(read(file)) == [(["Do", "n't", "go"], ["AUX", "PART", "VERB"])]
    assert sentences_in(read(file, label_column="deprel"))[0][1] == ["aux", "advmod", "root"]


CRLF = CONLLU.replace("\n", "\r\n")
ONE = "1\tGo\tgo\tVERB\tVB\t_\t0\troot\t_\t_\n"


@pytest.mark.parametrize(
    "text",
    [
        CRLF,
        CONLLU.rstrip("\n"),  # no blank line at the end, and no line end either
        "\ufeff" + CONLLU,
        "# newdoc\n\n\n" + CONLLU + "\n\n# the end\n",
        CONLLU.replace("2.1\tyou", "0.1\tyou"),
        CONLLU.replace("\t_\t_\n", "\t_\tSpaceAfter=No\n"),
        CONLLU.replace("# text", "# sent_id = 1\tx\n# text"),
    ],
)
def test_conllu_as_people_write_it(tmp_path: Path, text: str) -> None:
    file = tmp_path / "it.conllu"
    file.write_bytes(text.encode())
    assert sentences_in(read(file)) == [(["Do", "n't", "go"], ["AUX", "PART", "VERB"])]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (CONLLU.replace("3\tgo\tgo", "3\tgo"), "line 6, has 9 columns instead of 10"),
        (CONLLU.replace("1-2\tDon't", "1-2\tDon't\t_"), "line 2, has 11 columns instead of 10"),
        (CONLLU.replace("2\tn't", "2 n't"), "line 4, has 9 columns instead of 10"),
        ("a comment without its sign\n" + CONLLU, "line 1, has 1 column instead of 10"),
        (CONLLU.rstrip("\n") + "\n" + ONE, "line 7, has the number '1', where word 4 of the sentence should be"),
        (CONLLU.replace("3\tgo", "4\tgo"), "line 6, has the number '4', where word 3 of the sentence should be"),
        (CONLLU.replace("\tVERB", "\t_"), r"line 6, has no part of speech \(upos is _\)"),
    ],
)
def test_broken_conllu(tmp_path: Path, text: str, said: str) -> None:
    file = written(tmp_path / "it.conllu", text + "\n" + ONE + "\n" + ONE.replace("VERB", "NOUN"))
    with pytest.raises(PotstillError, match=f"it.conllu, {said}; correct"):
        read(file)
    assert sentences_in(read(file, on_bad_rows="skip"))[-2:] == [(["Go"], ["VERB"]), (["Go"], ["NOUN"])]


def test_iob1_becomes_iob2_and_bioes_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = list("abcdef")
    first = written(tmp_path / "1.conll", conll([(words, ["I-X", "I-X", "B-X", "I-Y", "O", "I-X"])]))
    assert sentences_in(read(first)) == [(words, ["B-X", "I-X", "B-X", "B-Y", "O", "B-X"])]
    assert "entities begin with I- in 1 of 1 sentence, as in IOB1" in capsys.readouterr().err
    for tags in (["B-X", "E-X", "S-X", "S-Y", "O", "S-X"], ["B-X", "I-X", "B-X", "B-Y", "O", "B-X"]):
        file = written(tmp_path / "2.conll", conll([(words, tags)]))
        assert sentences_in(read(file)) == [(words, tags)]
    assert "IOB1" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.conll", "a\tO\nb\tx\tB-X\n", "a.conll, line 2, has 3 columns instead of 2"),
        ("a.jsonl", '{"tokens": ["a", "b"], "tags": ["O"]}', "row 1, has 2 words and 1 tag: give one for each"),
        (
            "a.jsonl",
            '{"tokens": ["a"], "tags": [null]}',
            "row 1, has the tag None, which is neither a name nor a number",
        ),
        (
            "a.jsonl",
            '{"tokens": ["a"], "tags": ["O"], "ner_tags": ["O"]}',
            "ner_tags and tags: choose with --label_column",
        ),
        (
            "a.jsonl",
            '{"token": ["a"], "tags": ["O"]}',
            "no column 'tokens', only 'token', 'tags'; the nearest is 'token'",
        ),
        ("a.docx", "a\tO\n", "a.docx has no format of tagged sentences that can be read"),
        ("a.csv", "a,O\n", "a.csv has no format of tagged sentences that can be read"),
        ("a.conll", "a\tO\nb\tO\n", "only the label 'O'"),
        ("a.conllu", "1\ta\tNOUN\n", "a.conllu, line 1, has 3 columns instead of 10"),
    ],
)
def test_what_cannot_be_used_is_said(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(PotstillError) as error:
        read(written(tmp_path / name, text))
    assert said in str(error.value)


def test_tags_that_only_the_sentences_to_score_have(tmp_path: Path) -> None:
    train = written(tmp_path / "train.conll", conll(SENTENCES))
    dev = written(tmp_path / "dev.conll", conll([*SENTENCES, (["x", "y"], ["O", "B-ORG"])]))
    with pytest.raises(
        PotstillError,
        match=r"dev.conll, line 10, has the tag 'B-ORG'; .*train.conll does not have 'B-ORG' \(1 sentence\)",
    ):
        read(train, dev)
    found = read(train, dev, "skip")
    assert sentences_in(found) == SENTENCES
    assert found.bad_rows == {"train": 0, "dev": 1}
