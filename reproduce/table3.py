"""Table 3: parameters, bytes, and the time of a pass over STS-B's dev pairs on the CPU, one pair at a time.

    python -m reproduce.table3 --task_data glue/ --threads 2

What is timed is the model that scores STS-B, from token ids to a score, in float32; tokenising is not in it. The models
take turns pair by pair, each time another one first, so that whatever else the machine does slows all of them.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from potstill.corpus import load_tokenizer
from potstill.errors import PotstillError
from potstill.student.loading import quiet_loading
from potstill.tasks.glue import GLUE
from potstill.tasks.load import load_split
from potstill.training.hardware import hardware
from reproduce.common import parser, place_of, run, write_result
from reproduce.table1 import models_of

Inputs = dict[str, torch.Tensor]
Runner = Callable[[Inputs], Any]


def eager(model: Any) -> Runner:
    """Return what runs a model as PyTorch does by itself."""
    return lambda inputs: model(**inputs).logits


FORMS: dict[str, Callable[[Any], Runner]] = {"PyTorch, eager": eager}
"""Form in which a model is run → what makes it of the model. An exported form is a function and a line here."""


def main(argv: list[str]) -> None:
    """Count, weigh and time the models."""
    made = parser(__doc__)
    made.add_argument("--task_data", type=Path, help="folder of GLUE's data; the hub's if not given")
    made.add_argument("--models", nargs="+", metavar="NAME=FOLDER", help="others than teacher and student")
    made.add_argument("--threads", type=int, default=torch.get_num_threads())
    made.add_argument("--pairs", type=int, help="only so many of the pairs")
    options, unknown = made.parse_known_args(argv)
    if unknown:
        raise PotstillError(f"There is no option {unknown[0]}.")
    place = place_of(options)
    torch.set_num_threads(options.threads)
    data = load_split(GLUE["stsb"], "dev", str(options.task_data) if options.task_data else None)
    pairs = list(zip(data["text"], data["pair"], strict=True))[: options.pairs]

    rows: dict[str, dict[str, Any]] = {}
    runners: dict[tuple[str, str], Runner] = {}
    inputs: dict[str, list[Inputs]] = {}
    for name, folder in models_of(options, place, ("student",)).items():
        model = _task_model(folder, name)
        rows[name] = _size(model) | {"forms": {}}
        tokenizer = load_tokenizer(str(folder), token_types=model.config.model_type == "bert")
        reading = {"truncation": True, "max_length": min(128, model.config.max_position_embeddings)}
        inputs[name] = [dict(tokenizer(*pair, **reading, return_tensors="pt")) for pair in pairs]
        runners |= {(name, form): make(model) for form, make in FORMS.items()}
    for (name, form), seconds in timed(runners, inputs).items():
        quartiles = statistics.quantiles(seconds, n=4)
        rows[name]["forms"][form] = {
            "milliseconds": 1000 * statistics.median(seconds),
            "quartiles": [1000 * quartiles[0], 1000 * quartiles[2]],
            "seconds_of_a_pass": sum(seconds),
        }
    figures = {"pairs": len(pairs), "threads": options.threads, "hardware": hardware(torch.device("cpu"))}
    write_result(place, "table3", {**figures, "rows": rows})


@torch.inference_mode()
def timed(
    runners: dict[tuple[str, str], Runner], inputs: dict[str, list[Inputs]]
) -> dict[tuple[str, str], list[float]]:
    """Return the seconds that each runner took for each pair.

    Args:
        runners: (model, form) → what is timed.
        inputs: model → pairs, as many for all.
    """
    order = list(runners)
    for key in order:  # the first runs of a process make what later ones find ready
        for pair in inputs[key[0]][:5]:
            runners[key](pair)
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in order}
    for number in range(len(next(iter(inputs.values())))):
        first = number % len(order)
        for key in order[first:] + order[:first]:
            pair = inputs[key[0]][number]
            started = time.perf_counter()
            runners[key](pair)
            seconds[key].append(time.perf_counter() - started)
    return seconds


def _task_model(folder: Path, name: str) -> Any:
    """Load an encoder with a new head: what it would score does not matter to how long it takes."""
    if not folder.is_dir():
        raise PotstillError(f"There is no folder {folder} for the model {name}: run the scripts before this one.")
    with quiet_loading():
        return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32).eval()


def _size(model: Any) -> dict[str, int]:
    """Return parameters of the encoder (with BERT's pooler, as papers count), of all, and the bytes of its file."""
    with TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        written = sum(file.stat().st_size for file in Path(scratch).glob("*.safetensors"))
    return {
        "encoder_parameters": sum(parameter.numel() for parameter in model.base_model.parameters()),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bytes": written,
    }


if __name__ == "__main__":
    sys.exit(run(main))
