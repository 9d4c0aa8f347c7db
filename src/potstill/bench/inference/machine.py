"""Describes the machine of a measurement, and measures how busy it was with other work."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from potstill.bench.inference.inference_arguments import cores
from potstill.training.hardware import cpu_info, processor

SETS = {
    "AVX2": ("avx2",),
    "AVX-512": ("avx512f",),
    "VNNI": ("avx512_vnni", "avx_vnni", "asimddp"),
    "BF16": ("avx512_bf16", "bf16"),
    "AMX": ("amx_int8",),
    "I8MM": ("i8mm",),
}
"""Instruction set → its names in /proc/cpuinfo, or the similar set on Arm (`asimddp`: products of 8-bit integers)."""

ARM_ONLY = ("I8MM",)
CACHE = Path("/sys/devices/system/cpu/cpu0/cache")


@dataclass(frozen=True)
class Machine:
    """A machine.

    Attributes:
        processor: its name.
        cores: number of cores that this process may use.
        instruction_sets: name → whether the processor has it; empty if the system does not report it.
        cache_bytes: size of the last level of cache, which others may share; None if the system does not report it.
        memory_bytes: size of the machine's memory.
        system: operating system and its version.
    """

    processor: str
    cores: int
    instruction_sets: dict[str, bool]
    cache_bytes: int | None
    memory_bytes: int
    system: str

    @classmethod
    def here(cls) -> Machine:
        """Describe this machine."""
        return cls(
            processor(), cores(), instruction_sets(cpu_info()), _last_cache(), psutil.virtual_memory().total,
            f"{platform.system()} {platform.release()}",
        )  # fmt: skip

    def __str__(self) -> str:
        sets = ", ".join(f"{name} {'yes' if has else 'no'}" for name, has in self.instruction_sets.items())
        cache = f" · cache {self.cache_bytes / 2**20:,.0f} MiB" if self.cache_bytes else ""
        return f"{self.processor}, {self.cores} cores · {sets or 'instruction sets unknown'}{cache} · {self.system}"


def instruction_sets(lines: Sequence[str]) -> dict[str, bool]:
    """Return name of an instruction set → whether the processor has it, from the lines of /proc/cpuinfo."""
    found = [line.split(":", 1) for line in lines if line.startswith(("flags", "Features")) and ":" in line]
    if not found:
        return {}
    kind, flags = found[0][0].strip(), set(found[0][1].split())
    wanted = SETS if kind == "Features" else {name: words for name, words in SETS.items() if name not in ARM_ONLY}
    return {name: not flags.isdisjoint(words) for name, words in wanted.items()}


def _last_cache() -> int | None:
    sizes = []
    for index in CACHE.glob("index*"):
        with suppress(OSError, ValueError):
            size = (index / "size").read_text().strip()
            sizes.append(int(size.rstrip("KMG")) * {"K": 2**10, "M": 2**20, "G": 2**30}.get(size[-1], 1))
    return max(sizes, default=None)


@dataclass(frozen=True)
class Disturbance:
    """Other work on the machine during a measurement, as shares of the time of all cores.

    Attributes:
        others: share that other processes took.
        stolen: share that a hypervisor gave to other machines; None if the system does not report it.
    """

    others: float
    stolen: float | None

    def __str__(self) -> str:
        stolen = "" if self.stolen is None else f", the hypervisor {self.stolen:.1%}"
        return f"other processes took {self.others:.1%} of the cores' time{stolen}"


class DisturbanceMeter:
    """Measures the work of other processes, from the creation of the meter on.

    Args:
        processes: ids of the measuring processes, without this one.
    """

    def __init__(self, processes: Sequence[int]) -> None:
        self._processes = [psutil.Process(), *map(psutil.Process, processes)]
        self._before = psutil.cpu_times(), self._own()

    def read(self) -> Disturbance:
        """Return the other work since the creation of the meter."""
        (before, own_before), now = self._before, psutil.cpu_times()
        spent = {name: getattr(now, name) - getattr(before, name) for name in now._fields}
        idle, stolen = spent["idle"] + spent.get("iowait", 0.0), spent.get("steal", 0.0)
        guest = spent.get("guest", 0.0) + spent.get("guest_nice", 0.0)  # "user" already includes them
        all_time = max(sum(spent.values()) - guest, 1e-9)
        others = all_time - idle - stolen - (self._own() - own_before)
        return Disturbance(max(0.0, others / all_time), stolen / all_time if "steal" in spent else None)

    def _own(self) -> float:
        total = 0.0
        for process in self._processes:
            with suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total
