"""Table 3: parameters, bytes, and the time of a pass over STS-B's dev pairs on the CPU, one pair at a time.

    python -m reproduce.table3 --task_data glue/ --threads 2
    python -m reproduce.table3 --task_data glue/ --models teacher=DIR student=DIR int8=EXPORTED

`potstill bench inference` measures. Its full results go to `table3.json` in the work folder.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from potstill.bench.inference.bench import bench_inference
from potstill.bench.inference.inference_arguments import BenchInferenceArguments
from potstill.bench.inference.report import InferenceBench
from potstill.errors import PotstillError
from reproduce.common import existing, new_parser, place_of, run, write_result
from reproduce.table1 import models_of


def main(argv: list[str]) -> None:
    """Measure the models and write the figures of the table."""
    parser = new_parser(__doc__)
    parser.add_argument("--task_data", type=Path, help="folder of GLUE's data; default: from the hub")
    parser.add_argument("--models", nargs="+", metavar="NAME=FOLDER", help="models instead of teacher and student")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--pairs", type=int, help="number of pairs to use; default: all")
    parser.add_argument("--compiled", action=argparse.BooleanOptionalAction, default=True, help="compiled models too")
    parser.add_argument("--elmo", action=argparse.BooleanOptionalAction, default=True, help="a row of ELMo's shape")
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        raise PotstillError(f"There is no option {unknown[0]}.")
    place = place_of(options)
    models = {name: existing(folder, "students") for name, folder in models_of(options, place, ("student",)).items()}
    place.work.mkdir(parents=True, exist_ok=True)
    args = BenchInferenceArguments(
        models=[f"{name}={folder}" for name, folder in models.items()],
        data="stsb",
        task_data=str(options.task_data) if options.task_data else None,
        threads=options.threads,
        batch_size=[1],
        compiled=options.compiled,
        elmo=options.elmo,
        max_requests=options.pairs,
        output=str(place.work / "table3.json"),
    )
    write_result(place, "table3", figures(bench_inference(args)))


def figures(bench: InferenceBench) -> dict[str, Any]:
    """Return the part of a measurement that the table shows."""
    rows: dict[str, dict[str, Any]] = {}
    for row in bench.rows:
        model: dict[str, Any] = {
            "encoder_parameters": row.encoder_parameters,
            "parameters": row.parameters,
            "bytes": row.bytes_on_disk,
            "flops": row.flops,
            "forms": {},
        }
        rows.setdefault(row.model, model)["forms"][row.form] = {
            "milliseconds": row.latency.median,
            "quartiles": [row.latency.p25, row.latency.p75],
            "seconds_of_a_pass": row.latency.seconds_of_a_pass,
            "ratio": None if row.ratio is None else [row.ratio.value, row.ratio.low, row.ratio.high],
        }
    return {
        "pairs": bench.requests,
        "threads": bench.threads,
        "hardware": str(bench.machine),
        "disturbance": str(bench.disturbance),
        "rows": rows,
    }


if __name__ == "__main__":
    sys.exit(run(main))
