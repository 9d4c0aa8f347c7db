"""Places where programs run that their authors did not try: other folders, threads, locales, limits."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path
from typing import Any

import pytest
from datasets.fingerprint import Hasher

from potstill.cli import main
from potstill.errors import PotstillError
from potstill.files import check_output_dir
from potstill.tasks.own_rows import read_own_rows
from potstill.tasks.own_tags import read_own_tags
from potstill.tasks.registry import TASKS
from potstill.tasks.squad import read_squad
from potstill.tasks.squad_windows import make_windows
from potstill.tasks.task import OwnFiles

OUTSIDE = """
import datasets, sys
from pathlib import Path
from transformers import AutoTokenizer
from potstill.tasks.own_rows import read_own_rows
from potstill.tasks.own_tags import read_own_tags
from potstill.tasks.registry import TASKS
from potstill.tasks.squad import read_squad
from potstill.tasks.squad_windows import make_windows
from potstill.tasks.task import OwnFiles

assert "site-packages" not in datasets.__file__, datasets.__file__
folder, tokenizer = Path(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[2])
files = lambda name: OwnFiles(train=str(folder / name), eval=str(folder / name))
print(len(read_own_rows(TASKS["classification"], files("rows.csv")).splits["train"]))
print(len(read_own_tags(files("words.conll")).splits["train"]))
print(len(make_windows(read_squad(folder / "questions.json").dataset, tokenizer, 24, 4, 8)) > 0)
"""


def write_tasks(folder: Path) -> None:
    (folder / "rows.csv").write_text("text,label\n" + "one,a\ntwo,b\n" * 4)
    (folder / "words.conll").write_text("one A\ntwo B\n\nthree A\nfour B\n\n")
    answers = [{"text": "bola", "answer_start": 0}]
    paragraph = {"context": "bola kir bola", "qas": [{"id": "1", "question": "kir", "answers": answers}]}
    (folder / "questions.json").write_text(json.dumps({"data": [{"title": "", "paragraphs": [paragraph]}]}))


def test_tasks_are_read_without_pickling(tmp_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` names what it makes by a hash of its pickle, which fails if it is not installed in site-packages."""

    def refused(self: Any, value: object) -> None:
        if not isinstance(value, (str, int, float, type(None))):
            raise pickle.PicklingError(f"Can't pickle {type(value).__name__}")

    write_tasks(tmp_path)
    monkeypatch.setattr(Hasher, "update", refused)
    rows, words = (
        OwnFiles(train=str(tmp_path / name), eval=str(tmp_path / name)) for name in ("rows.csv", "words.conll")
    )
    assert len(read_own_rows(TASKS["classification"], rows).splits["train"]) == 8
    assert len(read_own_tags(words).splits["train"]) == 2
    assert len(make_windows(read_squad(tmp_path / "questions.json").dataset, tiny_tokenizer, 24, 4, 8)) == 1


@pytest.mark.faults
def test_packages_outside_of_site_packages(tmp_path: Path, teacher_folder: Path) -> None:
    """`pip install --target` puts them into any folder. There `datasets` cannot pickle what it names."""
    write_tasks(tmp_path)
    (tmp_path / "packages").symlink_to(sysconfig.get_path("purelib"))
    source = Path(__file__).resolve().parents[2] / "src"
    run = subprocess.run(
        [sys.executable, "-S", "-c", OUTSIDE, str(tmp_path), str(teacher_folder)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(source), str(tmp_path / "packages")])},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["8", "2", "True"]


def test_the_command_line_in_a_thread(
    text_path: Path, teacher_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the main thread may handle signals."""
    words = ["prepare", "--text", str(text_path), "--tokenizer", str(teacher_folder), "--block_size", "16"]
    ended: list[int] = []
    for more, expected in ([], 0), (["--num_proc", "0"], 1):
        thread = threading.Thread(
            target=lambda more=more: ended.append(main([*words, "--output_dir", str(tmp_path / "out"), *more]))
        )
        thread.start()
        thread.join()
        assert ended.pop() == expected
    assert capsys.readouterr().err.count("potstill prepare: --num_proc is 0") == 1


PLAIN = "import sys; from potstill.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.faults
def test_locale_c_few_files_one_core_no_home_and_no_terminal(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    """All at once: what these would break, they break whatever else there is."""
    run = subprocess.run(
        [
            *("prlimit", "--nofile=64:64", "taskset", "-c", "0", sys.executable, "-c", PLAIN),
            *("distill", "--teacher", str(teacher_folder), "--corpus", str(corpus_folder)),
            *("--output_dir", str(tmp_path / "out"), "--max_steps", "2", "--save_steps", "1"),
            *("--use_cpu", "true", "--per_device_train_batch_size", "2"),
        ],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src"),
            "LC_ALL": "C",
            "PYTHONUTF8": "0",
            "PYTHONCOERCECLOCALE": "0",
            "HOME": "/proc/no-home",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    assert run.returncode == 0, run.stderr.decode()
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert b"Traceback" not in run.stderr


def test_a_folder_that_the_locale_cannot_name(tmp_path: Path) -> None:
    """In locale C, Python reads the bytes of an "é" in an argument as halves of surrogate pairs."""
    with pytest.raises(PotstillError, match="is not UTF-8 text in the locale"):
        check_output_dir(tmp_path / "Ausgabe-é".encode().decode("ascii", "surrogateescape"), overwrite=False)
