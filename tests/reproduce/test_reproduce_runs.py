"""What the scripts do around potstill's verbs: skip, resume, start anew, and say what went wrong."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from potstill.errors import PotstillError
from reproduce import common, runs
from reproduce.common import Place, named_values, shortened
from reproduce.power import PowerMeter
from reproduce.runs import Job, run_job, run_jobs


class Verbs:
    """Takes the place of potstill's command line: keeps the words, and writes what a verb would."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.devices: list[str] = []
        self.statuses: list[int] = []
        self.leave = "results.json"

    def __call__(self, words: list[str], environment: dict[str, str], prefix: str) -> int:
        self.calls.append(words)
        self.devices.append(environment["CUDA_VISIBLE_DEVICES"])
        folder = Path(words[words.index("--output_dir") + 1])
        (folder / self.leave).parent.mkdir(parents=True, exist_ok=True)
        (folder / self.leave).write_text("{}")
        return self.statuses.pop(0) if self.statuses else 0

    def options(self, call: int = -1) -> dict[str, str]:
        words = self.calls[call]
        return {word: after for word, after in pairwise(words) if word.startswith("--")}


@pytest.fixture
def verbs(monkeypatch: pytest.MonkeyPatch) -> Verbs:
    made = Verbs()
    monkeypatch.setattr(runs, "run_command", made)
    return made


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "work", tmp_path / "results", gpus=0)


def distilling(**options: Any) -> Job:
    return Job("student", "distill", {"teacher": Path("teacher"), "seed": None} | options, minutes=10.0)


def test_what_is_finished_is_not_run_again(verbs: Verbs, place: Place, capsys: pytest.CaptureFixture) -> None:
    first = run_job(distilling(), place)
    again = run_job(distilling(), place)
    assert len(verbs.calls) == 1
    assert again == first
    assert "student: already finished" in capsys.readouterr().out


def test_the_verb_gets_its_options_and_no_others(verbs: Verbs, place: Place) -> None:
    run_job(distilling(text=["a", "b"]), place)
    words = verbs.calls[0]
    folder = str(place.work / "student")
    assert words[1:] == [
        *("-m", "potstill", "distill", "--teacher", "teacher", "--text", "a", "b"),
        *("--max_train_minutes", "10.0", "--output_dir", folder),
    ]


def test_steps_take_the_place_of_minutes(verbs: Verbs, place: Place) -> None:
    job = Job("student", "distill", {}, minutes=10, more=("--max_steps", "3"))
    run_job(job, place)
    assert "--max_train_minutes" not in verbs.calls[0]


def test_an_interrupted_training_is_resumed(verbs: Verbs, place: Place) -> None:
    verbs.statuses, verbs.leave = [143], "checkpoint-7/trainer_state.json"
    with pytest.raises(PotstillError, match="interrupted: repeat the same command") as told:
        run_job(distilling(), place)
    assert told.value.exit_status == 143
    done = run_job(distilling(), place)
    assert verbs.options()["--resume_from_checkpoint"] == "true"
    note = json.loads((place.work / "student.run.json").read_text())
    assert len(note["sessions"]) == 2
    assert done.seconds == sum(session["seconds"] for session in note["sessions"])


def test_a_training_without_a_checkpoint_starts_anew(verbs: Verbs, place: Place) -> None:
    verbs.statuses, verbs.leave = [1], "half"
    with pytest.raises(PotstillError, match=r"potstill distill\) ended with status 1"):
        run_job(distilling(), place)
    run_job(distilling(teacher="another"), place)  # nothing of the first was worth keeping
    assert "--resume_from_checkpoint" not in verbs.options()
    assert verbs.options()["--overwrite_output_dir"] == "true"


@pytest.mark.parametrize("status", [0, 143])
def test_another_run_of_the_same_name_is_refused(verbs: Verbs, place: Place, status: int) -> None:
    verbs.statuses, verbs.leave = [status], "checkpoint-7/trainer_state.json"
    try:
        run_job(distilling(), place)
    except PotstillError:
        assert status
    with pytest.raises(PotstillError, match=r"a different run \(teacher was teacher and is other\).*delete"):
        run_job(distilling(teacher="other"), place)
    assert len(verbs.calls) == 1


def test_evaluate_is_left_to_compare_by_itself(verbs: Verbs, place: Place) -> None:
    run_job(Job("glue", "evaluate", {"models": ["teacher=a"]}), place)
    run_job(Job("glue", "evaluate", {"models": ["teacher=a", "student=b"]}), place)
    assert len(verbs.calls) == 2
    assert "--overwrite_output_dir" not in verbs.calls[1]


def test_several_gpus_share_a_training_and_its_minutes(verbs: Verbs, place: Place) -> None:
    done = run_job(distilling(), place, ["0", "2"])
    assert verbs.calls[0][1:7] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    assert verbs.options()["--max_train_minutes"] == "5.0"
    assert verbs.devices == ["0,2"]
    assert done.gpus == 2


def test_a_training_goes_on_with_as_many_gpus_as_it_began_with(verbs: Verbs, place: Place) -> None:
    verbs.statuses, verbs.leave = [143], "checkpoint-7/trainer_state.json"
    with pytest.raises(PotstillError):
        run_job(distilling(), place, ["0", "1"])
    with pytest.raises(PotstillError, match="begun with --gpus 2: use the same number"):
        run_job(distilling(), place, ["0"])


def test_side_by_side_each_run_has_a_gpu(verbs: Verbs, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6")
    two = Place(place.work, place.results, gpus=2)
    done = run_jobs([Job(f"row-{number}", "distill", minutes=5) for number in range(4)], two)
    assert set(verbs.devices) <= {"3", "5"}
    assert [run.folder.name for run in done] == ["row-0", "row-1", "row-2", "row-3"]
    assert all("torch.distributed.run" not in words for words in verbs.calls)
    assert verbs.options()["--max_train_minutes"] == "5.0"


def test_several_runs_share_a_gpu(verbs: Verbs, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    together = threading.Barrier(4)  # which only four runs at a time pass

    def waiting(*call: Any) -> int:
        together.wait(timeout=60)
        return verbs(*call)

    monkeypatch.setattr(runs, "run_command", waiting)
    run_jobs([Job(f"row-{number}", "finetune") for number in range(8)], replace(place, gpus=2, runs_per_gpu=2))
    assert {verbs.devices.count(gpu) for gpu in ("3", "5")} == {4}


def test_side_by_side_a_failure_is_told(verbs: Verbs, place: Place) -> None:
    verbs.statuses = [3] * 4
    two = Place(place.work, place.results, gpus=2)
    with pytest.raises(PotstillError, match="ended with status 3") as told:
        run_jobs([Job(f"row-{number}", "distill") for number in range(4)], two)
    assert told.value.exit_status == 3
    assert len(verbs.calls) < 4


def test_a_verb_that_fails_gives_one_sentence_and_its_status(place: Place, capfd: pytest.CaptureFixture) -> None:
    def script(argv: list[str]) -> None:
        run_job(Job("student", "distil", {}), place)

    assert common.run(script, []) == 2
    told = capfd.readouterr().err.strip().splitlines()
    assert told[-1] == "reproduce: student (potstill distil) ended with status 2. The reason is printed above."
    assert "Traceback" not in "".join(told)
    assert "there is no verb 'distil'" in told[-2]


def test_a_signal_is_passed_on() -> None:
    child = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(7)); print('up', flush=True); time.sleep(60)"
    )
    parent = (
        "import os, sys; from reproduce.processes import run_command;"
        f"sys.exit(run_command([sys.executable, '-c', {child!r}], dict(os.environ), ''))"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM


def test_commands_are_told_without_the_folders_of_the_machine(tmp_path: Path) -> None:
    assert shortened(str(tmp_path / "glue")) == "glue"
    assert shortened(f"teacher={tmp_path}/bert") == "teacher=bert"
    assert shortened("blocks/x") == "blocks/x"
    assert shortened("--minutes") == "--minutes"


def test_named_values() -> None:
    assert named_values(["a=1", "b=c=d"], "--x") == {"a": "1", "b": "c=d"}
    with pytest.raises(PotstillError, match="--x 'a' is not NAME=VALUE"):
        named_values(["a"], "--x")


def test_power_is_read_from_the_sensors_where_there_are_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 300.5\necho 299.5\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("reproduce.power.INTERVAL_SECONDS", 0.01)
    read: list[float] = []

    def clock() -> float:
        """Go by two seconds more from one reading to the next, however long they take."""
        read.append(sum(range(0, 2 * len(read) + 1, 2)))
        return read[-1]

    monkeypatch.setattr("reproduce.power.time", SimpleNamespace(monotonic=clock))
    with PowerMeter(["0", "1"]) as meter:
        while len(read) < 4:
            time.sleep(0.01)
    assert read[:4] == [0, 2, 6, 12]
    assert meter.joules == pytest.approx(600 * read[-1])


def test_power_is_not_made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with PowerMeter(["0"]) as meter:
        pass
    assert meter.joules is None


def test_results_are_written_whole_and_read_again(place: Place) -> None:
    common.write_result(place, "table1", {"a": 1})
    record = common.read_result(place.results, "table1")
    assert record is not None
    assert record["a"] == 1
    assert record["conditions"]["gpus"] == 0
    assert common.read_result(place.results, "table2") is None
    (place.results / "table1.json").write_text("{")
    with pytest.raises(PotstillError, match="is damaged: it is not JSON"):
        common.read_result(place.results, "table1")
