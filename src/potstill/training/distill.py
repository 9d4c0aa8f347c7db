"""Distil a language model, or an encoder without a head: a teacher and a corpus in, a student folder out."""

from __future__ import annotations

import copy
from pathlib import Path

from potstill.arguments import recipe_text
from potstill.corpus import Corpus
from potstill.corpus.tokenizer import drop_token_types
from potstill.errors import PotstillError
from potstill.precision.simulated import simulate
from potstill.recipe import DistillationArguments
from potstill.student import family_of, is_headless, takes_token_types
from potstill.training.chosen_layers import decide_layers
from potstill.training.compatibility import ensemble_of, objective_of
from potstill.training.compile_workers import start_compile_workers
from potstill.training.encoder_options import (
    OF_LANGUAGE_MODELS,
    check_no_masking,
    check_no_sentence_options,
    check_options,
    default_losses,
)
from potstill.training.hub import upload
from potstill.training.new_student import choose_sizes, new_student
from potstill.training.output import claimed_output_dir, write_output
from potstill.training.parts import load_teachers
from potstill.training.trainer import DistillationTrainer


def distill_language_model(args: DistillationArguments) -> Path:
    """Distil a teacher into a shallower or narrower student over a prepared corpus, and write the student's folder.

    With several teachers the student learns from their mean, and is built from the first one.

    The folder loads with `AutoTokenizer`, with `AutoModelForMaskedLM` and `pipeline("fill-mask")`, or for a causal
    model with `AutoModelForCausalLM` and `pipeline("text-generation")`. It also contains a model card, the full
    recipe as YAML and the measured results. The student of a teacher without a head is an encoder, which `AutoModel`
    loads and `finetune` fine-tunes.

    Args:
        args: at least `teacher`, `corpus` and `output_dir`.

    Returns:
        The student's folder.

    Raises:
        PotstillError: bad input. Where possible, it is found before anything is written.
        TrainingInterrupted: a signal ended training. The run can be resumed from its checkpoint.
    """
    check_no_sentence_options(args)
    if not args.teachers or not args.corpus:
        missing = "--teacher" if not args.teachers else "--corpus"
        raise PotstillError(f"{missing} is missing: distillation needs a teacher and a prepared corpus.")
    objective_of(args)
    ensemble_of(args, len(args.teachers))
    with claimed_output_dir(args) as folder:
        corpus = Corpus.open(args.corpus)
        start_compile_workers(args)
        teachers, tokenizer = load_teachers(args.teachers, corpus, args.trim_vocabulary, args.headless)
        args = copy.copy(args)
        args.headless = is_headless(teachers[0])
        if args.headless:
            check_options(args)
        elif family_of(teachers[0]).causal:
            check_no_masking(args)
        sizes, estimate = choose_sizes(args, teachers[0], corpus)
        args, search = decide_layers(args, teachers, corpus, tokenizer, sizes)
        student = new_student(args, teachers[0], corpus, sizes)
        if args.quantization is not None:
            simulate(student, args.quantization, every_token=True)
        if not takes_token_types(student.config):
            drop_token_types(tokenizer)
        if args.headless and args.losses is None:
            args.losses = default_losses([teacher.config for teacher in teachers], student.config)
        recipe = recipe_text("distill", args, OF_LANGUAGE_MODELS if args.headless else ())
        trainer = DistillationTrainer(student, corpus, args, teachers, processing_class=tokenizer)
        trainer.recipe = recipe
        trainer.layer_search = None if search is None else search.record()
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        write_output(trainer, folder, estimate)
        upload(args, trainer.hub_model_id, folder)
    return folder
