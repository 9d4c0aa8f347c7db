"""The verb `distill`: a teacher and a corpus in, a student folder out."""

from __future__ import annotations

from pathlib import Path

from potstill.arguments import recipe_text
from potstill.corpus import Corpus, load_tokenizer
from potstill.corpus.tokenizer import drop_token_types
from potstill.errors import PotstillError
from potstill.recipe import DistillationArguments
from potstill.student import build_student, load_masked_lm, takes_token_types
from potstill.training.chosen_layers import decide_layers
from potstill.training.compatibility import objective_of
from potstill.training.output import claimed_output_dir, write_output
from potstill.training.trainer import DistillationTrainer


def distill(args: DistillationArguments) -> Path:
    """Distil a teacher into a shallower student over a prepared corpus, and write the student's folder.

    The folder loads with `AutoTokenizer`, with `AutoModelForMaskedLM` and `pipeline("fill-mask")`, or for a causal
    model with `AutoModelForCausalLM` and `pipeline("text-generation")`. It also contains a model card, the full
    recipe as YAML and the measured results.

    Args:
        args: at least `teacher`, `corpus` and `output_dir`.

    Returns:
        The student's folder.

    Raises:
        PotstillError: bad input. Where possible, it is found before anything is written.
        TrainingInterrupted: a signal ended training. The run can be resumed from its checkpoint.
    """
    if not args.teacher or not args.corpus:
        missing = "--teacher" if not args.teacher else "--corpus"
        raise PotstillError(f"{missing} is missing: distillation needs a teacher and a prepared corpus.")
    objective_of(args)
    with claimed_output_dir(args) as folder:
        corpus = Corpus.open(args.corpus)
        tokenizer = load_tokenizer(args.teacher, role="teacher")
        corpus.check_tokenizer(tokenizer, args.teacher)  # before the teacher's weights are downloaded
        teacher = load_masked_lm(args.teacher)
        args, search = decide_layers(args, teacher, corpus)
        student = build_student(
            teacher,
            args.num_hidden_layers,
            args.layers or "alternate",
            args.initialise,
            args.fold_token_types,
            args.seed,
        )
        if not takes_token_types(student.config):
            drop_token_types(tokenizer)
        recipe = recipe_text("distill", args)
        trainer = DistillationTrainer(student, corpus, args, teacher, processing_class=tokenizer)
        trainer.recipe = recipe
        trainer.layer_search = None if search is None else search.record()
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        write_output(trainer, folder)
    return folder
