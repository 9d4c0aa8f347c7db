"""What the folder of a sentence encoder says, in the files of sentence-transformers; it names classes, and none is run.

A folder without `modules.json` is that of a model alone: its embeddings are the normalised mean.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from potstill.errors import PotstillError
from potstill.json_files import read_json, read_object
from potstill.sentences.pooling import Pooling

MODULES = "modules.json"
SETTINGS = "config_sentence_transformers.json"
TRANSFORMER = "sentence_bert_config.json"

FETCHED = (
    *(MODULES, SETTINGS, "sentence_*_config.json", "*/config.json", "*/model*.safetensors"),
    *("*tokenizer*.json", "*vocab.*", "*special_tokens_map.json", "*added_tokens.json", "*merges.txt", "*.model"),
)
"""What is fetched from the hub beside the model itself."""

ANOTHER_MODEL = ("config_args", "config_kwargs", "tokenizer_args", "processor_kwargs", "processing_kwargs")
"""Keys of the Transformer module with options that would make another model or other tokens of the same files."""

_KINDS = ("Transformer", "Pooling", "Dense", "Normalize")
_ADVICE = "restore it"


@dataclass(frozen=True)
class Layout:
    """What is in the folder of a sentence encoder.

    Attributes:
        transformer: folder of the model and its tokenizer.
        pooling: how it pools.
        pooled_size: width of the hidden states that the pooling asks for; None if it does not say.
        dense: name, folder and config of each Dense module.
        normalize: whether embeddings have length 1.
        max_seq_length: tokens that a text is cut to; None if that is left to the tokenizer and the model.
        lower_case: whether texts are lower-cased whatever the tokenizer does.
        prompts: name → the text that is put in front of a text.
        default_prompt_name: the prompt that is used if none is asked for.
        similarity_fn_name: how embeddings are compared; None if it does not say.
        stated: whether there is a `modules.json`.
    """

    transformer: Path
    pooling: Pooling = field(default_factory=Pooling)
    pooled_size: int | None = None
    dense: tuple[tuple[str, Path, dict[str, Any]], ...] = ()
    normalize: bool = True
    max_seq_length: int | None = None
    lower_case: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity_fn_name: str | None = "cosine"
    stated: bool = False


def read_layout(folder: Path, model_is: str) -> Layout:
    """Read what the folder of an encoder says of its modules.

    Args:
        folder: of the encoder, here.
        model_is: what it is called in messages: "the teacher 'x'".

    Raises:
        PotstillError: a file is damaged; a module is of an unknown kind, has code of its own, is missing, or comes in
            another order than Transformer, Pooling, Dense, Normalize; an option asks for what potstill does not
            compute.
    """
    if not (folder / MODULES).is_file():
        return Layout(folder)
    modules = _modules(folder, model_is)
    (_, transformer), (name, pooling) = modules[0][1:], modules[1][1:]
    where = f"the module {name} of {model_is}"
    config = _config(pooling, where)
    size = config.get("embedding_dimension", config.get("word_embedding_dimension"))
    dense = []
    for kind, name, path in modules[2:]:
        is_dense = kind == "Dense"
        module_config = _config(path, f"the module {name} of {model_is}", needed=is_dense)
        for key in ("module_input_name", "module_output_name"):
            if module_config.get(key) not in (None, "sentence_embedding"):
                raise PotstillError(
                    f"the module {name} of {model_is} works on {module_config[key]!r} ({key}) and not on the sentence "
                    "embedding, which potstill does not compute: use another encoder"
                )
        if is_dense:
            dense.append((name, path, module_config))
    return Layout(
        transformer,
        Pooling.from_config(config, where),
        size if type(size) is int else None,
        tuple(dense),
        normalize=modules[-1][0] == "Normalize",
        **_transformer_settings(transformer, model_is),
        **_settings(folder, model_is),
        stated=True,
    )


def has_pooling(folder: Path) -> bool:
    """Return whether a folder is one of sentence-transformers that pools: a sentence encoder, and not a cross-encoder.

    Raises:
        PotstillError: its list of modules cannot be read.
    """
    if not (folder / MODULES).is_file():
        return False
    listed = read_json(folder / MODULES, "The list of modules", _ADVICE)
    modules = [module for module in listed if isinstance(module, dict)] if isinstance(listed, list) else []
    return any(str(module.get("type")).rpartition(".")[2] == "Pooling" for module in modules)


def _modules(folder: Path, model_is: str) -> list[tuple[str, str, Path]]:
    """Return kind, name and folder of each module, in an order that potstill computes."""
    wrong = f"the {MODULES} of {model_is}"
    listed = read_json(folder / MODULES, f"the list of modules of {model_is},", _ADVICE)
    if not isinstance(listed, list) or not all(isinstance(module, dict) for module in listed):
        raise PotstillError(f"{wrong} is not a list of modules: {_ADVICE}")
    found = []
    for module in listed:
        path, kind = module.get("path"), module.get("type")
        if not isinstance(path, str) or not isinstance(kind, str):
            raise PotstillError(f"{wrong} has a module without a path or a type: {_ADVICE}")
        name = kind.rpartition(".")[2]
        if not kind.startswith("sentence_transformers."):
            raise PotstillError(
                f"{wrong} names code of its own ({kind}), which potstill never runs: use an encoder made of the "
                f"modules {', '.join(_KINDS)}"
            )
        if name not in _KINDS:
            raise PotstillError(
                f"{wrong} names a module of a kind that potstill does not know ({name}): use an encoder made of the "
                f"modules {', '.join(_KINDS)}"
            )
        parts = PurePosixPath(path)
        if parts.is_absolute() or ".." in parts.parts or "\0" in path:
            raise PotstillError(
                f"{wrong} names the folder {path!r}, which does not lie in that of the encoder: correct it"
            )
        # Nothing is written for a Normalize, and neither git nor the hub keeps an empty folder.
        if name != "Normalize" and not (folder / path).is_dir():
            raise PotstillError(
                f"{model_is} is incomplete: its {MODULES} names the folder {path}, which is not there; copy or "
                "download it again"
            )
        found.append((name, path or name, folder / path))
    kinds = [kind for kind, *_ in found]
    known = ["Transformer", "Pooling", *["Dense"] * kinds.count("Dense"), "Normalize"]
    if kinds not in (known, known[:-1]):
        raise PotstillError(
            f"{wrong} has the modules {', '.join(kinds) or 'of nothing'}: potstill computes Transformer, Pooling, any "
            "number of Dense and at most one Normalize, in this order"
        )
    return found


def _config(folder: Path, where: str, needed: bool = True) -> dict[str, Any]:
    file = folder / "config.json"
    if not needed and not file.is_file():
        return {}
    return read_object(file, f"the config of {where},", _ADVICE)


def _transformer_settings(folder: Path, model_is: str) -> dict[str, Any]:
    # Older versions put the architecture into the name of the file.
    files = [folder / TRANSFORMER, *sorted(folder.glob("sentence_*_config.json"))]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return {}
    config = read_object(file, f"the settings of {model_is},", _ADVICE)
    wrong = f"{file.name} of {model_is}"
    for key in ANOTHER_MODEL:
        if config.get(key):
            raise PotstillError(
                f"{wrong} loads the model with options of its own ({key}), which potstill does not do: use an encoder "
                "without them"
            )
    task = config.get("transformer_task", "feature-extraction")
    if task != "feature-extraction":
        raise PotstillError(f"{wrong} is for the task {task!r}: give an encoder, whose task is feature-extraction")
    length = config.get("max_seq_length")
    if length is not None and (type(length) is not int or length < 1):
        raise PotstillError(f"{wrong} has the max_seq_length {length!r}, which is no number of tokens: correct it")
    return {"max_seq_length": length, "lower_case": bool(config.get("do_lower_case"))}


def _settings(folder: Path, model_is: str) -> dict[str, Any]:
    if not (folder / SETTINGS).is_file():
        return {"similarity_fn_name": None}
    config = read_object(folder / SETTINGS, f"the settings of {model_is},", _ADVICE)
    wrong = f"the {SETTINGS} of {model_is}"
    kind = config.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise PotstillError(f"{model_is} is a {kind} and not a sentence encoder")
    if config.get("truncate_dim") is not None:
        raise PotstillError(f"{wrong} shortens embeddings (truncate_dim), which potstill does not do: remove the key")
    # Newer versions write prompts that are empty or null where there is none.
    prompts = config.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise PotstillError(f"{wrong} has prompts that are no texts: correct them")
    default = config.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise PotstillError(f"{wrong} names the default prompt {default!r}, which is not among its prompts: correct it")
    return {
        "prompts": {name: text or "" for name, text in prompts.items()},
        "default_prompt_name": default,
        "similarity_fn_name": config.get("similarity_fn_name"),
    }
