"""The machine is described by what the system says, and its limits bound what a request can take."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from potstill.bench.inference.counting import Counted
from potstill.bench.inference.limits import Limits, bound, measure_limits
from potstill.bench.inference.machine import Disturbance, DisturbanceMeter, Machine, instruction_sets

INTEL = ["processor : 0", "model name : X", "flags\t\t: fpu sse avx2 avx512f avx512_vnni amx_tile amx_int8"]
OLDER = ["flags : fpu avx2 avx_vnni_int8", "flags : avx512f"]
ARM = ["Features\t: fp asimd asimddp bf16"]


def test_instruction_sets() -> None:
    assert instruction_sets(INTEL) == {"AVX2": True, "AVX-512": True, "VNNI": True, "BF16": False, "AMX": True}
    assert instruction_sets(OLDER) == {"AVX2": True, "AVX-512": False, "VNNI": False, "BF16": False, "AMX": False}
    assert instruction_sets(ARM)["VNNI"]
    assert instruction_sets(ARM)["I8MM"] is False
    assert instruction_sets(["nothing of the kind"]) == {}


def test_this_machine() -> None:
    machine = Machine.here()
    assert machine.cores >= 1
    assert machine.memory_bytes > 2**28
    assert f"{machine.cores} cores" in str(machine)


LIMITS = Limits(bytes_per_second=1e9, flops_per_second=1e10, int8_per_second=4e10)
COUNTED = Counted(10, 9, matrix_weights=1_000_000, vector_weights=5_000, flops={8: 10_000_000, 64: 100_000_000})


def test_the_longer_of_reading_and_computing_bounds_each_request() -> None:
    # Reading 4.02 MB takes 4.02 ms; the products 1 ms and 10 ms.
    found = bound(COUNTED, 32, [8, 64], mean_seconds=0.01402, limits=LIMITS)
    assert found.weight_bytes == 4_020_000
    assert found.milliseconds_of_weights == pytest.approx(4.02)
    assert found.milliseconds_of_products == pytest.approx(5.5)
    assert found.milliseconds == pytest.approx((4.02 + 10) / 2)
    assert found.times == pytest.approx(2)


def test_integers_are_read_and_multiplied_as_such() -> None:
    found = bound(COUNTED, 8, [8], mean_seconds=1, limits=LIMITS)
    assert found.weight_bytes == 1_020_000
    assert found.milliseconds_of_weights == pytest.approx(1.02)
    assert found.milliseconds_of_products == pytest.approx(0.25)


def test_limits_are_measured_and_the_best_counts(small_machine: None) -> None:
    before = __import__("torch").get_num_threads()
    limits = measure_limits(1)
    assert __import__("torch").get_num_threads() == before
    assert limits.bytes_per_second > 1e8
    assert limits.int8_per_second >= limits.flops_per_second > 1e6
    assert limits.best(Limits(1e30, 1, 1)) == Limits(1e30, limits.flops_per_second, limits.int8_per_second)


def test_other_processes_are_told_from_those_that_measure() -> None:
    busy = [sys.executable, "-c", "import time\nend = time.time() + 120\nwhile time.time() < end: pass"]
    with subprocess.Popen(busy) as process:
        try:
            mine, others, began = DisturbanceMeter([process.pid]), DisturbanceMeter([]), time.monotonic()
            before = psutil.Process(process.pid).cpu_times().user
            while (taken := psutil.Process(process.pid).cpu_times().user - before) < 1:
                assert time.monotonic() - began < 100
                time.sleep(0.1)
            counted, uncounted, lasted = mine.read().others, others.read().others, time.monotonic() - began
        finally:
            process.kill()
    assert 0 <= counted <= 1
    # It took one core, or a part of it where others wanted it too.
    assert uncounted - counted > 0.5 * taken / lasted / (os.cpu_count() or 1)
    assert "other processes took 12.0%" in str(Disturbance(0.12, 0.0))
