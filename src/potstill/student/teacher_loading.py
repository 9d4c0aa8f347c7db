"""Loading a teacher: a language model, or an encoder if there is no language-model head."""

from __future__ import annotations

import logging
import os

from transformers import PreTrainedModel

from potstill.student.family import family_of_type
from potstill.student.loading import NoHeadError, checked_model, load_headless, load_masked_lm
from potstill.student.model_files import check_model_files, model_folder

logger = logging.getLogger(__name__)


def load_teacher(
    name_or_path: str | os.PathLike[str], role: str = "teacher", headless: bool = False
) -> PreTrainedModel:
    """Load a language model, or an encoder alone if its files hold no language-model head. A log line says so.

    Args:
        name_or_path: a model folder, or a model's name on the Hugging Face hub.
        role: what the model is to the user, for messages.
        headless: load the encoder alone, whatever head there is.

    Returns:
        The model on the CPU, in float32 and in evaluation mode.

    Raises:
        PotstillError: see `load_masked_lm`. A part of a head is an error too: its files may be damaged.
    """
    name = os.fspath(name_or_path)
    if not headless:
        try:
            return load_masked_lm(name, role)
        except NoHeadError:
            logger.warning(
                "The %s %r has no language-model head: its hidden states and its attention are distilled, and the "
                "student has no head either.",
                role,
                name,
            )
    folder, model_is = model_folder(name, role), f"the {role} {name!r}"
    family = family_of_type(check_model_files(folder, model_is).get("model_type"))
    return checked_model(load_headless(folder, model_is), family, name, model_is)
