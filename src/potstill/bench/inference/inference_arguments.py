"""The options of `bench inference`: the models, the requests and the measurement."""

from __future__ import annotations

import os
from dataclasses import dataclass

from potstill.arguments import named_models, option
from potstill.errors import PotstillError
from potstill.files import check_output_file

BATCH_SIZES = (1, 8, 32)
ELMO = "ELMo-shaped"
"""Name of the row of `--elmo`."""


@dataclass
class BenchInferenceArguments:
    """Options of `potstill bench inference`.

    Raises:
        PotstillError: a value is not allowed. The message names its option.
    """

    models: list[str] | None = option(
        None,
        "Models as NAME=FOLDER. The others are compared with the first. FOLDER is a folder or hub name of a "
        "transformers model, or a folder that `potstill export` wrote.",
        required=True,
    )
    data: str | None = option(
        None,
        "The requests: stsb, which is the development set of STS-B (Table 3 of the paper), or a text file with one "
        "request on each line, where a tab separates the two texts of a pair. Random tokens if not given.",
    )
    task_data: str | None = option(None, "Folder of GLUE's data, for --data stsb; the hub's if not given.")
    threads: int = option(1, "Threads that one request may use.")
    batch_size: list[int] | None = option(
        None, "Requests at a time for throughput; 1, 8 and 32 if not given. Latency is always of one request at a time."
    )
    compiled: bool = option(True, "Also run models of PyTorch compiled, in addition to eager.")
    elmo: bool = option(
        False, "Add a row of ELMo's shape (character CNN and two BiLSTM layers of its published sizes, random weights)."
    )
    energy: bool = option(False, "Add joules and grams of CO2 of a request, by codecarbon.")
    country: str | None = option(
        None, "Country of the electricity for --energy, as three letters (FRA, USA); the world's mean if not given."
    )
    max_requests: int | None = option(None, "Requests at most, evenly spread over the data; all if not given.")
    max_length: int | None = option(
        None, "Cut requests to this number of tokens. If not given, a request that is too long for a model is an error."
    )
    passes: int = option(1, "Number of times that all requests are run for latency.")
    warmup: int = option(10, "Requests to run before anything is measured, in addition to the longest and shortest.")
    output: str | None = option(None, "File to write all measurements to, as JSON.")

    def __post_init__(self) -> None:
        """Check each value by itself."""
        if not self.models:
            raise PotstillError("--models is missing: name models as NAME=FOLDER. The first is the reference.")
        names = [name for name, _ in named_models(self.models)]
        for name in names:
            if names.count(name) > 1:
                raise PotstillError(f"--models has two models with the name {name!r}: give each its own name.")
        if self.elmo and ELMO in names:
            raise PotstillError(f"--models has a model with the name {ELMO!r}, which --elmo uses: choose another name.")
        self.batch_size = sorted(set(self.batch_size or BATCH_SIZES))
        for name in ("threads", "passes", "max_requests", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PotstillError(f"--{name} is {value}: it must be above 0.")
        if self.batch_size[0] < 1:
            raise PotstillError(f"--batch_size is {self.batch_size[0]}: it must be above 0.")
        if self.warmup < 0:
            raise PotstillError(f"--warmup is {self.warmup}: it must be 0 or more.")
        if self.threads > (available := cores()):
            raise PotstillError(
                f"--threads is {self.threads}, but this process may use only {available} cores: lower it."
            )
        if self.task_data is not None and self.data != "stsb":
            raise PotstillError("--task_data is the folder of --data stsb: give both, or a file of text as --data.")
        if self.country is not None and not self.energy:
            raise PotstillError("--country is for --energy, which is missing: give both.")
        if self.output:
            check_output_file(self.output, "--output", in_folder=True)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
