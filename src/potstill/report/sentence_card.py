"""The model card of a sentence encoder. It states what the encoder is; a run adds what it measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from potstill.report.hub_metadata import emissions_field, licence_of, model_index
from potstill.report.markdown import code, front_matter, name_of, plain, table
from potstill.report.model_card import recipe_table
from potstill.wording import counted

if TYPE_CHECKING:
    from potstill.sentences.encoder import SentenceEncoder


def sentence_card(
    encoder: SentenceEncoder,
    recipe: dict[str, Any] | None = None,
    sections: Sequence[str] = (),
    results: dict[str, Any] | None = None,
) -> str:
    """Return a model card in the hub's format: YAML header, then Markdown.

    Args:
        encoder: what the card is about.
        recipe: options of the run, as `recipe_values` returns them, `teacher` among them; None without a run.
        sections: Markdown of what the run measured, each with its heading: scores, corpus, cost.
        results: measured figures, as `run_results` returns them, for the header; None without a run.
    """
    teacher, measured = (recipe or {}).get("teacher"), results or {}
    final = measured.get("held_out", {}).get("final") or {}
    name = f"{Path(teacher).name or teacher}-student" if teacher else "sentence-encoder"
    header = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": [
            *("sentence-transformers", "sentence-similarity", "feature-extraction", "potstill"),
            *(["distillation"] if teacher else []),
        ],
        **licence_of(teacher),
        **model_index(name, "sentence-similarity", "held-out", final, "held-out texts of the corpus"),
        **emissions_field(measured.get("emissions"), measured.get("cost", {}).get("hardware", ""), "pre-training"),
    }
    parts = [
        front_matter(header, teacher),
        f"# A student of {name_of(teacher)}" if teacher else "# A sentence encoder",
        _summary(encoder, bool(teacher)),
        _usage(encoder),
        _prompts(encoder),
        *sections,
        recipe_table(recipe, measured.get("changed_on_resume")) if recipe else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _summary(encoder: SentenceEncoder, distilled: bool) -> str:
    config = encoder.model.config
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    steps = [f"pooling by {', '.join(encoder.pooling.modes)}"]
    if len(encoder.dense):
        steps.append(f"{len(encoder.dense)} Dense")
    if encoder.normalize:
        steps.append("normalisation to length 1")
    return (
        f"A {code(config.model_type)} of {counted(config.num_hidden_layers, 'layer')}, {config.hidden_size} wide, "
        f"{parameters:,} parameters{', distilled with potstill' if distilled else ''}. It turns a text of up to "
        f"{encoder.max_length:,} tokens into a vector of {encoder.width:,} numbers: {plain(', then '.join(steps))}."
    )


def _usage(encoder: SentenceEncoder) -> str:
    return "\n".join(
        [
            "```python",
            "from sentence_transformers import SentenceTransformer",
            "",
            'model = SentenceTransformer("path/of/this/folder")',
            'embeddings = model.encode(["A man is eating.", "Somebody has lunch.", "The sky is blue."])',
            "model.similarity(embeddings, embeddings)",
            "```",
        ]
    )


def _prompts(encoder: SentenceEncoder) -> str:
    prompts = {name: text for name, text in encoder.prompts.items() if text}
    if not prompts:
        return ""
    default = encoder.default_prompt_name
    which = f"Without `prompt_name`, the prompt {code(default)} is used." if default in prompts else ""
    rows = [[code(name, cell=True), code(text, cell=True)] for name, text in prompts.items()]
    text = f"Pass a prompt by its name: `model.encode(texts, prompt_name={next(iter(prompts))!r})`. {which}".rstrip()
    return "\n\n".join(["## Prompts", text, table(["name", "text in front of a text"], rows)])
