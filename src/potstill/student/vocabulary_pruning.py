"""Cutting a model to some of the tokens that it knows: it says of these what it said before."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from potstill.corpus.tokenizer_pruning import prune_tokenizer, tokens_to_keep
from potstill.errors import PotstillError
from potstill.student.facts import usable_length
from potstill.student.generic import counts_from_padding
from potstill.student.loading import check_vocabulary
from potstill.student.tensors import leave_out_parts

PROBE = 16
"""Tokens that the whole model and the cut one are compared on."""


def prune_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, kept: Iterable[int]
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Cut a model and its tokenizer to some tokens: both do with text of these tokens what they did before.

    Kept besides are all control, special and added tokens, all pieces of one character or byte, and what the tokenizer
    needs to find the same pieces. The tokens are numbered anew in the order of their ids.

    Args:
        model: with or without a head, of any architecture but an encoder-decoder; it stays as it is.
        tokenizer: of the model; a fast one whose kind is WordPiece, BPE, Unigram or WordLevel; it stays as it is.
        kept: ids of the tokens to keep: those that some text uses, say.

    Returns:
        The cut model and the cut tokenizer.

    Raises:
        PotstillError: the tokenizer has no such token or cannot be cut, it is not the model's, or the model cannot be
            cut.
    """
    check_vocabulary(tokenizer, model.config, "the model")
    numbers = tokens_to_keep(tokenizer, kept)
    return prune_embeddings(model, numbers), prune_tokenizer(tokenizer, numbers)


def prune_embeddings(model: PreTrainedModel, kept: ArrayLike) -> PreTrainedModel:
    """Cut a model to the tokens that are kept: its input embeddings, and its output embeddings and their bias.

    The hidden states of kept tokens stay what they are, bit for bit, and so do their logits, up to the order in which
    a matrix product sums. The ids in the config (`pad_token_id` and so on) become those of the same tokens. A model
    that counts its positions from the id of padding loses the position embeddings that it no longer reaches.

    Args:
        model: with or without a head; it stays as it is.
        kept: (K,) ids in ascending order, `Corpus.kept_tokens` say. They become 0 to K - 1.

    Returns:
        A new model on the device, in the precision and in the mode (training or evaluation) of `model`. It shares no
        memory with it.

    Raises:
        PotstillError: the ids are not in ascending order, the model does not know them, it counts positions from a
            token that is not kept, or it is of an architecture that cannot be cut.
    """
    ids = torch.as_tensor(kept).cpu()
    rows = _rows(model.config)
    if ids.dim() != 1 or not len(ids) or ids.dtype != torch.int64 or (ids.diff() <= 0).any() or ids[0] < 0:
        raise PotstillError("The ids of the tokens to keep are not one or more integers in ascending order: sort them.")
    if ids[-1] >= rows:
        raise PotstillError(
            f"The tokens to keep go up to the id {ids[-1]}, but the model {model.name_or_path!r} knows {rows} tokens: "
            "take the model whose tokenizer gave these ids."
        )
    config, shift = _cut_config(model.config, ids)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        cut = type(model)(config)
    leave_out_parts(model, cut)
    cut.to(device=model.device, dtype=model.dtype)
    state, shapes = model.state_dict(), {name: tensor.shape for name, tensor in cut.state_dict().items()}
    if state.keys() != shapes.keys():
        raise _cannot_be_cut(model, "its tensors are not those of its class")
    cut.load_state_dict({name: _cut(model, name, tensor, shapes[name], ids, shift) for name, tensor in state.items()})
    if model.can_generate():
        cut.generation_config = _with_new_ids(copy.deepcopy(model.generation_config), ids)
    cut.train(model.training)
    _check(model, cut, ids)
    return cut


def _rows(config: PreTrainedConfig) -> int:
    rows = getattr(config, "vocab_size", None)
    if not isinstance(rows, int) or config.is_encoder_decoder or config.get_text_config() is not config:
        raise PotstillError(
            f"The vocabulary of a model of the type {config.model_type} cannot be cut: its config has no vocab_size of "
            "its own, or it has a decoder besides the encoder."
        )
    return rows


def _cut_config(config: PreTrainedConfig, kept: Tensor) -> tuple[PreTrainedConfig, int]:
    """The config of the cut model, and the number of position embeddings that it loses at the start."""
    cut = _with_new_ids(copy.deepcopy(config), kept)
    cut.vocab_size = len(kept)
    if not counts_from_padding(config) or config.pad_token_id is None:
        return cut, 0
    if cut.pad_token_id is None:
        raise PotstillError(
            f"The model counts its positions from the id of padding, {config.pad_token_id}, which is not among the "
            "tokens to keep: add it."
        )
    shift = config.pad_token_id - cut.pad_token_id
    cut.max_position_embeddings = config.max_position_embeddings - shift
    return cut, shift


def _with_new_ids(config: Any, kept: Tensor) -> Any:
    """Give the tokens that a config names (`pad_token_id` and so on) their new ids, and None to those not kept."""
    new = {old: number for number, old in enumerate(kept.tolist())}
    for name, value in config.to_dict().items():
        if name.endswith("_token_id") and isinstance(value, int):
            setattr(config, name, new.get(value))
        elif name.endswith("_token_id") and isinstance(value, list):
            setattr(config, name, [new[old] for old in value if old in new])
    return config


def _cut(model: PreTrainedModel, name: str, tensor: Tensor, shape: torch.Size, kept: Tensor, shift: int) -> Tensor:
    """What a tensor of the cut model is, which has another shape only if it goes over the tokens or the positions."""
    if tensor.shape == shape:
        return tensor
    if tensor.dim() and tensor.shape[1:] == shape[1:]:
        if (len(tensor), shape[0]) == (model.config.vocab_size, len(kept)):
            return tensor[kept.to(tensor.device)]
        if shift and shape[0] == len(tensor) - shift:
            return tensor[shift:]
    raise _cannot_be_cut(model, f"its tensor {name} depends on the vocabulary in a way that is not known")


def _cannot_be_cut(model: PreTrainedModel, reason: str) -> PotstillError:
    return PotstillError(f"The vocabulary of a {type(model).__name__} cannot be cut, because {reason}: keep it whole.")


def _check(model: PreTrainedModel, cut: PreTrainedModel, kept: Tensor) -> None:
    """Make sure that both models say the same of some tokens, padding among them, whatever their architecture does."""
    length = min(PROBE, usable_length(cut.config) or PROBE)
    probe = torch.linspace(0, len(kept) - 1, length).long()
    if cut.config.pad_token_id is not None:
        probe[-1] = cut.config.pad_token_id
    before, after = (_output(one, ids) for one, ids in ((model, kept[probe]), (cut, probe)))
    if before.shape != after.shape:
        before = before[..., kept.to(before.device)]
    if not torch.allclose(before, after, rtol=1e-2, atol=1e-3, equal_nan=True):
        raise _cannot_be_cut(model, "it would not say the same afterwards")


def _output(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    training = model.training
    try:
        with torch.no_grad():
            return model.eval()(input_ids=input_ids[None].to(model.device))[0]
    finally:
        model.train(training)
