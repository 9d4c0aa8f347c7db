"""Tiny classifiers, and workers in this process in place of those in processes of their own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

from potstill.bench import flops
from potstill.bench.inference import limits
from potstill.bench.inference.models import Form
from potstill.bench.inference.worker import Worker

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 48,
    "num_labels": 2,
}


class Local:
    """Takes the place of `Process`: runs calls in this process, and keeps a list of them by form."""

    calls: ClassVar[list[tuple[str, str, tuple[Any, ...]]]] = []

    def __init__(self, form: Form, threads: int) -> None:
        self.form, self.pid = form, os.getpid()
        self.worker = Worker()

    def send(self, method: str, *arguments: Any) -> None:
        self.calls.append((str(self.form), method, arguments))
        self._answer = getattr(self.worker, method)(*arguments)

    def receive(self) -> Any:
        return self._answer

    def call(self, method: str, *arguments: Any) -> Any:
        self.send(method, *arguments)
        return self.receive()

    def close(self) -> None:
        pass


def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the machine's limits measured with next to nothing."""
    monkeypatch.setitem(flops.MATRIX_SIZE, "cpu", 64)
    monkeypatch.setattr(limits, "READ_BYTES", 2**20)
    monkeypatch.setattr(limits, "INT8_SIZE", 64)


def called(calls: Sequence[tuple[str, str, tuple[Any, ...]]], method: str) -> list[tuple[str, Any]]:
    """Return form and first argument of each call of a method."""
    return [(form, arguments[0]) for form, name, arguments in calls if name == method]
