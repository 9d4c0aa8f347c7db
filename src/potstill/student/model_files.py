"""The files of a model: where its folder is, and what rules it out before anything is built."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError

from potstill.errors import PotstillError, first_line
from potstill.hub_access import hub_or_cache
from potstill.json_files import parse_json
from potstill.small_files import check_model_folder, check_parts, read_small
from potstill.student.pruned import register_of
from potstill.student.task_models import only_for_tasks
from potstill.student.weights import INDEX
from potstill.student.weights import WEIGHTS as WEIGHTS_FILE

CONFIG = "config.json"
WEIGHTS = (WEIGHTS_FILE, INDEX)
WEIGHT_SHARDS = "model-*-of-*.safetensors"
CARD = "README.md"  # its licence is carried over to the student's card
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def model_folder(name_or_path: str, role: str, also: Sequence[str] = ()) -> Path:
    """The folder itself, or the local copy of what the hub has under this name.

    Args:
        name_or_path: A folder or a hub name.
        role: What the model is to the user, for messages.
        also: Patterns of files that are fetched from the hub beside the config and the weights.
    """
    if not name_or_path.strip():
        raise PotstillError(f"the {role} is an empty name: give a model folder or a hub name")
    path = Path(os.path.expanduser(name_or_path))
    if path.is_dir():
        return path
    if path.is_file():
        raise PotstillError(f"the {role} {name_or_path!r} is a file: give the model's folder, which holds {CONFIG}")
    if path.is_absolute() or name_or_path[0] in ".~" or name_or_path.count("/") > 1:
        raise PotstillError(f"the {role} folder {name_or_path!r} does not exist: give a model folder or a hub name")
    try:
        with hub_or_cache():
            return Path(snapshot_download(name_or_path, allow_patterns=[CONFIG, CARD, *WEIGHTS, WEIGHT_SHARDS, *also]))
    except RepositoryNotFoundError as error:
        raise PotstillError(
            f"the {role} {name_or_path!r} is neither a folder here nor a model on the Hugging Face hub that you may "
            "read: check the name, or log in to the hub"
        ) from error
    except (OSError, ValueError) as error:
        raise PotstillError(
            f"the {role} {name_or_path!r} is not a folder here, and the Hugging Face hub did not give it: check the "
            f"name and the network, or download it elsewhere and give its folder ({first_line(error)})"
        ) from error


def check_model_files(folder: Path, model_is: str) -> dict[str, Any]:
    """Refuse, before anything is built, what the file names and the raw config already rule out; return the latter."""
    if (folder / "adapter_config.json").is_file():
        raise PotstillError(f"{model_is} holds an adapter: merge it into the model it was trained on and give that")
    file = folder / CONFIG
    if not file.is_file():
        raise PotstillError(f"{model_is} has no {CONFIG}: give the folder that a transformers model was saved to")
    check_model_folder(folder)
    try:
        content = read_small(file)
    except OSError as error:
        raise PotstillError(f"the {CONFIG} of {model_is} cannot be read: {error.strerror}") from error
    config = parse_json(content, f"the {CONFIG} of {model_is}", "restore it", finite=False)
    if not isinstance(config, dict):
        raise PotstillError(f"the {CONFIG} of {model_is} is not a JSON object: restore it")
    check_parts(config, f"the {CONFIG} of {model_is}")
    # Even where the model type is a known one: such a model computes something else under a familiar name.
    if config.get("auto_map"):
        raise PotstillError(
            f"{model_is} asks for code of its own (auto_map in {CONFIG}), which potstill never runs: "
            "use a model whose architecture is part of transformers"
        )
    if config.get("quantization_config"):
        how = config["quantization_config"]
        method = how.get("quant_method") if isinstance(how, dict) else None
        raise PotstillError(
            f"{model_is} is quantised{f' ({method})' if method else ''}: give the checkpoint in float that it was made "
            "from"
        )
    if not any((folder / name).is_file() for name in WEIGHTS):
        if any(any(folder.glob(pattern)) for pattern in PICKLES):
            raise PotstillError(
                f"{model_is} has only pickled weights, which can run code when they are read: convert them to "
                "safetensors (load the model in transformers where you trust it, then save_pretrained)"
            )
        raise PotstillError(f"{model_is} has no weights: there is no {' or '.join(WEIGHTS)}")
    register_of(config)
    return config


def refuse_task_models(config: dict[str, Any], model_is: str) -> None:
    """Refuse a model of potstill's own that only does a task.

    Raises:
        PotstillError: the config is of such a model.
    """
    reason = only_for_tasks(config.get("model_type"))
    if reason is not None:
        raise PotstillError(f"{model_is} cannot be used: it {reason}")
