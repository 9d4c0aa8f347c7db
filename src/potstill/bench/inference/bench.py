"""The verb `bench inference`: compares models on this machine's processor, in all their forms."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from statistics import median

import torch

from potstill.arguments import named_models
from potstill.bench.inference.counting import Counted, count
from potstill.bench.inference.elmo import WORD_LENGTH, ElmoShaped
from potstill.bench.inference.energy import check_energy
from potstill.bench.inference.inference_arguments import BenchInferenceArguments
from potstill.bench.inference.limits import Limits, bound, measure_limits
from potstill.bench.inference.machine import Machine
from potstill.bench.inference.measure import Measured, measure
from potstill.bench.inference.models import Form, Model, elmo_form, forms_of, read_models
from potstill.bench.inference.processes import processes
from potstill.bench.inference.report import InferenceBench
from potstill.bench.inference.requests import read_requests
from potstill.bench.inference.result import Latency, Lengths, Row
from potstill.bench.inference.turns import Ratio, log
from potstill.errors import PotstillError, first_line
from potstill.json_files import check_finite
from potstill.versions import versions


def bench_inference(args: BenchInferenceArguments) -> InferenceBench:
    """Compare models on this machine: size, memory, FLOPs, latency, throughput, and the least possible time.

    PyTorch runs folders of transformers models, eager and compiled. Folders that `potstill export` wrote run in their
    own runtimes. Each form has its own process. The forms take turns.

    Args:
        args: models, requests, and options of the measurement.

    Returns:
        The measurements; `str` of them is a report.

    Raises:
        PotstillError: bad input, or a model cannot be run.
    """
    if args.energy:
        check_energy(args.country)
    models = read_models(named_models(args.models), args.data)
    forms = [form for model in models for form in forms_of(model, args.compiled)]
    forms += [elmo_form()] if args.elmo else []
    requests = None if args.data is None else read_requests(args.data, args.task_data, args.max_requests)
    for model in models:
        _counted(model, [2])  # if counting fails, it should fail before anything is measured
    began = datetime.now(UTC).isoformat(timespec="seconds")
    log(f"measuring the machine, loading {', '.join(map(str, forms))}")
    limits = measure_limits(args.threads)
    with processes(forms, args.threads) as workers:
        measured = measure(args, workers, requests)
    limits = limits.best(measure_limits(args.threads))
    result = InferenceBench(
        machine=Machine.here(),
        versions=_versions(models),
        data=measured.requests.title,
        requests=len(measured.requests),
        max_length=args.max_length,
        threads=args.threads,
        warmup=args.warmup,
        passes=args.passes,
        turns=len(measured.latency[0]),
        date=began,
        limits=limits,
        disturbance=measured.disturbance,
        energy=measured.energy_how,
        rows=_rows(models, forms, measured, limits, args.passes),
    )
    check_finite(asdict(result), "The measurement is no result")
    if args.output:
        result.save(args.output)
    return result


def _rows(models: Sequence[Model], forms: Sequence[Form], measured: Measured, limits: Limits, passes: int) -> list[Row]:
    """Return a row of the report for each form."""
    described = {model.name: model for model in models}
    counts: dict[str, Counted] = {}
    rows = []
    first = [sum(turn) for turn in measured.latency[0]]
    for number, form in enumerate(forms):
        model, lengths = described.get(form.name), measured.lengths[number]
        counted = counts[form.name] = counts.get(form.name) or _counted(model, lengths)
        by_turn = [sum(turn) for turn in measured.latency[number]]
        latency = Latency.of([seconds for turn in measured.latency[number] for seconds in turn], passes)
        tokenised = measured.tokenisation[number]
        peak, before = measured.memory[number]
        rows.append(
            Row(
                model=form.name,
                form=form.title,
                path=form.path,
                task=form.task,
                new_head=form.num_labels is not None,
                parameters=counted.parameters,
                encoder_parameters=counted.encoder_parameters,
                bytes_on_disk=model.bytes_on_disk() if model else None,
                peak_memory_bytes=peak,
                model_memory_bytes=peak - before,
                flops=sum(counted.flops[length] for length in lengths) / len(lengths),
                flops_by_length=counted.flops,
                lengths=Lengths.of(lengths),
                latency=latency,
                ratio=Ratio.of(first, by_turn) if number else None,
                throughput=measured.throughput[number],
                tokenisation=1000 * median(tokenised) if tokenised else None,
                bound=bound(counted, form.weight_bits, lengths, latency.mean / 1000, limits),
                energy=measured.energy[number],
            )
        )
    return rows


def _counted(model: Model | None, lengths: Sequence[int]) -> Counted:
    """Count the parameters and FLOPs of a model, or of ELMo's shape if None, on the meta device if possible.

    Raises:
        PotstillError: they cannot be counted.
    """
    if model is None:
        with torch.device("meta"):
            elmo = ElmoShaped().eval()
        return count(
            elmo, elmo.encoder, lengths, lambda n: (torch.zeros(1, n, WORD_LENGTH, dtype=torch.long, device="meta"),)
        )
    try:
        return _counted_on("meta", model, lengths)
    except Exception:  # a model may read values, which tensors on the meta device do not have
        try:
            return _counted_on("cpu", model, lengths)
        except Exception as error:  # of many types: a model may need more inputs than token ids
            raise PotstillError(
                f"The FLOPs of the model {model.name!r} cannot be counted ({first_line(error)}): leave this model out."
            ) from error


def _counted_on(device: str, model: Model, lengths: Sequence[int]) -> Counted:
    module, inner = model.as_run(device)
    names = ("input_ids",) if model.exported is None else model.exported.inputs

    def inputs(length: int) -> tuple[torch.Tensor, ...]:
        fill = {"attention_mask": torch.ones}
        return tuple(fill.get(name, torch.zeros)(1, length, dtype=torch.long, device=device) for name in names)

    return count(module, inner.base_model, lengths, inputs)


def _versions(models: Sequence[Model]) -> dict[str, str]:
    """Return the versions of Python, potstill, and the libraries that run the models."""
    found = {"Python": platform.python_version()}
    found |= versions("potstill", "torch", "transformers", "tokenizers")
    for model in models:
        found |= model.exported.versions if model.exported else {}
    return found
