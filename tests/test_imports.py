"""The start of the command line: what is imported, and when the garbage collector rests."""

import gc
import os
import subprocess
import sys

from potstill.imports import quick_imports

NEVER_TRAINED_WITH = ("matplotlib", "sklearn", "scipy.stats", "tensorboard", "onnx", "onnxruntime", "openvino")
SCRIPT = """
import gc, sys
from potstill.imports import quick_imports
with quick_imports():
    assert not gc.isenabled()
    import potstill.distillation
with quick_imports():
    import potstill.training.distill, potstill.training.pretrain
assert gc.isenabled()
assert gc.get_freeze_count() > 100_000
print(*sys.modules)
"""


def test_a_training_imports_nothing_that_it_does_not_use() -> None:
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=os.environ, check=True)
    modules = set(found.stdout.split())
    assert "torch" in modules
    assert modules & set(NEVER_TRAINED_WITH) == set()


def test_a_program_that_uses_torch_keeps_its_garbage_collector() -> None:
    before = gc.get_freeze_count()
    with quick_imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() <= before  # a frozen object that is no longer used is freed
