"""How long models take for one text at a time."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from potstill.finetuning.step import run

PASSES = 3


@torch.inference_mode()
def milliseconds(models: Sequence[PreTrainedModel], requests: Sequence[dict[str, Tensor]]) -> list[float]:
    """Return the median milliseconds of a request for each model.

    The models take turns at each request, so that other work on the machine slows all of them alike. Of several passes
    over the requests, the fastest counts for each request. `potstill bench inference` measures with more care.

    Args:
        models: in evaluation mode, on one device.
        requests: inputs of single texts, on the same device.
    """
    for model in models:  # a first run is slower
        run(model, requests[0])
    fastest = [[math.inf] * len(requests) for _ in models]
    for _ in range(PASSES):
        for number, request in enumerate(requests):
            for model, found in zip(models, fastest, strict=True):
                _wait(model.device)
                started = time.perf_counter()
                run(model, request)
                _wait(model.device)
                found[number] = min(found[number], time.perf_counter() - started)
    return [1000 * statistics.median(found) for found in fastest]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
