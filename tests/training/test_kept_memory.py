"""On a CPU the memory that a step frees serves the next one, and is returned after the training."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import distillation, new_trainer

from potstill.training import kept_memory as room
from potstill.training import resumable
from potstill.training.kept_memory import kept_memory

MEASURED = """
import json, resource, torch
from potstill.training.kept_memory import kept_memory

torch.set_num_threads(1)
SIZE = 48 * 2**20  # bytes of a tensor: above any threshold that glibc chooses by itself

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(SIZE // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

found = {"before": faults()}
at_start = resident()
with kept_memory(torch.device("cpu")):
    for _ in range(5):  # until the blocks that are free are large enough for an aligned one
        faults()
    found["inside"] = faults()
    found["kept"] = resident() - at_start
found["left"] = resident() - at_start
torch.ones(640 * 2**20 // 4)  # more than any hole in the heap has
found["left after"] = resident() - at_start
print(json.dumps(found))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_pages_are_cleared_once() -> None:
    done = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    pages = 5 * 48 * 2**20 // 4096
    assert found["before"] >= pages  # if this fails, the C library does by itself what is tested here
    assert found["inside"] < pages / 20
    assert found["kept"] > 40 * 2**20
    assert found["left"] < 10 * 2**20
    assert found["left after"] < 10 * 2**20  # what is freed later is returned at once


def test_a_training_on_a_cpu_keeps_it(
    teacher_folder: Path, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.device] = []

    def noting(device: torch.device) -> object:
        seen.append(device)
        return kept_memory(device)

    monkeypatch.setattr(resumable, "kept_memory", noting)
    new_trainer(distillation(teacher_folder, corpus_folder, tmp_path / "student", max_steps=1)).train()
    assert seen == [torch.device("cpu")]


def test_other_systems_and_devices_do_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room.ctypes, "CDLL", lambda name: object())
    with kept_memory(torch.device("cpu")):
        pass
    monkeypatch.setattr(room, "_function", lambda name: pytest.fail("it is for a CPU alone"))
    with kept_memory(torch.device("cuda")):
        pass
