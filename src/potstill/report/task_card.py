"""The card of a model that was fine-tuned on a task. The run that writes the card measured every figure in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from potstill.bilstm.config import BiLSTMConfig
from potstill.bilstm.options import NAME
from potstill.report.held_out import no_figures
from potstill.report.hub_metadata import emissions_field, licence_of, model_index
from potstill.report.label_card import label_section
from potstill.report.markdown import figure, front_matter, name_of, names_of, plain, table
from potstill.report.model_card import recipe_table
from potstill.report.stages_card import how_in_stages, stages_section
from potstill.student.pruned import IMPORT
from potstill.tasks.own import is_task_file
from potstill.tasks.task import Task
from potstill.wording import counted


def task_card(
    recipe: dict[str, Any],
    results: dict[str, Any],
    task: Task,
    frozen: bool,
    pruned: bool = False,
    bilstm: BiLSTMConfig | None = None,
) -> str:
    """Return a model card in the hub's format: YAML header, then Markdown.

    Args:
        recipe: options of the run, as `recipe_values` returns them.
        results: measured figures, as in `RunResult`.
        task: the task of the model.
        frozen: whether the model is a `FrozenEncoder`, which needs potstill for loading.
        pruned: whether it is of a class of potstill because its layers differ in heads or neurons.
        bilstm: the config of a BiLSTM, which needs potstill for loading; None for any other model.
    """
    new, changed = "shape" in recipe, results.get("changed_on_resume")  # `model` is then a name for its title alone
    base = None if new else recipe["bilstm"]["tokenizer"] if recipe["model"] == NAME else recipe["model"]
    sections = [
        front_matter(card_header(task) | card_results(recipe, results, task, base), base),
        f"# {name_of(recipe['model'])} on {plain(task.name if is_task_file(recipe['task']) else recipe['task'])}",
        how_in_stages(recipe, results) if results.get("stages") else _how(recipe, results, frozen, bilstm),
        usage(task, results["metrics"], frozen, IMPORT if pruned else None if bilstm is None else _BILSTM_IMPORT),
        _scores(results),
        *stages_section(results),
        *label_section(results),
        recipe_table({name: recipe[name] for name in recipe if not (new and name == "model")}, changed),
        _cost(results),
    ]
    return "\n\n".join(sections) + "\n"


def card_header(task: Task) -> dict[str, Any]:
    """Return the fields of a card's YAML header."""
    if task.ranks:
        header = {"library_name": "sentence-transformers", "pipeline_tag": "text-ranking"}
        return header | {"tags": ["potstill", "cross-encoder", "reranker"]}
    return {"library_name": "transformers", "pipeline_tag": task.pipeline, "tags": ["potstill"]}


def card_results(recipe: dict[str, Any], results: dict[str, Any], task: Task, base: str | None) -> dict[str, Any]:
    """Return the fields of the header on the licence, on what was measured, and on emissions.

    Args:
        recipe: options of the run.
        results: measured figures, as in `RunResult`.
        task: the task of the model.
        base: the model that this one was made from; None for a new one.
    """
    name = f"{Path(recipe['model']).name or recipe['model']}-{task.name}"
    header = card_header(task)
    return {
        **licence_of(base),
        **model_index(name, header["pipeline_tag"], task.name, results["metrics"], task.title),
        **emissions_field(results.get("emissions"), results["hardware"], "fine-tuning"),
    }


_BILSTM_IMPORT = "import potstill.bilstm.model  # how a BiLSTM is loaded"


def usage(task: Task, metrics: dict[str, Any], frozen: bool = False, first: str | None = None) -> str:
    """Return the section with the code that runs the model; see `task_card` for the arguments.

    Args:
        task: see `task_card`.
        metrics: of the run.
        frozen: see `task_card`.
        first: the line that imports the class of the model; None if transformers has that class.
    """
    text = _RERANKING if task.ranks else _usage(task.pipeline, frozen, metrics)
    return text.replace("```python\n", f"```python\n{first}\n", 1) if first is not None else text


def _how(recipe: dict[str, Any], results: dict[str, Any], frozen: bool, bilstm: BiLSTMConfig | None) -> str:
    what = (
        "A BiLSTM with attention, trained with potstill on the frozen encoder" if frozen else "Fine-tuned with potstill"
    )
    if recipe["model"] == NAME and bilstm is not None:
        begun = plain(bilstm.embeddings_from or "random")
        what = (
            f"A BiLSTM, trained with potstill: {bilstm.hidden_size} units in each direction, two channels of "
            f"{bilstm.embedding_size}-wide embeddings ({begun} at first) of which one stays as it was, and a layer of "
            f"{bilstm.intermediate_size} (Tang et al. 2019)"
        )
    if results.get("layers") is not None:
        what += f", with only the layers {', '.join(map(str, results['layers']))} of the model"
    if "losses" in recipe:
        losses = ", ".join(f"{name} (weight {options['weight']:g})" for name, options in recipe["losses"].items())
        taught = f", from the scores of {names_of(recipe['teacher'])}" if "teacher" in recipe else ""
        what += f", by the losses {losses}{taught}"
    elif "teacher" in recipe:
        labels, texts = f"the labels (weight {recipe['alpha_task']}) and ", results.get("unlabelled")
        if results["rows"].get("train") == 0:
            labels = ""
        what += (
            f", by {labels}the soft targets of {names_of(recipe['teacher'])} "
            f"(weight {recipe['alpha_ce']}, {_soft_loss(recipe)})"
        )
        if recipe.get("teacher_heads") == "separate":
            what += ", each by a head of its own; the head of this model is the mean of all heads"
        if texts:
            what += f", of {counted(texts['texts'], 'unlabelled text')}" + (" too" if labels else "")
        if texts and texts.get("synthetic"):
            what += f" ({texts['synthetic']:,} of them synthetic texts, made from labelled rows)"
        if recipe["alpha_cos"]:
            what += f", and by the cosine to its hidden states (weight {recipe['alpha_cos']})"
    if quantized := results.get("quantized"):
        bits = " --weight_bits 4" if quantized["quantization"] == "int4" else ""
        what += (
            f". It was trained for `potstill export --format onnx-int8{bits}`: as that computes, simulated, the score "
            f"is {quantized['score']:.2f}"
        )
    return f"{what}."


def _soft_loss(recipe: dict[str, Any]) -> str:
    if recipe.get("soft_loss") == "mse":
        return "squared difference of the logits"
    return f"temperature {recipe['temperature']}"


def _cost(results: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    stages = results.get("stages") or [{"steps": results["steps"], "seconds": results["seconds"]["training"]}]
    steps, seconds = (sum(stage[name] for stage in stages) for name in ("steps", "seconds"))
    hardware = plain(f"{results['hardware']}; {versions}.")
    return f"## Cost\n\n{counted(steps, 'step')}, {seconds:,.0f} seconds on {hardware}"


def _usage(pipeline: str, frozen: bool, metrics: dict[str, Any]) -> str:
    spans = pipeline == "question-answering"
    if frozen:
        auto = "AutoModelForQuestionAnswering" if spans else "AutoModelForSequenceClassification"
        return (
            "```python\nimport potstill.finetuning.frozen  # how a frozen encoder under a head is loaded\n"
            f'from transformers import {auto}\n\nmodel = {auto}.from_pretrained("path/of/this/folder")\n```'
        )
    if spans:
        return _ANSWERING
    call, more = 'model("…")', ""
    if "threshold" in metrics:
        call = 'model("…", top_k=None)'
        more = (
            f"\n\nEach label has a probability of its own. A label is meant from {metrics['threshold']:g} on: this "
            "threshold was chosen on the rows that were scored, and is `threshold` in the config."
        )
    if pipeline == "token-classification":
        call = 'model("…", aggregation_strategy="first")'
    return (
        f'```python\nfrom transformers import pipeline\n\nmodel = pipeline("{pipeline}", model="path/of/this/folder")\n'
        f"{call}\n```{more}"
    )


_RERANKING = """```python
from sentence_transformers import CrossEncoder

model = CrossEncoder("path/of/this/folder")
query, passages = "Where is Paris?", ["Rome is in Italy.", "Paris is in France."]
model.predict([(query, passage) for passage in passages])  # one score for each passage
model.rank(query, passages)  # the best passage first
```

Without sentence-transformers, the score is the only logit of `AutoModelForSequenceClassification` on a query and a
passage."""

# transformers 5 no longer has a pipeline for question answering.
_ANSWERING = """```python
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/of/this/folder")
model = AutoModelForQuestionAnswering.from_pretrained("path/of/this/folder")
question, context = "Where is Paris?", "Paris is in France."
inputs = tokenizer(question, context, return_tensors="pt", return_offsets_mapping=True)
offsets = inputs.pop("offset_mapping")[0]
outside = torch.tensor([sequence != 1 for sequence in inputs.sequence_ids()])
outputs = model(**inputs)
start = outputs.start_logits[0].masked_fill(outside, -torch.inf).argmax()
end = start + outputs.end_logits[0].masked_fill(outside, -torch.inf)[start:].argmax()
answer = context[offsets[start, 0] : offsets[end, 1]]
```"""


def _scores(results: dict[str, Any]) -> str:
    without_teacher, without_texts = results["without_teacher"], results.get("without_unlabelled")
    head, columns = ["figure", "value" if without_teacher is None else "with the teacher"], [results]
    if without_texts is not None:
        head[1:] = ["with the teacher and unlabelled texts", "same run without these texts"]
        columns.append(without_texts)
    if without_teacher is not None:
        head.append("same run without it" if without_texts is None else "same run without the teacher")
        columns.append(without_teacher)
    rows = [
        [plain(name), *(figure(_value(column, path), ".2f") for column in columns)]
        for name, path in _names(results["metrics"])
    ]
    counts = plain(", ".join(f"{count:,} of {split}" for split, count in results["rows"].items()))
    return "\n\n".join(
        [
            "## Scores",
            f"One run, seed {results['seed']}; rows: {counts}.",
            table(head, rows),
            *no_figures(dict(zip(head[1:], (column["metrics"] for column in columns), strict=True))),
        ]
    )


def _names(metrics: dict[str, Any]) -> list[tuple[str, tuple[str, ...]]]:
    found: list[tuple[str, tuple[str, ...]]] = []
    for name, value in metrics.items():
        if isinstance(value, dict):
            found += [(f"{name} {metric}", (name, metric)) for metric in value]
        else:
            found.append((name, (name,)))
    return found


def _value(results: dict[str, Any], path: tuple[str, ...]) -> float:
    value: Any = results["metrics"]
    for name in path:
        value = value[name]
    return float(value)
