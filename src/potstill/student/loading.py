"""Loading a language model or its encoder safely: no code from its folder, no pickles, no half-loaded model."""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from potstill.errors import PotstillError, first_line
from potstill.panics import panics_as_errors
from potstill.student.family import family_of, family_of_type, family_or_none
from potstill.student.generic_run import layer_lists
from potstill.student.headless import layer_prefix
from potstill.student.interface import Family
from potstill.student.model_files import CONFIG, check_model_files, model_folder, refuse_task_models
from potstill.student.quiet import quiet_loading
from potstill.student.weights import Weights, check_finite
from potstill.wording import agreeing, counted

logger = logging.getLogger(__name__)


class NoHeadError(PotstillError):
    """The files of a model hold no trained language-model head, not even a part of one."""


def load_masked_lm(
    name_or_path: str | os.PathLike[str], role: str = "teacher", dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Load a language model of a known family, whole, for inference or as a start for training.

    Reads `config.json` and safetensors weights and nothing else: never code, never pickles. What transformers has to
    say while loading is kept off the terminal, for everything that matters here is an error.

    Args:
        name_or_path: A model folder, or a model's name on the Hugging Face hub.
        role: What the model is to the user, for the error messages: "teacher", "student", "model".
        dtype: Precision of the weights in memory, whatever it is on disk.

    Returns:
        The model on the CPU, in evaluation mode.

    Raises:
        PotstillError: There is no such model, or the hub cannot be reached; its config or weights are missing, broken
            or do not fit each other; a weight is no finite number; it is of no known family, needs its own code, or
            has no language-model head.
    """
    name_or_path = os.fspath(name_or_path)
    model_is = f"the {role} {name_or_path!r}"
    folder = model_folder(name_or_path, role)
    raw = check_model_files(folder, model_is)
    refuse_task_models(raw, model_is)
    try:
        family = family_of_type(raw.get("model_type"))
    except PotstillError as error:
        raise PotstillError(f"{model_is} cannot be used: {error}") from None
    model, report = _load(family.auto_class, folder, raw, model_is, dtype, family)
    _check_report(model, report, model_is)
    check_finite(model, model_is)
    return checked_model(model, family, name_or_path, model_is)


def checked_model(model: PreTrainedModel, family: Family, name_or_path: str, model_is: str) -> PreTrainedModel:
    """Return a loaded model with its name, in evaluation mode.

    Raises:
        PotstillError: It cannot be distilled.
    """
    with quiet_loading():
        reason = family.unusable(model)
    if reason is not None:
        raise PotstillError(f"{model_is} cannot be used: it {reason}")
    if family.encodes_whole:
        logger.warning(
            "%s is of type %r, which potstill has no code for: its own forward pass is used (the generic path).",
            f"{model_is[0].upper()}{model_is[1:]}",
            model.config.model_type,
        )
    model.config.name_or_path = model.name_or_path = name_or_path
    return model.eval()


def load_headless(folder: Path, model_is: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load the encoder of a model, whole, without any head; it is read as safely as by `load_masked_lm`.

    Any architecture of transformers that reads text with a single stack of layers will do. A head in the files is left
    out, and so is a pooler (the layer above the first token) that the files lack.

    Args:
        folder: The model's, from `model_folder`.
        model_is: What the model is called in messages: "the teacher 'bert-base-uncased'".
        dtype: Precision of the weights in memory, whatever it is on disk.

    Returns:
        The model on the CPU, in evaluation mode.

    Raises:
        PotstillError: Its config or weights are missing, broken or do not fit each other; a weight is no finite number;
            it needs its own code, or is no encoder of text.
    """
    raw = check_model_files(folder, model_is)
    refuse_task_models(raw, model_is)
    model, report = _load(AutoModel, folder, raw, model_is, dtype)
    if model.main_input_name != "input_ids":
        raise PotstillError(f"{model_is} cannot be used: it reads {model.main_input_name} and not text")
    if model.config.is_encoder_decoder:
        raise PotstillError(f"{model_is} cannot be used: it is an encoder-decoder, and only an encoder has embeddings")
    _check_surplus(report, layer_prefix(model), model_is)
    missing = sorted(report["missing_keys"])
    if missing and all(name.startswith("pooler.") for name in missing):
        model.pooler = None  # it would be random, and the last hidden states do not pass through it
    elif missing:
        raise _incomplete(missing, model_is)
    check_finite(model, model_is)
    return model.eval()


def _load(
    auto_class: Any,
    folder: Path,
    raw: dict[str, Any],
    model_is: str,
    dtype: torch.dtype,
    family: Family | None = None,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return a model of a folder whose raw config is checked, and the report of what its files lack or have beyond."""
    weights = Weights.read(folder, model_is)
    weights.check_config(raw, model_is)
    # Tensors that the files lack are drawn at random before the report of them is here to be refused.
    with quiet_loading(), panics_as_errors(), torch.random.fork_rng(devices=[]):
        config = _config(folder, weights, family, model_is)
        try:
            model, report = from_files(auto_class, folder, config, dtype)
        # Whatever a damaged or foreign file provokes in safetensors, torch or transformers has one meaning here.
        except Exception as error:
            raise PotstillError(
                f"{model_is} cannot be loaded, because its {CONFIG} or its weights are damaged or incomplete: "
                f"copy or download it again ({first_line(error)})"
            ) from error
    if report["mismatched_keys"]:
        name, in_file, in_config = min(report["mismatched_keys"])
        raise PotstillError(
            f"the weights of {model_is} do not fit its {CONFIG}: {name} is {_shape(in_file)} in the file and "
            f"{_shape(in_config)} by the config"
        )
    return model, report


def from_files(auto_class: Any, folder: Path, config: PreTrainedConfig, dtype: torch.dtype) -> tuple[Any, Any]:
    """Let transformers load a model from safetensors, without any code of its folder and without the hub.

    Args:
        auto_class: Of transformers, which says what head the model gets.
        folder: With the weights.
        config: Of the model. Its `chunk_size_feed_forward` becomes 0.
        dtype: Precision of the weights in memory.

    Returns:
        The model, and the report of transformers on tensors that are missing, unexpected or of another shape. Any
        error is that of the library.
    """
    # It saves memory in inference, and fails on a text whose length is no multiple of it. 0 gives the same numbers.
    if hasattr(config, "chunk_size_feed_forward"):
        config.chunk_size_feed_forward = 0
    options = {
        "config": config,
        "dtype": dtype,
        "use_safetensors": True,
        "trust_remote_code": False,
        "local_files_only": True,
        # Callers report it in one sentence of ours.
        "ignore_mismatched_sizes": True,
        "output_loading_info": True,
    }
    # The attention is always given because a config may name another, which can be code from the hub.
    try:
        return auto_class.from_pretrained(folder, attn_implementation="sdpa", **options)
    except Exception as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
    return auto_class.from_pretrained(folder, attn_implementation="eager", **options)


def _config(folder: Path, weights: Weights, family: Family | None, model_is: str) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    # The config classes validate with errors of several libraries.
    except Exception as error:
        raise PotstillError(f"the {CONFIG} of {model_is} is not usable: correct it ({first_line(error)})") from error
    # This key may send transformers to another file than the weights checked above, a pickle among the choices.
    vars(config).pop("transformers_weights", None)
    known = family or family_or_none(config)
    reason = known and (known.unsupported(config) or known.read_names(config, weights.shapes))
    if reason is not None:
        raise PotstillError(f"{model_is} cannot be used: it {reason}")
    if (reason := family and family.headless_because(config, weights.shapes)) is not None:
        raise NoHeadError(f"{model_is} cannot be used as a language model: it {reason}")
    return config


def _check_report(model: PreTrainedModel, report: dict[str, Any], model_is: str) -> None:
    """Refuse a language model with tensors that were not in its files, or that its config has no place for."""
    family = family_of(model)
    # Of a model that cannot be used, `Family.unusable` tells why.
    prefix = family.layer_prefix or next(iter(layer_lists(model)), "")
    _check_surplus(report, prefix or None, model_is)
    missing = sorted(report["missing_keys"] - family.restore(model, report["missing_keys"]))
    if not missing:
        return
    head = sorted(name for name in missing if not name.startswith(f"{model.base_model_prefix}."))
    if head == missing:
        encoder = {id(tensor) for tensor in model.base_model.parameters()}  # a projection that is tied to it too
        whole = {name for name, tensor in model.named_parameters() if id(tensor) not in encoder}
        raise (NoHeadError if whole <= {*missing} else PotstillError)(
            f"{model_is} has no complete language-model head (its weights lack {head[0]}): use the checkpoint that "
            "was pre-trained, not one made from its encoder"
        )
    raise _incomplete(missing, model_is)


def _check_surplus(report: dict[str, Any], prefix: str | None, model_is: str) -> None:
    """Refuse layers in the files that the config has no place for."""
    surplus = sorted(name for name in report["unexpected_keys"] if prefix is not None and prefix in name)
    if surplus:
        raise PotstillError(
            f"the weights of {model_is} do not fit its {CONFIG}: the config has no place for {surplus[0]}"
        )


def _incomplete(missing: list[str], model_is: str) -> PotstillError:
    return PotstillError(
        f"the weights of {model_is} are incomplete: {counted(len(missing), 'tensor')} of the model "
        f"{agreeing(len(missing), 'is', 'are')} not in its files, {missing[0]} among them"
    )


def check_vocabulary(tokenizer: PreTrainedTokenizerFast, config: PreTrainedConfig, name: str) -> None:
    """Refuse a tokenizer that can give an id for which the model has no row of embeddings.

    The largest id decides, not the number of tokens: ids may have gaps, and a model may have rows to spare. The tokens
    of the vocabulary count, those added to it, and the special tokens that frame a text or a pair or pad a batch.

    Args:
        tokenizer: of the model.
        config: of the model; a config that does not say how many tokens it knows is let pass.
        name: What the model is called in the message: "the teacher 'bert-base-uncased'".

    Raises:
        PotstillError: The tokenizer can give such an id.
    """
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if rows is None:
        return
    ids = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    ids |= {str(token): number for number, token in tokenizer.added_tokens_decoder.items() if number >= rows}
    # A post-processor numbers the tokens that it puts around a text itself, and a batch is padded by a number.
    backend = tokenizer.backend_tokenizer
    around = {*tokenizer.all_special_ids, *backend.encode("").ids, *backend.encode("", "").ids}
    around |= {backend.padding["pad_id"]} if backend.padding else set()
    beyond = {number: repr(token) for token, number in ids.items()}
    beyond |= {number: "a special token" for number in around if number >= rows and number not in beyond}
    if beyond:
        largest = max(beyond)
        raise PotstillError(
            f"{name} knows {rows} tokens, but its tokenizer gives the id {largest} ({beyond[largest]}): put the "
            "tokenizer there that it was trained with, or give the model embeddings for the added tokens "
            "(resize_token_embeddings) and train those."
        )


def _shape(size: Any) -> str:
    return "×".join(map(str, size)) or "a scalar"
