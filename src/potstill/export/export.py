"""The verb `export`: writes a model for another runtime."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from potstill.errors import PotstillError
from potstill.export.check import TEXTS, Agreement, check_source, compare, real_batches
from potstill.export.disk import cannot_write, disk_errors_reported
from potstill.export.embeddings import EmbeddingAgreement
from potstill.export.format import SUMMARY, Quantization, Target, Tolerance
from potstill.export.formats import FORMATS, FormatName, choose_target
from potstill.export.score import Scores, read_check_data, score_both
from potstill.export.source import Source
from potstill.export.texts import embedded_texts, read_texts
from potstill.files import claimed_folder, complete_folder
from potstill.student.pruned import plain_config
from potstill.tasks.rows import OnBadRows
from potstill.versions import versions

OPTIONS_READ = ("potstill.export.formats",)
"""Modules that define the options, in addition to this one."""

CALIBRATION_TEXTS = 192
"""Number of texts on which the ranges of activations are measured."""


@dataclass(frozen=True)
class Exported:
    """A written export, and how far it is from its source.

    Attributes:
        folder: as given.
        file: the model in the folder.
        format: as given.
        task: the name that `pipeline` has for it.
        bytes: size of the model's file or files.
        source_bytes: size of the source's weights.
        agreement: of export and source; None if this machine cannot run the export.
        scores: of source and export on a task; None if not asked for.
    """

    folder: Path
    file: Path
    format: str
    task: str
    bytes: int
    source_bytes: int
    agreement: Agreement | EmbeddingAgreement | None
    scores: Scores | None

    def __str__(self) -> str:
        sizes = f"{self.bytes / 1e6:,.1f} MB (source {self.source_bytes / 1e6:,.1f} MB)"
        lines = [f"{self.format}, {self.task}: {sizes}; {self.agreement or FORMATS[self.format].not_compared}"]
        if self.scores is not None:
            lines.append(str(self.scores))
        return "\n".join([*lines, f"wrote {self.file}"])


def export(
    model: str,
    format: FormatName,
    output_dir: str,
    quantization: Quantization | None = None,
    weight_bits: int | None = None,
    calibration_data: str | None = None,
    task: str | None = None,
    check_data: str | None = None,
    max_check_samples: int | None = None,
    tolerance: float | None = None,
    min_agreement: float | None = None,
    score_tolerance: float | None = None,
    on_bad_rows: OnBadRows = "stop",
    overwrite_output_dir: bool = False,
    break_lock: bool = False,
) -> Exported:
    """Write a model for another runtime, load it there, and check that it gives the same answers.

    Models for fill-mask, text classification, token classification and question answering can be exported, and
    sentence encoders: those of sentence-transformers, and models without a head.

    Args:
        model: Folder or hub name of the model.
        format: onnx, openvino or executorch, in float32; coreml, in float16; onnx-int8 or openvino-int8.
        output_dir: Folder to write to. The tokenizer and config go there too.
        quantization: How int8 formats find the range of activations. dynamic measures it for each input. static
            measures it once, on calibration_data. Dynamic for onnx-int8 and static for openvino-int8 if not given.
        weight_bits: 8, or 4 for a smaller file. With onnx-int8, 4 is for the embeddings and feed-forward layers, which
            become int8 when the model is loaded. With openvino-int8 it is for all weights.
        calibration_data: Text on which ranges are measured, as for prepare. The package's own text if not given.
        task: Sentence task that the model is fine-tuned on, such as sst2, or a .yaml file that declares a task on your
            own files. Source and export are scored on it.
        check_data: Labelled data on which source and export are scored. With a task, the folder of its data, as for
            finetune; for your own task a file, the one to score if not given. Without a task, for classification a
            folder with a dev.jsonl (text, text_pair if the model reads pairs, label), for question answering a file
            like SQuAD's, for token classification a file with tokens and tags, for fill-mask a text. For a sentence
            encoder a file or folder of pairs with scores, as for --sts_data of evaluate.
        max_check_samples: Rows to score, spread over the data; all if not given. For text it counts the first lines,
            1,000 if not given.
        tolerance: Largest difference of a logit from the source's, as a share of their range. An export above it fails
            and leaves no files. 0.001 in float32, 0.02 in float16, 0.25 in int8 and 0.4 with 4 bits if not given. For
            a sentence encoder it is the length of the difference of two embeddings, as a share of their length.
        min_agreement: Least share of answers that must be the same; 0.99, 0.95, 0.8 and 0.7 if not given. For a
            sentence encoder the answer is the nearest neighbour of a text.
        score_tolerance: Largest share of the source's score that may be lost; 0.001, 0.005, 0.01 and 0.02 if not
            given.
        on_bad_rows: What to do with rows of check_data that cannot be used, such as broken lines: stop, or skip and
            count them.
        overwrite_output_dir: Replace the export that is in the output folder.
        break_lock: Take over the lock of the output folder that a process of another machine left, as after a failure
            of that machine.

    Returns:
        The written export, and how well it agrees with its source.

    Raises:
        PotstillError: bad input, a package is missing, the model cannot be translated, the export does not agree with
            the source, or the output folder cannot be written.
    """
    target = choose_target(format, quantization, weight_bits)
    allowed = _allowed(target.tolerance, tolerance, min_agreement, score_tolerance)
    if calibration_data is not None and target.quantization != "static":
        raise PotstillError("--calibration_data is for --quantization static: give both, or leave it out.")
    if max_check_samples is not None and max_check_samples < 1:
        raise PotstillError(f"--max_check_samples is {max_check_samples}: it must be at least 1.")
    if task is None and check_data is None:
        for name, value in (("max_check_samples", max_check_samples), ("score_tolerance", score_tolerance)):
            if value is not None:
                raise PotstillError(f"--{name} is for --check_data, which is missing: give both, or leave it out.")
    chosen = target.format
    if chosen.only_on is not None and not chosen.runs_here and (task or check_data):
        raise PotstillError(
            f"--check_data needs {chosen.only_on[1]} for --format {format}: {chosen.runtime} runs nowhere else, so "
            "leave it out here."
        )
    with claimed_folder(output_dir, overwrite_output_dir, SUMMARY, "an export", break_lock) as folder:
        source = Source.open(model)
        if source.encoder is not None and not chosen.encoders:
            able = ", ".join(name for name, one in FORMATS.items() if one.encoders)
            raise PotstillError(
                f"The model {model!r} is a sentence encoder, which --format {format} is not for: use one of {able}."
            )
        check_source(source)
        data = None
        if task is not None or check_data is not None:  # before the conversion, which may take minutes
            data = read_check_data(source, task, check_data, max_check_samples, on_bad_rows)
        texts: list[str] = []
        if target.quantization == "static":
            if calibration_data is not None:
                texts = read_texts(calibration_data, CALIBRATION_TEXTS)
            else:  # not the first texts: the comparison uses those
                texts = embedded_texts(TEXTS + CALIBRATION_TEXTS)[TEXTS:]
        with _writable(folder) as partial:
            agreement = scores = None
            with disk_errors_reported(partial, folder):
                file = partial / chosen.file
                file.parent.mkdir(exist_ok=True)
                chosen.write(source, file, target, real_batches(source, texts) if texts else None)
                runs_here = chosen.runs_here
                exported = chosen.open(file, source.inputs, source.head.outputs, None) if runs_here else None
            if exported is not None:
                agreement = compare(source, exported)
                _judge(source, target, agreement, allowed, "")
                if data is not None:
                    scores = score_both(source, exported, data)
                    _judge(source, target, scores.agreement, allowed, " on --check_data")
                    if not scores.lost <= allowed.score:
                        raise PotstillError(
                            f"The export loses {scores.lost:.2%} of the score of {source.name!r} ({scores}), over the "
                            f"--score_tolerance of {allowed.score:.2%}; {_nothing_written(target)}."
                        )
            with disk_errors_reported(partial, folder):
                plain_config(source.model.config).save_pretrained(partial)  # the file has the shapes in it
                source.tokenizer.model_max_length = source.max_length
                source.tokenizer.save_pretrained(partial)
                settings = {partial / name for name in ("config.json", "tokenizer.json", "tokenizer_config.json")}
                weights = [path for path in partial.rglob("*") if path.is_file() and path not in settings]
                if source.encoder is not None:
                    source.encoder.save_modules(partial)
                result = Exported(
                    folder=folder,
                    file=folder / chosen.file,
                    format=format,
                    task=source.head.task,
                    bytes=sum(path.stat().st_size for path in weights),
                    source_bytes=sum(path.stat().st_size for path in source.folder.glob("*.safetensors")),
                    agreement=agreement,
                    scores=scores,
                )
                summary = _summary(source, target, result)
                (partial / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        return result


@contextmanager
def _writable(folder: Path) -> Iterator[Path]:
    """Do `complete_folder`, and raise a `PotstillError` if the folder itself cannot be written.

    An `OSError` of the body passes unchanged.
    """
    body_error: OSError | None = None
    try:
        with complete_folder(folder) as partial:
            try:
                yield partial
            except OSError as error:
                body_error = error
                raise
    except OSError as error:
        if error is body_error:
            raise
        raise cannot_write(folder, error) from error


def _allowed(default: Tolerance, largest: float | None, agreement: float | None, score: float | None) -> Tolerance:
    given = {"largest": largest, "agreement": agreement, "score": score}
    allowed = dataclasses.replace(default, **{name: value for name, value in given.items() if value is not None})
    if not allowed.largest > 0:
        raise PotstillError(f"--tolerance is {allowed.largest}: it must be above 0.")
    if not 0 <= allowed.agreement <= 1:
        raise PotstillError(f"--min_agreement is {allowed.agreement}: it is a share, from 0 to 1.")
    if not allowed.score >= 0:
        raise PotstillError(f"--score_tolerance is {allowed.score}: it must not be below 0.")
    return allowed


def _judge(
    source: Source, target: Target, agreement: Agreement | EmbeddingAgreement, allowed: Tolerance, where: str
) -> None:
    """Raise a `PotstillError` for an export that is too far from its source."""
    over = []
    if not agreement.relative <= allowed.largest:  # NaN is over it too
        over.append(f"over the --tolerance of {allowed.largest:.2%}")
    if not agreement.same >= allowed.agreement:
        over.append(f"under the --min_agreement of {allowed.agreement:.2%}")
    if over:
        raise PotstillError(
            f"The export does not agree with {source.name!r}{where}: {agreement}, {' and '.join(over)}; "
            f"{_nothing_written(target)}."
        )


def _nothing_written(target: Target) -> str:
    return "nothing was written" + (f" ({target.nearer} stays nearer to it)" if target.nearer else "")


def _summary(source: Source, target: Target, result: Exported) -> dict[str, Any]:
    """Return the description of an export that lies in its folder."""
    scores = result.scores
    return {
        "format": target.format.name,
        "task": result.task,
        "file": target.format.file,
        "quantization": target.quantization,
        "weight_bits": target.weight_bits,
        "source": source.name,
        "inputs": source.inputs,
        "outputs": source.head.outputs,
        "max_length": source.max_length,
        "agreement": asdict(result.agreement) if result.agreement else target.format.not_compared,
        "scores": scores and asdict(scores),
        "versions": versions("potstill", "torch", "transformers", *target.format.packages),
    }
