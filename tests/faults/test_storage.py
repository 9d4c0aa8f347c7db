"""Storage that fails: what has a name is on the disk, and a full, closed or changed disk is told before it harms."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import assert_same_tensors, checkpoints, distillation, new_trainer, tensors
from samples import BLOCK_SIZE, written_text
from transformers import TrainerCallback
from workplace import Workplace

from potstill import PotstillError, distill
from potstill.corpus import Corpus, prepare
from potstill.files import write_text
from potstill.training import checkpoints as checkpoint_module
from potstill.training.checkpoints import verify

SIZES: dict[str, Any] = {"max_steps": 6, "save_steps": 2, "layers": "alternate"}


class Disk:
    """What would be left of files after a power failure: those that were flushed, under flushed names."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.place = str(place)
        self.flushed: dict[int, tuple[int, int]] = {}  # number of a file → its size and time when it was flushed
        self.unflushed_names: set[str] = set()  # folders with renamings that may be lost
        self.wrong: list[str] = []
        self.renamed = 0
        fsync, rename, replace = os.fsync, os.rename, os.replace

        def noted_fsync(descriptor: int) -> None:
            fsync(descriptor)
            found = os.fstat(descriptor)
            self.flushed[found.st_ino] = (found.st_size, found.st_mtime_ns)
            self.unflushed_names.discard(os.readlink(f"/proc/self/fd/{descriptor}"))

        def noted(do: Callable[..., None]) -> Callable[..., None]:
            def doing(source: Any, target: Any, **options: Any) -> None:
                self._check(os.fspath(source), os.fspath(target))
                do(source, target, **options)

            return doing

        monkeypatch.setattr(os, "fsync", noted_fsync)
        monkeypatch.setattr(os, "rename", noted(rename))
        monkeypatch.setattr(os, "replace", noted(replace))

    def _check(self, source: str, target: str) -> None:
        if not os.path.abspath(target).startswith(self.place) or os.path.basename(target).startswith("."):
            return  # a hidden name is not taken for complete
        self.renamed += 1
        paths = [source] if os.path.isfile(source) else []
        paths += [os.path.join(parent, name) for parent, _, names in os.walk(source) for name in names]
        for path in paths:
            found = os.stat(path)
            if self.flushed.get(found.st_ino) != (found.st_size, found.st_mtime_ns):
                self.wrong.append(f"{path} became part of {target} before it was flushed")
        self.unflushed_names.add(os.path.realpath(os.path.dirname(os.path.abspath(target))))


def test_everything_is_flushed_before_it_gets_its_name(
    teacher_folder: Path, text_path: Path, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(tmp_path, monkeypatch)
    prepare([str(text_path)], str(tmp_path / "blocks"), str(teacher_folder), BLOCK_SIZE, num_proc=1)
    assert disk.renamed == 1
    distill(distillation(teacher_folder, corpus_folder, tmp_path / "student", **SIZES))
    assert disk.renamed > 10
    write_text(tmp_path / "table.md", "| 1 |\n")
    assert disk.wrong == []
    assert disk.unflushed_names == set()


class AfterStep(TrainerCallback):
    """Do something after a step, before its checkpoint is written."""

    def __init__(self, step: int, action: Callable[[], object]) -> None:
        self.step, self.action = step, action

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.action()


SMALL_DISK = """
import ctypes, os, sys
from pathlib import Path

libc = ctypes.CDLL(None, use_errno=True)
NEWUSER, NEWNS, READ_ONLY, REMOUNT, BIND, PRIVATE = 0x10000000, 0x00020000, 1, 32, 4096, (1 << 18) | 16384

def call(name, *arguments):
    if getattr(libc, name)(*arguments):
        print("SKIP", name, os.strerror(ctypes.get_errno()))
        sys.exit(0)

user, group = os.getuid(), os.getgid()
call("unshare", NEWNS if user == 0 else NEWNS | NEWUSER)
if user:
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    Path("/proc/self/gid_map").write_text(f"0 {group} 1")
call("mount", b"none", b"/", None, PRIVATE, None)

def mount(place, size):
    call("mount", b"tmpfs", str(place).encode(), b"tmpfs", 0, f"size={size}".encode())

def read_only(folder):
    call("mount", str(folder).encode(), str(folder).encode(), None, BIND, None)
    call("mount", None, str(folder).encode(), None, BIND | READ_ONLY | REMOUNT, None)
"""
"""Mounts a file system of its own, which only this process sees and which ends with it. No rights are needed for it."""


def on_small_disk(workplace: Workplace, script: str, *arguments: object) -> str:
    """Run a script that can mount a small file system, and return its last line; skip the test where it cannot."""
    status, printed = workplace.server.run_code(SMALL_DISK + script, *arguments)
    lines = printed.strip().splitlines()
    if lines and lines[0].startswith("SKIP"):
        pytest.skip(f"no file system can be mounted here: {lines[0]}")
    assert status == 0, printed
    return lines[-1]


FULL = """
import torch
from runs import distillation, new_trainer, checkpoints
from test_storage import AfterStep
from potstill import PotstillError, distill
from potstill.training import checkpoints as checkpoint_module
from potstill.training.checkpoints import verify

torch.set_num_threads(1)
teacher, corpus, place, how = sys.argv[1:]
place, told = Path(place), "nothing"
mount(place, 2_000_000)
folder = place / "student"
sizes = {"max_steps": 6, "save_steps": 2, "layers": "alternate", "save_total_limit": 1}

def fill():
    if how == "read-only":
        read_only(folder)
        return
    free = os.statvfs(place).f_bavail * os.statvfs(place).f_bsize
    (place / "other").write_bytes(bytes(max(0, free - 100_000)))

try:
    new_trainer(distillation(teacher, corpus, folder, **sizes), [AfterStep(4, fill)]).train()
except PotstillError as error:
    told = str(error)
assert checkpoints(folder) == ["checkpoint-2"], checkpoints(folder)
verify(folder / "checkpoint-2")
if how == "full":  # room again: the same command goes on
    (place / "other").unlink()
    distill(distillation(teacher, corpus, folder, resume_from_checkpoint="auto", **sizes))
    assert "step" in (folder / "results.json").read_text()
print(told)
"""


@pytest.mark.parametrize(
    ("how", "told"),
    [("full", "No space left on device"), ("read-only", "Read-only file system")],
)
def test_a_disk_that_becomes_full_or_read_only(
    workplace: Workplace, teacher_folder: Path, corpus_folder: Path, tmp_path: Path, how: str, told: str
) -> None:
    line = on_small_disk(workplace, FULL, teacher_folder, corpus_folder, tmp_path, how)
    assert told in line
    assert line.endswith(f"the last good checkpoint is {tmp_path / 'student' / 'checkpoint-2'}.")


def refuse_writes(patch: pytest.MonkeyPatch, number: int, place: Path) -> None:
    """Let every file that Python opens to write below a folder fail with an error of the system."""
    opened = open

    def refusing(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if isinstance(file, (str, Path)) and str(file).startswith(str(place)) and set(mode) & set("wax"):
            raise OSError(number, os.strerror(number), str(file))
        return opened(file, mode, *args, **kwargs)

    patch.setattr("builtins.open", refusing)
    patch.setattr("io.open", refusing)


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EDQUOT, "free some disk space, because your quota is used up"),
        (errno.EACCES, "check who owns it and its folder, and their permissions"),
        (errno.ESTALE, "check the disk or the network drive, and try again"),
        (errno.EIO, "check the disk or the network drive, and try again"),
    ],
    ids=["quota", "permission lost", "network drive lost", "failing disk"],
)
def test_other_errors_of_the_disk_while_saving(
    teacher_folder: Path,
    corpus_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    remedy: str,
) -> None:
    folder = tmp_path / "student"
    args = distillation(teacher_folder, corpus_folder, folder, **SIZES | {"save_total_limit": 1})
    with monkeypatch.context() as patch, pytest.raises(PotstillError) as stopped:
        new_trainer(args, [AfterStep(4, lambda: refuse_writes(patch, number, folder))]).train()
    assert remedy in str(stopped.value)
    assert str(stopped.value).endswith(f"the last good checkpoint is {folder / 'checkpoint-2'}.")
    assert checkpoints(folder) == ["checkpoint-2"]
    verify(folder / "checkpoint-2")


def test_there_is_always_a_good_checkpoint(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between any two changes of the folder, with one checkpoint to keep."""
    folder, counts = tmp_path / "student", []
    kept = {"save_total_limit": 1}

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching[0] and event in ("os.rename", "os.remove", "os.rmdir"):
            counts.append(sum(map(_good, [*folder.glob("checkpoint-*"), *folder.glob(".checkpoint-*.replaced")])))

    watching = [False]
    sys.addaudithook(watch)
    begin = AfterStep(3, lambda: watching.__setitem__(0, True))  # checkpoint-2 is there
    try:
        new_trainer(distillation(teacher_folder, corpus_folder, folder, **SIZES | kept), [begin]).train()
    finally:
        watching[0] = False
    assert len(counts) > 10
    assert min(counts) >= 1


def _good(folder: Path) -> bool:
    checkpoint_module._verified.clear()  # a checkpoint that was good a moment ago may have lost a file
    try:
        verify(folder)
    except PotstillError:
        return False
    return True


def test_a_clock_that_was_set_back_does_not_cost_the_newest_checkpoint(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "student"

    def set_back() -> None:
        later = (folder / "checkpoint-2").stat().st_mtime + 3600
        os.utime(folder / "checkpoint-2", (later, later))

    args = distillation(teacher_folder, corpus_folder, folder, **SIZES | {"save_total_limit": 1, "max_steps": 4})
    new_trainer(args, [AfterStep(3, set_back)]).train()
    assert checkpoints(folder) == ["checkpoint-4"]


def test_a_checkpoint_is_the_newest_from_the_moment_it_has_its_name(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was killed then and resumed would otherwise remove it before an older one."""

    class Killed(BaseException):
        pass

    replace = checkpoint_module.replace_folder

    def killed(staged: Path, folder: Path) -> None:
        replace(staged, folder)
        if folder.name == "checkpoint-4":
            raise Killed

    monkeypatch.setattr(checkpoint_module, "replace_folder", killed)
    folder = tmp_path / "student"
    with pytest.raises(Killed):
        distill(distillation(teacher_folder, corpus_folder, folder, **SIZES | {"max_steps": 6}))
    assert checkpoints(folder) == ["checkpoint-2", "checkpoint-4"]
    times = [(folder / name).stat().st_mtime for name in checkpoints(folder)]
    assert times[1] >= times[0] + 1


@pytest.mark.parametrize("part", ["train.arrow", "validation.arrow", "token_counts.npy"])
def test_one_turned_bit_of_a_corpus_is_found_before_training(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path, part: str
) -> None:
    corpus = tmp_path / "blocks"
    shutil.copytree(corpus_folder, corpus)
    content = bytearray((corpus / part).read_bytes())
    content[len(content) * 2 // 3] ^= 4
    (corpus / part).write_bytes(content)
    with pytest.raises(PotstillError, match=part):
        distill(distillation(teacher_folder, corpus, tmp_path / "student", **SIZES))
    assert not (tmp_path / "student").exists()


def test_a_corpus_that_is_replaced_during_the_run_is_not_read(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    """The run keeps what it has opened; its workers, which open the file again, refuse another one."""
    corpus = tmp_path / "blocks"
    shutil.copytree(corpus_folder, corpus)
    text = tmp_path / "other.txt"
    text.write_text(written_text(45, seed=7), encoding="utf-8")
    blocks = Corpus.open(corpus).train
    sent = pickle.dumps(blocks)
    assert pickle.loads(sent)[3]["input_ids"].equal(blocks[3]["input_ids"])

    def replace() -> None:
        options: dict[str, Any] = {"num_proc": 1, "validation_fraction": 0.2, "overwrite_output_dir": True}
        prepare([str(text)], str(corpus), str(teacher_folder), BLOCK_SIZE, **options)

    args = distillation(teacher_folder, corpus, tmp_path / "student", **SIZES)
    trainer = new_trainer(args, [AfterStep(3, replace)])
    trainer.train()
    whole = distill(distillation(teacher_folder, corpus_folder, tmp_path / "whole", **SIZES))
    assert_same_tensors(tensors(tmp_path / "student" / "checkpoint-6"), tensors(whole))
    with pytest.raises(PotstillError, match=r"train\.arrow has changed since the run began"):
        pickle.loads(sent)
    with pytest.raises(PotstillError, match="the corpus is not the one that the run began with"):
        distill(distillation(teacher_folder, corpus, tmp_path / "student", **SIZES, resume_from_checkpoint="auto"))
