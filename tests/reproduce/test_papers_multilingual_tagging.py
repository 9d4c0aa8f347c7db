"""The multilingual tagger: which files are which languages, what text they give, the table, and the whole chain."""

import json
import random
from pathlib import Path

import pytest
from samples import written_text

from potstill.errors import PotstillError
from reproduce.common import run
from reproduce.papers import multilingual_tagging as script


def treebank(path: Path, count: int, seed: int = 0) -> Path:
    rng = random.Random(seed)
    tags = {"ana": "NOUN", "beri": "VERB", "co": "DET"}
    sentences = []
    for _ in range(count):
        words = rng.choices(list(tags), k=rng.randint(2, 6))
        lines = [f"{n}\t{word}\t_\t{tags[word]}" + "\t_" * 6 for n, word in enumerate(words, 1)]
        sentences.append("\n".join([f"# text = {' '.join(words)} {rng.random()}", *lines]) + "\n\n")
    path.write_text("".join(sentences))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("ud", "xquad"):
        (tmp_path / name).mkdir()
    for seed, name in enumerate(("aa-train", "aa-dev", "aa-test", "bb-dev", "bb-test", "cc-test", "dd-train")):
        treebank(tmp_path / "ud" / f"{name}.conllu", 40 if "train" in name else 25, seed)
    articles = [{"paragraphs": [{"context": "Ana beri co. Co ana."}, {"context": "Ana!"}]}]
    (tmp_path / "xquad" / "xquad.cc.json").write_text(json.dumps({"data": articles}))
    (tmp_path / "text.txt").write_text(written_text(900, seed=1))
    return tmp_path


def test_languages_and_their_text(data: Path) -> None:
    banks = script.treebanks(data / "ud")
    assert {language: sorted(files) for language, files in banks.items()} == {
        "aa": ["dev", "test", "train"],
        "bb": ["dev", "test"],
        "cc": ["test"],
    }
    assert len(list(script.sentences_of(banks["bb"]["dev"]))) == 25
    (data / "ud" / "bare.conllu").write_text("1\ta\n")
    with pytest.raises(PotstillError, match=r"bare.conllu has no comments `# text = …`"):
        list(script.sentences_of(data / "ud" / "bare.conllu"))
    with pytest.raises(PotstillError, match="has no language with a test file and a file to train on"):
        script.treebanks(data / "xquad")


def test_left_out_without_data(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script.main(["--model", "any"])
    script.main(["--task_data", str(data)])
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "multilingual tagging is left out: there is no folder ; name it with --ud."
    assert out[1].startswith("multilingual tagging is left out: --text names no English text")


def test_table() -> None:
    scores = {
        name: {"aa": [90.0, 80.0, 85.0], "bb": [70.0, 60.0, 50.0], "cc": [10.0, 30.0, 20.0]} for name in script.ROWS
    }
    size = {"parameters": 2_000_000, "bytes": 8_000_000, "forms": {"eager": {"milliseconds": 1.25}}}
    table = script.markdown(scores, ["aa", "bb"], ["cc"], {"rows": {"teacher": size, "student": size}})
    row = "| 85.0 (80.0–90.0) | 60.0 (50.0–70.0) | 70.0 (67.5–80.0) | 20.0 (10.0–30.0) | 2.0 M | 8 | 1.2 |"
    assert table.splitlines()[2] == f"| teacher {row}"
    assert "cc (zero-shot)" in table


@pytest.mark.slow
def test_the_whole_chain(data: Path, signals_restored: None, no_hub: None, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = "--vocab_size 120 --layers 2 --student_layers 1 --hidden_size 32 --epochs 1 --minutes 0.02 --seeds 1"
    places = (
        f"--work_dir {data / 'work'} --results_dir {data / 'results'} --task_data {data} --text {data / 'text.txt'}"
    )
    argv = f"{sizes} {places} --gpus 0 --requests 6 --megabytes 0.1".split()
    assert run(script.main, argv) == 0
    found = json.loads((data / "results" / "multilingual_tagging.json").read_text())
    assert found["conditions"]["command"].startswith("python -m reproduce.papers.multilingual_tagging")
    assert found["languages"] == {"trained": ["aa", "bb"], "zero_shot": ["cc"]}
    assert found["training_files"] == {"aa": "aa-train.conllu", "bb": "bb-dev.conllu"}
    assert found["rows"] == {"train": 65, "aa-test": 25, "bb-test": 25, "cc-test": 25}
    assert found["scores"].keys() == script.ROWS.keys()
    assert all(len(values) == 1 for row in found["scores"].values() for values in row.values())
    assert found["unlabelled"]["texts"] > 20
    assert run(script.main, argv) == 0
    assert "student-0: already finished" in capsys.readouterr().out
