"""The verb `distill`: the corpus decides whether a language model or a sentence encoder is distilled."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

from potstill.corpus import Manifest
from potstill.imports import quick_imports
from potstill.recipe import DistillationArguments

logger = logging.getLogger(__name__)


def distill(args: DistillationArguments) -> Path:
    """Distil a teacher into a shallower student over a prepared corpus, and write the student's folder.

    A corpus of blocks of running text is for a language model, or for an encoder that is to be fine-tuned: see
    `distill_language_model`. A corpus of whole texts, prepared with `--unit`, is for a sentence encoder: see
    `distill_sentences`.

    Args:
        args: at least `teacher`, `corpus` and `output_dir`.

    Returns:
        The student's folder.

    Raises:
        PotstillError: bad input, reported before anything is written if possible.
        TrainingInterrupted: a signal ended training. It can be resumed from the checkpoint.
    """
    # Here, because the two kinds import much, and only one of them is needed.
    if args.teachers and args.corpus and Manifest.load(Path(args.corpus).expanduser()).unit != "blocks":
        with quick_imports():
            from potstill.sentences.distill import distill_sentences
        return distill_sentences(args)
    for name in args.teachers:
        if (Path(name).expanduser() / "modules.json").is_file():
            logger.warning(
                "The teacher %s is a sentence encoder, and the corpus holds blocks: its hidden states and attention "
                "are distilled, into an encoder for fine-tuning. A corpus prepared with --unit sentences would distil "
                "its embeddings.",
                name,
            )
            args = copy.copy(args)
            args.headless = True
    with quick_imports():
        from potstill.training.distill import distill_language_model
    return distill_language_model(args)
