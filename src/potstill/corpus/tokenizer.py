"""Load a tokenizer, and describe it for packing."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from potstill.corpus.casing import contradiction, unstated_options
from potstill.corpus.tokenizer_limits import check_limits
from potstill.errors import PotstillError, first_line
from potstill.hub_access import hub_or_cache
from potstill.json_files import read_object
from potstill.panics import panics_as_errors
from potstill.small_files import check_model_folder, check_parts

CONFIG = "config.json"
FILES = (CONFIG, "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json")
"""The files of a tokenizer; some may be missing."""

logger = logging.getLogger(__name__)

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
"""The roles that a token can have for a model, as `transformers` names them."""


def control_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Return the ids of control tokens: text never becomes one of them, and they are never masked.

    They are the tokens with a role ([CLS], [MASK], [UNK] and so on), and the tokens that the tokenizer puts around a
    text. The other special tokens of a model (`additional_special_tokens`, such as <url>) are placeholders, which count
    as content.

    Returns:
        The ids in ascending order.
    """
    roles = {getattr(tokenizer, f"{role}_token_id") for role in ROLES} - {None}
    framed = tokenizer.backend_tokenizer.encode("", add_special_tokens=True)
    added = {token for token, special in zip(framed.ids, framed.special_tokens_mask, strict=True) if special}
    return sorted(roles | added)


def placeholders(tokenizer: PreTrainedTokenizerFast) -> dict[int, str]:
    """Return id → content of the special tokens that text may hold: the tokenizer finds them in text, and they are no
    control tokens."""
    if tokenizer.split_special_tokens:  # the tokenizer reads special tokens in text as plain text
        return {}
    control = set(control_ids(tokenizer))
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    return {number: token.content for number, token in added.items() if token.special and number not in control}


@dataclass(frozen=True)
class TokenizerSpec:
    """The properties of a fast tokenizer that packing needs.

    Attributes:
        json: the tokenizer, serialised by `tokenizers`. Only tokens that text never becomes are marked as special.
        vocab_size: one more than the largest id.
        prefix: id that opens a block ([CLS]), or None.
        suffix: id that closes a block ([SEP]), or None.
        separator: id between two documents: [SEP], or the end-of-text token of a tokenizer without one.
        special_ids: ids that text never becomes.
        unknown: id of the unknown token, or None.
    """

    json: str
    vocab_size: int
    prefix: int | None
    suffix: int | None
    separator: int
    special_ids: list[int]
    unknown: int | None

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest unsigned integer type that holds every id."""
        return np.min_scalar_type(self.vocab_size - 1)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast, name: str, framed: bool | None = None) -> "TokenizerSpec":
        """Describe a tokenizer.

        Args:
            tokenizer: a fast one.
            name: what messages call it.
            framed: whether [CLS] and [SEP] stand around each block; by default where the tokenizer has both.

        Raises:
            PotstillError: it is not a fast one, it has neither [CLS] and [SEP] nor an end-of-text token, or blocks are
                to be framed and it lacks one of the two.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise PotstillError(
                f"The tokenizer {name} ({type(tokenizer).__name__}) is not a fast one: give one that has a "
                "tokenizer.json."
            )
        frames = tokenizer.cls_token_id is not None and tokenizer.sep_token_id is not None
        if framed and not frames:
            raise PotstillError(
                f"The tokenizer {name} has no [CLS] or no [SEP] to put around blocks: set both, "
                "or leave --frame_blocks out."
            )
        framed = frames if framed is None else framed
        separator = tokenizer.eos_token_id
        if separator is None or framed:
            separator = tokenizer.sep_token_id
        if separator is None:
            raise PotstillError(
                f"The tokenizer {name} has neither [CLS] and [SEP] nor an end-of-text token to put between documents: "
                "set its eos_token."
            )
        unknown = tokenizer.unk_token_id
        if unknown == separator:  # GPT-2's end-of-text token is its unknown token too; byte-level text needs none
            unknown = None
        return cls(
            json=_serialised(tokenizer),
            vocab_size=max(tokenizer.get_vocab().values()) + 1,
            prefix=tokenizer.cls_token_id if framed else None,
            suffix=tokenizer.sep_token_id if framed else None,
            separator=separator,
            special_ids=sorted(set(control_ids(tokenizer)) - {unknown}),
            unknown=unknown,
        )


def _serialised(tokenizer: PreTrainedTokenizerFast) -> str:
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    control, content = set(control_ids(tokenizer)), placeholders(tokenizer)
    for token in settings["added_tokens"]:
        token["special"] = token["id"] in control or (token["special"] and token["id"] not in content)
    return json.dumps(settings)


def load_tokenizer(name: str, token_types: bool = True, role: str = "tokenizer") -> PreTrainedTokenizerFast:
    """Load a fast tokenizer from a folder or from the hub. Code that comes with a model is never run.

    If no file there says whether text is lower-cased, the vocabulary decides; see `potstill.corpus.casing`.

    Args:
        name: folder or hub id.
        token_types: whether the tokenizer may offer `token_type_ids`, also after it is saved. Use False if the model
            takes none.
        role: the role of the name, for messages, such as ``teacher``.

    Raises:
        PotstillError: there is no tokenizer of that name, the hub cannot be reached, a file is too large, or the
            tokenizer is not a fast one, has no vocabulary, or would fill the memory.
    """
    if not Path(name).exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise PotstillError(f"There is no {role} folder {name}: give a folder or the name of a model on the hub.")
    folder = Path(name)
    if folder.is_dir():
        check_model_folder(folder)
        if (folder / CONFIG).is_file():  # transformers reads it too
            check_parts(_object_or_none(folder / CONFIG), f"the {CONFIG} of the {role} {name!r}")
    options = {} if token_types else {"model_input_names": ["input_ids", "attention_mask"]}
    try:
        with quiet_hub(), nullcontext() if Path(name).exists() else hub_or_cache(), panics_as_errors():
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **options)
            unstated, decision = unstated_options(name, tokenizer) if tokenizer.is_fast else ({}, "")
            if unstated:
                tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **options, **unstated)
    except Exception as error:  # the libraries raise almost any type
        reason = first_line(error)
        _check_files(Path(name))
        if Path(name).exists():
            raise PotstillError(
                f"The folder {name} holds no tokenizer that can be loaded ({reason}): name another folder, or put a "
                "tokenizer.json there."
            ) from error
        raise PotstillError(
            f"The {role} {name} is not a folder here and cannot be loaded from the hub ({reason}): "
            "check the name and the network."
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise PotstillError(
            f"The tokenizer {name} ({type(tokenizer).__name__}) is not a fast one: give one that has a tokenizer.json."
        )
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers makes an empty one from the config
        raise PotstillError(
            f"The {role} {name!r} has no tokenizer: put its tokenizer.json and tokenizer_config.json there."
        )
    check_limits(tokenizer, name)
    if "local_files_only" in tokenizer.init_kwargs:  # is saved too, and a student should not tell of the network
        tokenizer.init_kwargs["local_files_only"] = False
    for line in (decision, contradiction(name, tokenizer)):
        if line:
            warn_once(line)
    return tokenizer


def _check_files(folder: Path) -> None:
    """Find the damaged file of a tokenizer, because the errors of the libraries seldom name it.

    Raises:
        PotstillError: a file is damaged.
    """
    for file in FILES:
        if (folder / file).is_file():
            what = "The model's file" if file == CONFIG else "The tokenizer file"
            read_object(folder / file, what, "restore it", finite=False)


def _object_or_none(file: Path) -> dict[str, Any] | None:
    """Return the object in a file; None if the file is damaged, which the loading of the tokenizer reports."""
    try:
        return read_object(file, "The tokenizer file", finite=False)
    except PotstillError:
        return None


@cache
def warn_once(line: str) -> None:
    """Log a warning when it is given for the first time, in one process of each machine."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        logger.warning(line)


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save a tokenizer.

    Raises:
        OSError: it cannot be written.
    """
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:  # `tokenizers` tells of a full disk by a bare Exception
        raise error if isinstance(error, OSError) else OSError(first_line(error)) from error


def drop_token_types(tokenizer: PreTrainedTokenizerFast) -> None:
    """Stop a tokenizer from offering `token_type_ids`, also after it is saved, for a model that takes none."""
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Keep the hub client from printing its retries. The caller reports a failure in one sentence."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
