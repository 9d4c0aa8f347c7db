"""A place where tests run verbs in forked processes, and the seed of the long part."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from fork_server import ForkServer
from verbs import works
from workplace import Workplace


@pytest.fixture(scope="session")
def fault_seed() -> int:
    """The seed of the long part: that of the variable FAULT_SEED, or a new one. It is printed."""
    seed = int(os.environ.get("FAULT_SEED") or random.SystemRandom().randrange(2**32))
    print(f"\nFAULT_SEED={seed}")
    return seed


@pytest.fixture(scope="session")
def workplace(teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    place = tmp_path_factory.mktemp("faults")
    server = ForkServer({"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})
    yield Workplace(place, server, works(place, teacher_folder))
    server.end()
