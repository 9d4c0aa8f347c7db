"""Each form in a process of its own: its threads, its memory and not its parent's, and what is said when it fails."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from potstill.bench.inference.memory import CLEAR, peak, reset_peak
from potstill.bench.inference.models import Form, forms_of, read_models
from potstill.bench.inference.processes import Process, all_at_once, processes
from potstill.bench.inference.requests import synthetic_requests
from potstill.bench.inference.worker import Worker
from potstill.errors import PotstillError

MEBIBYTES = 2**20


def eager(name: str, folder: Path) -> Form:
    return forms_of(read_models([(name, str(folder))], None)[0], compiled=False)[0]


@pytest.mark.skipif(not os.access(CLEAR, os.W_OK), reason="the system does not let a process forget its peak")
def test_the_peak_is_that_since_it_was_forgotten() -> None:
    before = reset_peak()
    block = np.ones(100 * MEBIBYTES, np.int8)
    del block
    assert 90 * MEBIBYTES < peak() - before < 200 * MEBIBYTES
    assert abs(reset_peak() - before) < 50 * MEBIBYTES
    assert peak() - before < 50 * MEBIBYTES


def test_a_process(make_classifier: Callable[..., Path]) -> None:
    form, cut = eager("whole", make_classifier()), eager("cut", make_classifier())
    weights = Path(cut.path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    large = np.ones(700 * MEBIBYTES, np.int8)  # what `getrusage` of a process started now would begin with
    with processes([form], 1) as (worker,):
        with pytest.raises(PotstillError) as caught:
            worker.call("open", cut, 1)
        message = str(caught.value)
        assert message.startswith("--models whole: the model")
        assert "cannot be loaded, because its weights in model.safetensors are damaged" in message
        assert "\n" not in message
        assert message.endswith(".")
        assert not message.endswith("..")

        environment = Path(f"/proc/{worker.pid}/environ")
        if environment.exists():
            settings = environment.read_bytes().split(b"\0")
            assert b"OMP_NUM_THREADS=1" in settings
            assert b"CUDA_VISIBLE_DEVICES=" in settings

        assert worker.call("open", form, 1) == 32
        (lengths,) = all_at_once([worker], [("read", synthetic_requests(10, 32), None)])
        assert lengths == [8, 16, 32] * 3 + [8]
        worker.call("warm_up", 2)
        assert all(0 < seconds < 10 for seconds in worker.call("run", [0, 1, 2]))
        most, before = worker.call("memory")
        assert 0 < most - before < 300 * MEBIBYTES
        assert worker.call("run_for", 0.05) > 0
        with pytest.raises(RuntimeError, match="no_such_method"):
            worker.call("no_such_method")

        os.kill(worker.pid, signal.SIGKILL)
        died = r"whole \(PyTorch, eager\): its process was killed by signal 9 at 'run'"
        with pytest.raises(PotstillError, match=died):
            worker.call("run", [0])
    assert len(large) > 0
    assert worker._process.returncode == -signal.SIGKILL


class Waking:
    """A runner with a clock of its own, slow for the first tenth of a second after others had the processor."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def run(self, batch: object) -> None:
        self.now += 0.02 if self.now < 0.1 else 0.001


def test_what_it_takes_to_get_the_processor_back_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker()
    worker._singles, worker._batches = [0, 1, 2], [0]

    def wake() -> None:
        worker._runner = waking = Waking()  # type: ignore[assignment]
        monkeypatch.setattr("potstill.bench.inference.worker.time", waking)

    wake()
    assert worker.run([1, 2]) == pytest.approx([0.001, 0.001])
    wake()
    assert worker.run_batch(0) == pytest.approx(0.001)
    assert worker.run_for(0) == 1


def test_a_process_that_cannot_start_says_why(
    make_classifier: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    worker = Process(Form("a", "PyTorch, eager", "eager", "", ""), 1)
    with pytest.raises(PotstillError, match="ended with status"):
        worker.call("open", worker.form, 1)
    worker.close()
