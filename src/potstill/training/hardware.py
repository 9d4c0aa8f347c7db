"""Names of the hardware that a run computes on."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from potstill.wording import counted


def hardware(device: torch.device) -> str:
    """Return the name of the accelerator, or the name of the processor and the number of threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor()}, {counted(threads, 'thread')}"


def processor() -> str:
    """Return the name of the processor."""
    names = [line.split(":", 1)[1].strip() for line in cpu_info() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def multiplies_bfloat16() -> bool:
    """Return whether the processor multiplies matrices of bfloat16 by instructions of their own: Intel's AMX."""
    return any(line.startswith("flags") and "amx_bf16" in line.split() for line in cpu_info())


def cpu_info() -> list[str]:
    """Return the lines of /proc/cpuinfo, or an empty list if there is no such file."""
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
