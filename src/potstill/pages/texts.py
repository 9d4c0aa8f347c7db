"""The part of a page that runs the models on a few texts: filled masks side by side, or similarities of pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from potstill.corpus.tokenizer import load_tokenizer
from potstill.errors import PotstillError
from potstill.pages.folders import Found, Kind
from potstill.report import html
from potstill.sentences.encoder import SentenceEncoder
from potstill.sentences.folder import has_pooling
from potstill.student import load_masked_lm
from potstill.student.model_files import model_folder

MASK = "{mask}"


def on_texts(found: Sequence[Found], texts: Sequence[str]) -> list[str]:
    """Return what the trained models and their teachers make of texts.

    Masked LMs fill the `{mask}` of each text that has one. Sentence encoders compare each two of the other texts.

    Args:
        found: what the page is of; the models are those of training runs.
        texts: the texts.

    Raises:
        PotstillError: no model can run on a text, a text has more than one mask, or a model cannot be loaded.
    """
    masked, whole = [text for text in texts if MASK in text], [text for text in texts if MASK not in text]
    if any(text.count(MASK) > 1 for text in texts):
        raise PotstillError(f"--texts: a text may have {MASK} only once; split it into several texts.")
    models = _models(found)
    encoders = [name for name, path in models.items() if _encodes(path)]
    fillers = [name for name in models if name not in encoders]
    sections = []
    if masked and fillers:
        columns = {name: _filled(models[name], masked) for name in fillers}
        rows = [[text, *(column[number] for column in columns.values())] for number, text in enumerate(masked)]
        sections += [html.subheading("Filling the blank"), html.table(["", *columns], rows, texts=True)]
    if len(whole) > 1 and encoders:
        pairs = [(one, other) for number, one in enumerate(whole) for other in whole[number + 1 :]]
        columns = {name: _similarities(models[name], whole) for name in encoders}
        rows = [
            [f"{one} ↔ {other}", *(column[number] for column in columns.values())]
            for number, (one, other) in enumerate(pairs)
        ]
        sections += [html.subheading("Similarity of two texts (cosine)"), html.table(["", *columns], rows, texts=True)]
    if not sections:
        raise PotstillError(
            f"--texts: no model here can run on these texts. Masked LMs need texts with {MASK}, sentence encoders two "
            "texts without it; name a folder that distill or pretrain wrote."
        )
    return sections


def fill(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, text: str, answers: int = 3) -> str:
    """Return the most likely words for the `{mask}` of a text, with their probabilities.

    Raises:
        PotstillError: the text is longer than the model can read.
    """
    inputs = tokenizer(text.replace(MASK, tokenizer.mask_token), return_tensors="pt", return_token_type_ids=False)
    length, most = inputs["input_ids"].shape[1], getattr(model.config, "max_position_embeddings", None)
    if most is not None and length > most:
        raise PotstillError(f"--texts: {text[:40]!r}… has {length:,} tokens and the model reads {most:,}: shorten it.")
    position = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero().item()
    with torch.inference_mode():
        best = model(**inputs).logits[0, position].softmax(-1).topk(answers)
    words = [tokenizer.decode([number]).strip() for number in best.indices.tolist()]
    return ", ".join(f"{word} {share:.0%}" for word, share in zip(words, best.values.tolist(), strict=True))


def _models(found: Sequence[Found]) -> dict[str, str]:
    """Return name → folder or hub name of the trained models, each behind its teachers."""
    models: dict[str, str] = {}
    for one in found:
        if one.kind is not Kind.TRAINING:
            continue
        teachers = one.recipe.get("teacher") or []
        for teacher in [teachers] if isinstance(teachers, str) else teachers:
            if isinstance(teacher, str) and teacher not in models.values():
                models[f"{one.name}: its teacher"] = teacher
        models[one.name] = str(one.path)
    return models


def _encodes(path: str) -> bool:
    return has_pooling(model_folder(path, "model", ["modules.json"]))


def _filled(path: str, texts: Sequence[str]) -> list[str]:
    model, tokenizer = load_masked_lm(path, "model"), load_tokenizer(path)
    if tokenizer.mask_token is None:
        return ["it has no mask token" for _ in texts]
    return [fill(model, tokenizer, text) for text in texts]


def _similarities(path: str, texts: Sequence[str]) -> list[str]:
    """Return the cosine of the embeddings of each two texts, in the order of the pairs."""
    embeddings = torch.from_numpy(SentenceEncoder.load(path, "model").encode(texts))
    cosines = torch.nn.functional.cosine_similarity(embeddings[:, None], embeddings[None], dim=-1)
    first, second = torch.triu_indices(len(texts), len(texts), offset=1)
    return [f"{value:.3f}" for value in cosines[first, second].tolist()]
