"""Makes a new BiLSTM: an ordinary model folder in the cache, from which it is loaded like any other model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from potstill.bilstm.config import MODEL_TYPE, BiLSTMConfig
from potstill.bilstm.model import BiLSTMForSequenceClassification
from potstill.bilstm.options import EMBEDDING_SIZE, RANDOM, BiLSTMOptions
from potstill.cache import cache_folder, cached
from potstill.corpus import load_tokenizer
from potstill.corpus.fingerprint import tokenizer_fingerprint
from potstill.errors import PotstillError
from potstill.student.loading import load_headless
from potstill.student.model_files import check_model_files, model_folder
from potstill.student.quiet import quiet_loading
from potstill.training.run_record import model_fingerprint

VERSION = 1
"""Of the way in which a new BiLSTM is made. After a change here, no earlier folder is used."""

STANDARD_DEVIATION = 0.2
"""Of the numbers in the embeddings that a BiLSTM begins with. BERT's have about 0.05: an LSTM learns slowly then."""


def new_bilstm(options: BiLSTMOptions, teacher: str | None, pairs: bool) -> Path:
    """Return the folder of a new BiLSTM: config, tokenizer and weights. It is made if it is not in the cache.

    The folder is the same for every seed. `BiLSTMForSequenceClassification.draw` draws the weights of a run.

    Args:
        options: its sizes and sources.
        teacher: folder or hub name of the teacher, which gives what the options do not name; None without a teacher.
        pairs: whether the task is on pairs of texts.

    Raises:
        PotstillError: there is no tokenizer, the embeddings are of another one or too narrow, or the cache cannot be
            written.
    """
    source = options.tokenizer or teacher
    if source is None:
        raise PotstillError(
            "--model bilstm has no tokenizer: name a model that has one in --bilstm '{tokenizer: FOLDER}', or give a "
            "--teacher."
        )
    tokenizer = load_tokenizer(source)
    fingerprint = tokenizer_fingerprint(tokenizer)
    embeddings = _embeddings_of(options, source, teacher, fingerprint)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise PotstillError(f"The tokenizer of {source!r} has no padding token: set its pad_token.")
        tokenizer.pad_token = tokenizer.eos_token
    given = {"version": VERSION, "pairs": pairs} | asdict(options) | {"tokenizer": fingerprint}
    given["embeddings"] = None if embeddings is None else model_fingerprint(model_folder(embeddings, "model"))
    key = hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder() / "bilstm" / key
    if not folder.is_dir():
        model = _built(options, tokenizer, embeddings, pairs)
        with cached(folder, "The weights of the new BiLSTM") as partial:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
    return folder


def _embeddings_of(options: BiLSTMOptions, source: str, teacher: str | None, fingerprint: str) -> str | None:
    """Return the model whose embeddings the new one begins with; None for random ones.

    Args:
        options: of the new BiLSTM.
        source: what its tokenizer comes from.
        teacher: see `new_bilstm`.
        fingerprint: of its tokenizer.

    Raises:
        PotstillError: the options name a model with another tokenizer.
    """
    name = options.embeddings or teacher
    if name is None or name == RANDOM:
        return None
    if tokenizer_fingerprint(load_tokenizer(name)) == fingerprint:
        return name
    if options.embeddings is None:
        return None
    raise PotstillError(
        f"--bilstm: the embeddings of {name!r} are for another tokenizer than that of {source!r}: name a model with "
        "the same one, or random."
    )


def _built(
    options: BiLSTMOptions, tokenizer: PreTrainedTokenizerFast, embeddings: str | None, pairs: bool
) -> BiLSTMForSequenceClassification:
    table = None if embeddings is None else word_embeddings(embeddings)
    size = options.embedding_size or min(EMBEDDING_SIZE, EMBEDDING_SIZE if table is None else table.shape[1])
    if table is not None:
        if size > table.shape[1]:
            raise PotstillError(
                f"--bilstm: embedding_size is {size}, but the embeddings of {embeddings!r} are {table.shape[1]} wide: "
                "give at most that, or embeddings: random."
            )
        table = reduced(table, size)
    rows = max(tokenizer.get_vocab().values()) + 1
    config = BiLSTMConfig(
        vocab_size=rows if table is None else max(rows, len(table)),
        embedding_size=size,
        hidden_size=options.hidden_size,
        intermediate_size=options.intermediate_size,
        dropout=options.dropout,
        pairs=pairs,
        type_vocab_size=2 if pairs and _tells_texts_apart(tokenizer) else 1,
        pad_token_id=tokenizer.pad_token_id,
        sep_token_id=tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id,
        embeddings_from=None if embeddings is None else Path(embeddings).name,
    )
    if pairs and config.type_vocab_size < 2 and not _ends_first_text(tokenizer, config.sep_token_id):
        raise PotstillError(
            "--model bilstm reads pairs of texts one by one, but this tokenizer puts no token between them: name "
            "another one in --bilstm '{tokenizer: FOLDER}'."
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = BiLSTMForSequenceClassification(config)
    if table is not None:
        with torch.no_grad():
            for channel in (model.encoder.static, model.encoder.trained):
                channel.weight[: len(table)] = table
    return model


def word_embeddings(name: str) -> Tensor:
    """Return the word embeddings of a model, (V, H) float32.

    Raises:
        PotstillError: there is no such model, or it cannot be read.
    """
    folder, model_is = model_folder(name, "model"), f"the model {name!r}"
    if check_model_files(folder, model_is).get("model_type") == MODEL_TYPE:
        with quiet_loading():
            model: Any = BiLSTMForSequenceClassification.from_pretrained(folder, local_files_only=True)
    else:
        model = load_headless(folder, model_is)
    return model.get_input_embeddings().weight.detach().float()


def reduced(table: Tensor, size: int) -> Tensor:
    """Return embeddings with fewer columns by a principal component analysis, scaled to `STANDARD_DEVIATION`.

    Args:
        table: (V, H).
        size: columns to keep, at most H. With H, the columns are kept as they are and only scaled.

    Returns:
        (V, size) float32.
    """
    found = table.double()
    if size < table.shape[1]:
        found = found - found.mean(dim=0)
        directions = torch.linalg.eigh(found.T @ found)[1].flip(1)[:, :size]
        # The sign of a direction is arbitrary. With its largest number positive it is the same everywhere.
        signs = directions.gather(0, directions.abs().argmax(dim=0)[None]).sign()
        found = found @ (directions * signs)
    return (found * (STANDARD_DEVIATION / found.std())).float()


def _tells_texts_apart(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Return whether the tokenizer numbers the tokens of the second text of a pair by another type."""
    return len(set(tokenizer("a", "b").get("token_type_ids", []))) > 1


def _ends_first_text(tokenizer: PreTrainedTokenizerFast, sep: int | None) -> bool:
    """Return whether the token `sep` stands between two texts."""
    return sep is not None and sep in tokenizer("a", "b")["input_ids"][:-1]
