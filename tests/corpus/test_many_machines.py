"""Workers of Ray make the corpus that one machine makes, also if one of them is killed on the way."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from samples import written_text

from potstill import PotstillError, prepare
from potstill.corpus.many_machines import _merged, _Work, shard_path
from potstill.corpus.reading import ReadingOptions
from potstill.corpus.tokenizer import TokenizerSpec, load_tokenizer

BLOCK_SIZE = 16
FILES = 6


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of several kinds, with blank documents and a file without any."""
    folder = tmp_path_factory.mktemp("text") / "text"
    folder.mkdir()
    for number in range(FILES):
        lines = written_text(20 + 7 * number, seed=number).splitlines()
        if number % 2:
            rows = [json.dumps({"text": line}) for line in [*lines[:3], " ", "\u0000", *lines[3:]]]
            (folder / f"{number}.jsonl").write_text("\n".join(rows))
        else:
            (folder / f"{number}.txt").write_text("\n\n".join(lines))
    (folder / "empty.txt").write_text("")
    return folder


def contents(folder: Path) -> dict[str, Any]:
    """Return every file of a corpus; the manifest without the time it was made at, and without its own checksum."""
    found: dict[str, Any] = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    manifest = json.loads(found.pop("manifest.json"))
    del manifest["created"], manifest["checksums"]["manifest.json"]  # the checksum covers the time
    return found | {"manifest": manifest}


@pytest.mark.parametrize("unit", ["blocks", "texts"])
@pytest.mark.parametrize("order", ["in order", "reversed"])
def test_pieces_in_any_order_make_the_same_corpus(
    text: Path, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: Any, order: str
) -> None:
    """Without Ray: the pieces are worked on here, as its workers would."""

    def here(work: _Work, pieces: list[dict[str, Any]], num_proc: int) -> list[dict[str, Any]]:
        return [work(piece) for piece in (pieces if order == "in order" else pieces[::-1])]

    monkeypatch.setattr("potstill.corpus.many_machines._on_ray", here)
    options: dict[str, Any] = {"block_size": BLOCK_SIZE, "validation_fraction": 0.2, "num_proc": 1, "unit": unit}
    for name, engine in (("one", "processes"), ("many", "ray")):
        prepare([str(text)], str(tmp_path / name), str(teacher_folder), engine=engine, **options)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_errors_are_those_of_the_first_source(
    text: Path, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def here(work: _Work, pieces: list[dict[str, Any]], num_proc: int) -> list[dict[str, Any]]:
        return [work(piece) for piece in pieces[::-1]]

    monkeypatch.setattr("potstill.corpus.many_machines._on_ray", here)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_bytes(b"good\n\xff\xfe bad\n")
    names = [str(text), str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    with pytest.raises(PotstillError, match=r"a\.txt, line 2 is not UTF-8"):
        prepare(names, str(tmp_path / "out"), str(teacher_folder), block_size=BLOCK_SIZE, engine="ray")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.txt"]
    corpus = prepare(
        names, str(tmp_path / "out"), str(teacher_folder), block_size=BLOCK_SIZE, engine="ray", on_bad_text="skip"
    )
    assert corpus.manifest.skipped["bad_text"] == 2


def test_a_shard_that_was_cut_short_is_found(text: Path, teacher_folder: Path, tmp_path: Path) -> None:
    spec = TokenizerSpec.of(load_tokenizer(str(teacher_folder)), "teacher")
    work = _Work(ReadingOptions(), spec, str(tmp_path))
    done = work({"number": 3, "name": str(text / "0.txt"), "kind": "text"})
    path = shard_path(tmp_path, 3)
    assert sorted(tmp_path.iterdir()) == sorted([path, path.with_suffix(".npy")])
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(PotstillError, match="is damaged: prepare the corpus again"):
        list(_merged(tmp_path, done, spec, 0, 0, 0.1))


@pytest.mark.parametrize(
    "option",
    [{"language_exponent": 0.7}, {"prune_vocabulary": True}, {"unit": "sentences"}],
    ids=lambda one: next(iter(one)),
)
def test_what_needs_one_machine_is_refused(
    text: Path, teacher_folder: Path, tmp_path: Path, option: dict[str, Any]
) -> None:
    with pytest.raises(PotstillError, match=rf"--{next(iter(option))}.* does not go with --engine ray"):
        prepare([str(text)], str(tmp_path / "out"), str(teacher_folder), engine="ray", **option)


def test_without_ray_its_extra_is_named(
    text: Path, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PotstillError, match=r"--engine ray needs Ray: pip install 'potstill\[ray\]'"):
        prepare([str(text)], str(tmp_path / "out"), str(teacher_folder), block_size=BLOCK_SIZE, engine="ray")
    assert list(tmp_path.iterdir()) == []


def kill_one_worker(main: subprocess.Popen[str], killed: list[int]) -> None:
    """Kill the first worker that is seen at work."""
    while main.poll() is None and not killed:
        try:
            for process in psutil.Process(main.pid).children(recursive=True):
                if process.name().startswith("ray::Map"):
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
                    return
        except psutil.Error:
            pass
        time.sleep(0.005)


SLOWED = """
import sys, time
from potstill.corpus import many_machines

class Slowed(many_machines._Work):
    def __call__(self, piece):
        time.sleep(1)
        return super().__call__(piece)

many_machines._Work = Slowed
from potstill.cli import main
sys.exit(main(["prepare", *sys.argv[1:]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "kill"), [(1, False), (3, False), (2, True)])
def test_workers_of_ray_make_the_same_corpus(
    text: Path, teacher_folder: Path, tmp_path: Path, workers: int, kill: bool
) -> None:
    pytest.importorskip("ray")
    whole = prepare([str(text)], str(tmp_path / "one"), str(teacher_folder), block_size=BLOCK_SIZE, num_proc=1)
    script = tmp_path / "slowed.py"
    script.write_text(SLOWED)
    command = [sys.executable, str(script), f"--text={text}", f"--output_dir={tmp_path / 'many'}", "--engine=ray"]
    command += [f"--tokenizer={teacher_folder}", f"--block_size={BLOCK_SIZE}", f"--num_proc={workers}"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    main = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    killed: list[int] = []
    if kill:
        threading.Thread(target=kill_one_worker, args=(main, killed), daemon=True).start()
    _, error = main.communicate(timeout=240)
    assert main.returncode == 0, error
    assert len(killed) == kill
    assert contents(tmp_path / "many") == contents(whole.folder)
