"""Cutting a tokenizer to some of its tokens, so that it reads the text in which these occur as it did before.

Why the pieces stay the same, for each kind of tokenizer:

- WordPiece takes the longest piece that fits. What it took is kept, and nothing longer is added.
- BPE merges the pair of the lowest rank. All merges on the way to a kept token are kept, and their order is kept.
- Unigram takes the pieces with the highest sum of scores. These are kept, the others have no higher sum, and the score
  of an unknown character is kept.
- WordLevel looks a word up.

All pieces of one character and of one byte are kept, so that any other text has tokens too.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from potstill.corpus.tokenizer import control_ids, save_tokenizer
from potstill.errors import PotstillError, first_line
from potstill.panics import panics_as_errors

logger = logging.getLogger(__name__)

BYTE = re.compile("<0x[0-9A-F]{2}>")
"""How SentencePiece spells the piece of one byte."""


def tokens_to_keep(tokenizer: PreTrainedTokenizerFast, used: Iterable[int]) -> NDArray[np.int64]:
    """Return the tokens that a tokenizer has to keep in order to read some text as it does now.

    Args:
        tokenizer: the whole one.
        used: ids of the tokens that the text has.

    Returns:
        (K,) ids in ascending order: those used; all control, special and added tokens; all pieces of one character or
        byte; and what the kind of tokenizer needs to find the same pieces.

    Raises:
        PotstillError: the tokenizer is of a kind that cannot be cut, or has no token with one of the ids.
    """
    settings = _settings(tokenizer)
    model, vocabulary = settings["model"], tokenizer.get_vocab()
    in_text = {int(number) for number in used}
    if unknown := in_text - set(vocabulary.values()):
        raise PotstillError(f"The tokenizer {_name(tokenizer)} has no token with the id {min(unknown)}: give others.")
    kept = in_text | set(control_ids(tokenizer)) | set(tokenizer.all_special_ids)
    kept |= {token["id"] for token in settings["added_tokens"]} | set(_ids_around_text(settings))
    kept |= _needed(model, _pieces(model), kept, in_text)
    return np.array(sorted(kept), dtype=np.int64)


def prune_tokenizer(
    tokenizer: PreTrainedTokenizerFast, kept: NDArray[np.int64], folder: Path | None = None
) -> PreTrainedTokenizerFast:
    """Cut a tokenizer to the tokens that are kept. They are numbered from 0 in the order of their ids.

    Args:
        tokenizer: the whole one; it stays as it is.
        kept: (K,) ids in ascending order, from `tokens_to_keep`.
        folder: where to save the cut tokenizer; nowhere if not given.

    Returns:
        The cut tokenizer, as it is loaded from its files.

    Raises:
        PotstillError: the tokenizer cannot be cut, or is not the same once it is saved and loaded.
        OSError: it cannot be saved.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return prune_tokenizer(tokenizer, kept, Path(temporary))
    new = {old: number for number, old in enumerate(kept.tolist())}
    settings = _settings(tokenizer)
    _cut(settings["model"], new)
    for token in settings["added_tokens"]:
        token["id"] = new[token["id"]]
    _renumber_around_text(settings, new)

    save_tokenizer(tokenizer, folder)
    (folder / "tokenizer.json").write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")
    config_file = folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    if config.pop("added_tokens_decoder", None) is not None:  # by their old ids; tokenizer.json has the new ones
        config_file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    cut = _loaded(folder, tokenizer)
    expected = {token: new[number] for token, number in tokenizer.get_vocab().items() if number in new}
    controls = [new[number] for number in control_ids(tokenizer)]
    if (cut.get_vocab(), control_ids(cut), _settings(cut)["model"]) != (expected, controls, settings["model"]):
        raise _cannot_be_cut(tokenizer, "it is not the same after it was cut, saved and loaded")
    cut.name_or_path = tokenizer.name_or_path
    return cut


def _name(tokenizer: PreTrainedTokenizerFast) -> str:
    return tokenizer.name_or_path or "given"


def _cannot_be_cut(tokenizer: PreTrainedTokenizerFast, reason: str) -> PotstillError:
    return PotstillError(
        f"The vocabulary of the tokenizer {_name(tokenizer)} ({type(tokenizer).__name__}) cannot be cut, because "
        f"{reason}: keep it whole."
    )


def _loaded(folder: Path, whole: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    try:
        with panics_as_errors():
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the libraries below raise almost every type there is
        raise _cannot_be_cut(whole, f"it cannot be loaded after it was cut ({first_line(error)})") from error


def _settings(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The tokenizer as `tokenizers` serialises it."""
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    kind = settings["model"]["type"]
    if kind not in ("WordPiece", "BPE", "Unigram", "WordLevel"):
        raise _cannot_be_cut(tokenizer, f"{kind} is none of the kinds WordPiece, BPE, Unigram and WordLevel")
    return settings


def _pieces(model: dict[str, Any]) -> dict[str, int]:
    """Piece → id, of a tokenizer's model."""
    vocabulary = model["vocab"]
    return vocabulary if isinstance(vocabulary, dict) else {piece: n for n, (piece, _) in enumerate(vocabulary)}


def _needed(model: dict[str, Any], pieces: dict[str, int], kept: set[int], used: set[int]) -> set[int]:
    """Ids that the model needs besides those kept anyway, in order to read text of the ids used as it does now."""
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    unknown: int | None = model["unk_id"] if model["type"] == "Unigram" else pieces.get(model.get("unk_token") or "")
    needed = set() if unknown is None else {unknown}
    if model["type"] != "WordLevel":
        needed |= {number for piece, number in pieces.items() if _is_single(piece, prefix, suffix)}
    if model["type"] == "Unigram":
        # An unknown character scores a fixed amount less than the piece with the lowest score.
        needed.add(min(range(len(model["vocab"])), key=lambda number: model["vocab"][number][1]))
    elif model["type"] == "BPE":
        needed |= _parts(model, pieces, kept, prefix)
    elif model["type"] == "WordPiece" and unknown in used and (piece := _gap(pieces, kept, prefix)) is not None:
        logger.warning(
            "All tokens are kept: the text has words that the tokenizer does not know, and without some of the other "
            "tokens it would know them, because %r has a character that is no piece by itself inside words.",
            piece,
        )
        needed |= set(pieces.values())
    return needed


def _is_single(piece: str, prefix: str, suffix: str) -> bool:
    """Whether a piece is one character, at the start of a word or inside it, or one byte."""
    forms = {
        piece,
        piece.removeprefix(prefix),
        piece.removesuffix(suffix),
        piece.removeprefix(prefix).removesuffix(suffix),
    }
    return any(len(form) == 1 for form in forms) or BYTE.fullmatch(piece) is not None


def _parts(model: dict[str, Any], pieces: dict[str, int], kept: set[int], prefix: str) -> set[int]:
    """All tokens on any way of merges to the tokens kept."""
    ways: dict[str, list[str]] = defaultdict(list)
    for left, right in model["merges"]:
        ways[_merged(left, right, prefix)] += (left, right)
    found: set[str] = set()
    waiting = [piece for piece, number in pieces.items() if number in kept]
    while waiting:
        piece = waiting.pop()
        if piece not in found:
            found.add(piece)
            waiting += ways[piece]
    return {pieces[piece] for piece in found}


def _merged(left: str, right: str, prefix: str) -> str:
    return left + right[len(prefix) :]


def _gap(pieces: dict[str, int], kept: set[int], prefix: str) -> str | None:
    """A kept piece of the inside of words with a character, not its first, that is no such piece by itself.

    WordPiece gives up a word at a character for which no piece begins. After a cut it may come to another place of the
    word before that character, and such a piece would carry it over the character.
    """
    for piece, number in pieces.items():
        if number in kept and piece.startswith(prefix):
            inside = piece[len(prefix) :]
            if any(prefix + character not in pieces for character in inside[1:]):
                return piece
    return None


def _cut(model: dict[str, Any], new: dict[int, int]) -> None:
    """Cut a tokenizer's model to the ids in `new`, and give its tokens their new ids; in place."""
    if model["type"] == "Unigram":
        model["vocab"] = [entry for number, entry in enumerate(model["vocab"]) if number in new]
        model["unk_id"] = None if model["unk_id"] is None else new[model["unk_id"]]
        return
    pieces = {piece: new[number] for piece, number in model["vocab"].items() if number in new}
    model["vocab"] = pieces
    if model["type"] == "BPE":
        prefix = model.get("continuing_subword_prefix") or ""
        model["merges"] = [
            [left, right]
            for left, right in model["merges"]
            if left in pieces and right in pieces and _merged(left, right, prefix) in pieces
        ]


def _ids_around_text(settings: dict[str, Any]) -> Iterator[int]:
    """Ids of the tokens that are put around a text or fill a batch."""
    if settings.get("padding"):
        yield settings["padding"]["pad_id"]
    for part in _post_processors(settings):
        for special in part.get("special_tokens", {}).values():
            yield from special["ids"]
        yield from (part[name][1] for name in ("sep", "cls") if name in part)


def _renumber_around_text(settings: dict[str, Any], new: dict[int, int]) -> None:
    """Replace the ids of `_ids_around_text`; in place."""
    if settings.get("padding"):
        settings["padding"]["pad_id"] = new[settings["padding"]["pad_id"]]
    for part in _post_processors(settings):
        for special in part.get("special_tokens", {}).values():
            special["ids"] = [new[number] for number in special["ids"]]
        part |= {name: [part[name][0], new[part[name][1]]] for name in ("sep", "cls") if name in part}


def _post_processors(settings: dict[str, Any]) -> list[dict[str, Any]]:
    processor = settings.get("post_processor") or {}
    return processor.get("processors", [processor])
