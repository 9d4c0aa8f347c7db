"""Uploads a finished model to the Hugging Face hub: `--push_to_hub`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi
from transformers import Trainer

from potstill.errors import PotstillError, first_line

NOT_UPLOADED = ["checkpoint-*", "checkpoint-*/**", "runs/**", ".*", "*.partial"]
"""What an output folder holds beside the finished model."""


def upload(trainer: Trainer, folder: Path) -> None:
    """Upload the finished folder of a run if `--push_to_hub` is given, and print where it is.

    Raises:
        PotstillError: the hub does not take it. The folder is complete all the same.
    """
    args = trainer.args
    if not args.push_to_hub or not trainer.is_world_process_zero():
        return
    name = str(trainer.hub_model_id)
    wrong = f"The model is in {folder}, but the hub did not take it as {name}"
    with _hub_errors(wrong, f"upload it with: hf upload {name} {folder}"):
        commit = HfApi(token=args.hub_token).upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message="A model by potstill",
            revision=args.hub_revision,
            ignore_patterns=NOT_UPLOADED,
        )
    print(f"uploaded to {commit.repo_url}", file=sys.stderr, flush=True)


@contextmanager
def repository_errors(name: str) -> Iterator[None]:
    """Turn an error of the hub about a new repository into a `PotstillError`, before any training."""
    advice = "log in with: hf auth login, check --hub_model_id, or leave --push_to_hub out"
    with _hub_errors(f"The hub did not make the repository {name}", advice):
        yield


@contextmanager
def _hub_errors(wrong: str, advice: str) -> Iterator[None]:
    try:
        yield
    except PotstillError:
        raise
    except Exception as error:  # of the HTTP library, of the hub, or of the disk
        raise PotstillError(f"{wrong} ({first_line(error)}): {advice}.") from error
