"""The verb `export`: a model folder in, the same model for another runtime out."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from potstill.errors import PotstillError
from potstill.export.check import Agreement, Runtime, batches, compare
from potstill.export.onnx import FLOAT, INT8, OnnxModel, quantise_onnx, write_onnx
from potstill.export.openvino import FILE, OpenvinoModel, quantise_openvino, write_openvino
from potstill.export.score import score_both
from potstill.export.source import Source
from potstill.files import check_output_dir, complete_folder

Format = Literal["onnx", "onnx-int8", "openvino", "openvino-int8"]

NEEDS = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino", "nncf"),
}
"""Extra → packages that it brings."""

TOLERANCES = {"float32": 1e-3, "int8": 0.25}
"""Largest difference of a logit, as a share of the range of all logits."""

SUMMARY = "potstill_export.json"


@dataclass(frozen=True)
class Exported:
    """What was written and how far it is from its source.

    Attributes:
        folder: as given.
        file: the model in it.
        format: as given.
        task: as `pipeline` calls it.
        bytes: of the model's file or files.
        source_bytes: of the source's weights.
        agreement: of export and source.
        scores: of a task, of source and of export; None if not asked for.
    """

    folder: Path
    file: Path
    format: str
    task: str
    bytes: int
    source_bytes: int
    agreement: Agreement
    scores: tuple[dict[str, float], dict[str, float]] | None

    def __str__(self) -> str:
        sizes = f"{self.bytes / 1e6:,.1f} MB (source {self.source_bytes / 1e6:,.1f} MB)"
        lines = [f"{self.format}, {self.task}: {sizes}; {self.agreement}"]
        if self.scores is not None:
            before, after = self.scores
            names = [name for name in before if name != "score"]
            lines.append(", ".join(f"{name} {before[name]:.2f} → {after[name]:.2f}" for name in names))
        return "\n".join([*lines, f"wrote {self.file}"])


def export(
    model: str,
    format: Format,
    output_dir: str,
    tolerance: float | None = None,
    task: str | None = None,
    check_data: str | None = None,
    max_check_samples: int | None = None,
    overwrite_output_dir: bool = False,
) -> Exported:
    """Write a model for another runtime, load it there, and make sure that it says the same.

    Models for fill-mask, text classification, token classification and question answering can be exported.

    Args:
        model: Folder or hub name of the model.
        format: onnx or openvino, in float32; onnx-int8 or openvino-int8, with int8 weights.
        output_dir: Folder to write to; the tokenizer and config go there too.
        tolerance: Largest difference of a logit from the source's, as a share of their range, above which the export
            fails and leaves nothing behind; 0.001 for float32 and 0.25 for int8 if not given.
        task: Task that the model is fine-tuned on, such as sst2: its score before and after is measured.
        check_data: Folder of that task's data, as for finetune.
        max_check_samples: Rows to score, from the beginning; all of the development set if not given.
        overwrite_output_dir: Write into --output_dir although it has something in it.

    Returns:
        What was written and how well it agrees with its source.

    Raises:
        PotstillError: bad input, a package is missing, the model cannot be translated, or it does not say the same.
    """
    kind, _, precision = format.partition("-")
    if kind not in NEEDS:
        raise PotstillError(f"There is no format {format!r}; the formats are onnx, onnx-int8, openvino, openvino-int8.")
    missing = [name for name in NEEDS[kind] if importlib.util.find_spec(name) is None]
    if missing:
        raise PotstillError(f"--format {format} needs {', '.join(missing)}: pip install 'potstill[{kind}]'.")
    if (task is None) != (check_data is None):
        raise PotstillError("--task and --check_data go together: the task's name and the folder of its data.")
    folder = check_output_dir(output_dir, overwrite_output_dir)
    source = Source.open(model)
    if tolerance is None:
        tolerance = TOLERANCES[precision or "float32"]
    if tolerance <= 0:
        raise PotstillError(f"--tolerance is {tolerance}: it must be above 0.")
    with complete_folder(folder) as partial:
        file = _write(source, format, partial)
        exported = open_exported(partial)
        agreement = compare(source, exported)
        if not agreement.relative <= tolerance:  # one that is no number is over it too
            raise PotstillError(
                f"The export does not say what {model!r} says: {agreement}, over the tolerance of {tolerance:.2%}; "
                "nothing was written. Raise --tolerance only if the task's score bears it."
            )
        scores = None
        if task is not None and check_data is not None:
            scores = score_both(source, exported, task, check_data, max_check_samples)
        source.model.config.save_pretrained(partial)
        source.tokenizer.save_pretrained(partial)
        weights = [path for path in partial.rglob("*") if path.suffix in (".onnx", ".bin", ".xml")]
        result = Exported(
            folder=folder,
            file=folder / file.relative_to(partial),
            format=format,
            task=source.head.task,
            bytes=sum(path.stat().st_size for path in weights),
            source_bytes=sum(path.stat().st_size for path in source.folder.glob("*.safetensors")),
            agreement=agreement,
            scores=scores,
        )
        summary = {
            "format": format,
            "task": result.task,
            "file": str(file.relative_to(partial)),
            "source": model,
            "inputs": source.inputs,
            "max_length": source.max_length,
            "agreement": asdict(agreement),
            "scores": scores,
            "versions": {name: version(name) for name in ("potstill", "torch", "transformers", *NEEDS[kind])},
        }
        (partial / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return result


def open_exported(folder: Path, threads: int | None = None) -> Runtime:
    """Load what an export folder holds, in its own runtime.

    Args:
        folder: as `export` wrote it.
        threads: of one request; the runtime's choice if None.

    Raises:
        PotstillError: the folder holds no export, or a damaged one.
    """
    for name in (FLOAT, INT8):
        if (folder / name).is_file():
            return OnnxModel(folder / name, threads)
    if (folder / FILE).is_file():
        return OpenvinoModel(folder / FILE, threads)
    raise PotstillError(f"{folder} holds no exported model: there is no {FLOAT}, {INT8} or {FILE} in it.")


def _write(source: Source, format: str, folder: Path) -> Path:
    """Write the model's file in a folder, and return it."""
    scratch = folder / ".scratch"
    scratch.mkdir()
    try:
        target = folder / {"onnx": FLOAT, "onnx-int8": INT8}.get(format, FILE)
        target.parent.mkdir(exist_ok=True)
        in_float = target if format == "onnx" else scratch / "model.onnx"
        write_onnx(source, in_float)
        if format == "onnx-int8":
            quantise_onnx(in_float, target)
        elif format == "openvino":
            write_openvino(in_float, target)
        elif format == "openvino-int8":
            quantise_openvino(in_float, target, batches(source, seed=1))
        return target
    finally:
        shutil.rmtree(scratch)
