"""Uploads a finished model to the Hugging Face hub: `--push_to_hub`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi

from potstill.arguments import RunArguments
from potstill.errors import PotstillError, first_line
from potstill.live_line import say

NOT_UPLOADED = ["checkpoint-*", "checkpoint-*/**", "runs/**", ".*", "*.partial"]
"""What an output folder holds beside the finished model."""


def make_repository(args: RunArguments) -> str | None:
    """Make the repository of `--push_to_hub` before any work, unless it exists.

    Returns:
        Its full name, with that of its owner; None if nothing is to be uploaded by this process.

    Raises:
        PotstillError: the hub does not make it.
    """
    if not args.push_to_hub or args.process_index != 0:
        return None
    name = args.hub_model_id or Path(args.output_dir or "").expanduser().absolute().name
    advice = "check the network, log in with: hf auth login, check --hub_model_id, or leave --push_to_hub out"
    with _hub_errors(f"The hub did not make the repository {name}", advice):
        made = HfApi(token=args.hub_token).create_repo(name, private=args.hub_private_repo, exist_ok=True)
    return str(made.repo_id)


def upload(args: RunArguments, name: str | None, folder: Path, parts: Sequence[str] = ()) -> None:
    """Upload the finished folder of a run, and print where it is.

    Args:
        args: options of the run.
        name: of the repository, from `make_repository`. With None nothing is uploaded.
        folder: to upload.
        parts: names of files and folders in it that are not uploaded.

    Raises:
        PotstillError: the hub does not take it. The folder is complete all the same.
    """
    if name is None:
        return
    left_out = [*NOT_UPLOADED, *parts, *(f"{part}/**" for part in parts)]
    wrong = f"The model is in {folder}, but the hub did not take it as {name}"
    command = " ".join([f"hf upload {name} {folder}", *(f"--exclude '{pattern}'" for pattern in left_out)])
    with _hub_errors(wrong, f"upload it with: {command}"):
        commit = HfApi(token=args.hub_token).upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message="A model by potstill",
            revision=args.hub_revision,
            ignore_patterns=left_out,
        )
    say(f"uploaded to {commit.repo_url}")


@contextmanager
def _hub_errors(wrong: str, advice: str) -> Iterator[None]:
    try:
        yield
    except PotstillError:
        raise
    except Exception as error:  # of the HTTP library, of the hub, or of the disk
        raise PotstillError(f"{wrong} ({first_line(error)}): {advice}.") from error
