"""The options of `bench inference`: which models, on what requests, and how they are measured."""

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
        PotstillError: a value that cannot be, named by its field.
    """

    models: list[str] | None = option(
        None,
        "Models as NAME=FOLDER, the first being the one that others are compared with: folders or hub names of "
        "transformers models, and folders that `potstill export` wrote.",
        required=True,
    )
    data: str | None = option(
        None,
        "What the requests are: stsb, which is the development set of STS-B (Table 3 of the paper), or a file of text "
        "with one request a line, in which a tab separates the two texts of a pair; without it they are random tokens.",
    )
    task_data: str | None = option(None, "Folder of GLUE's data, for --data stsb; the hub's if not given.")
    threads: int = option(1, "Threads that one request may use.")
    batch_size: list[int] | None = option(
        None, "Requests at a time, for which throughput is measured (1, 8 and 32); latency is of one at a time."
    )
    compiled: bool = option(True, "Run models of PyTorch compiled too, beside eager.")
    elmo: bool = option(
        False, "Add a row of ELMo's shape (character CNN and two BiLSTM layers of its published sizes, random weights)."
    )
    energy: bool = option(False, "Add joules and grams of CO2 of a request, by codecarbon.")
    country: str | None = option(
        None, "Whose electricity it is, for --energy, as three letters (FRA, USA); the world's mean if not given."
    )
    max_requests: int | None = option(None, "Requests at most, evenly spread over the data; all if not given.")
    max_length: int | None = option(
        None, "Cut requests to so many tokens; without it, one that is longer than a model reads is an error."
    )
    passes: int = option(1, "Times that all requests are run for latency.")
    warmup: int = option(10, "Requests to run before anything is measured, in addition to the longest and shortest.")
    output: str | None = option(None, "File to write all measurements to, as JSON.")

    def __post_init__(self) -> None:
        """Check each value by itself."""
        if not self.models:
            raise PotstillError("--models is missing: name models as NAME=FOLDER, the first being the reference.")
        names = [name for name, _ in named_models(self.models)]
        for name in names:
            if names.count(name) > 1:
                raise PotstillError(f"--models has two models of the name {name!r}: give each its own.")
        if self.elmo and ELMO in names:
            raise PotstillError(f"--models has a model of the name {ELMO!r}, which is that of --elmo: choose another.")
        self.batch_size = sorted(set(self.batch_size or BATCH_SIZES))
        for name in ("threads", "passes", "max_requests", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PotstillError(f"--{name} is {value}: it must be above 0.")
        if self.batch_size[0] < 1:
            raise PotstillError(f"--batch_size is {self.batch_size[0]}: it must be above 0.")
        if self.warmup < 0:
            raise PotstillError(f"--warmup is {self.warmup}: it must be 0 or more.")
        if self.threads > (there := cores()):
            raise PotstillError(f"--threads is {self.threads}, but this process may use {there} cores.")
        if self.task_data is not None and self.data != "stsb":
            raise PotstillError("--task_data is the folder of --data stsb: give both, or a file of text as --data.")
        if self.country is not None and not self.energy:
            raise PotstillError("--country is whose electricity --energy counts: give both.")
        if self.output:
            check_output_file(self.output, "--output", in_folder=True)


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
