"""The verb `pretrain`: train a model by masked or causal LM alone, from scratch or grown from a shallow one."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerFast

from potstill.arguments import recipe_text
from potstill.corpus import Corpus, load_tokenizer
from potstill.errors import PotstillError
from potstill.recipe import PretrainingArguments
from potstill.student import family_of, grow, load_masked_lm
from potstill.student.family import new_model_family
from potstill.student.interface import Shape
from potstill.student.model_files import model_folder
from potstill.training.checkpoints import find_checkpoint, load_run_state
from potstill.training.compile_workers import start_compile_workers
from potstill.training.growth import grow_checkpoint
from potstill.training.hub import upload
from potstill.training.output import claimed_output_dir, write_output
from potstill.training.run_record import model_fingerprint
from potstill.training.trainer import DistillationTrainer
from potstill.wording import counted


def pretrain(args: PretrainingArguments) -> Path:
    """Train a model by masked LM, or causal LM, over a prepared corpus, and write its folder.

    With `grow`, training starts with the first depth. At each of the shares `grow_at` of its steps or minutes it
    continues with the next depth, made by copying layers ("stacking", Gong et al. 2019). To grow, the run saves a
    checkpoint of the shallow model, turns it into one of the deeper model, optimiser state included, and resumes from
    it. So an interruption before or after the growth gives the same result.

    Args:
        args: at least `corpus` and `output_dir`.

    Returns:
        The model's folder.

    Raises:
        PotstillError: bad input. Where possible, it is found before anything is written.
        TrainingInterrupted: a signal ended training. The run can be resumed from its checkpoint.
    """
    if not args.corpus:
        raise PotstillError("--corpus is missing: name a folder written by `potstill prepare`.")
    new_model_family(args.model_type)
    depths, shares = args.depths(), [*args.growth_shares(), 1.0]
    with claimed_output_dir(args) as folder:
        corpus = Corpus.open(args.corpus)
        tokenizer = load_tokenizer(args.tokenizer) if args.tokenizer else corpus.tokenizer()
        corpus.check_tokenizer(tokenizer, args.tokenizer or "the tokenizer of the corpus")
        start_compile_workers(args)

        checkpoint = None
        if args.resume_from_checkpoint:
            checkpoint = find_checkpoint(args.resume_from_checkpoint, args.output_dir)
            depth = AutoConfig.from_pretrained(checkpoint).num_hidden_layers
            if depth not in depths:
                raise PotstillError(
                    f"{checkpoint} has {counted(depth, 'layer')}, which is not one of the depths {depths} of this "
                    "run: give the --grow that the run began with."
                )
            done = depths.index(depth)
            depths, shares = depths[done:], shares[done:]

        recipe, evaluate_at_start = recipe_text("pretrain", args), args.eval_on_start
        model = initial_model(args, depths[0], len(tokenizer), tokenizer.pad_token_id, *ends(tokenizer))
        for depth, share in zip(depths, shares, strict=True):
            if checkpoint is not None and share < 1 and load_run_state(checkpoint)["progress"] >= share:
                continue  # saved at exactly the step at which the model grows
            model = grow(model, depth)
            trainer = DistillationTrainer(model, corpus, args, processing_class=tokenizer, stop_at=share)
            if checkpoint is not None and AutoConfig.from_pretrained(checkpoint).num_hidden_layers < depth:
                grow_checkpoint(checkpoint, trainer)
            trainer.recipe = recipe
            if args.model:
                trainer.sources["model"] = model_fingerprint(model_folder(args.model, "model"))
            trainer.train(resume_from_checkpoint=checkpoint)
            checkpoint = trainer.checkpoint_folder()
            args.eval_on_start = False  # a growth is not the start of a run
        args.eval_on_start = trainer.args.eval_on_start = evaluate_at_start
        write_output(trainer, folder)
        upload(args, trainer.hub_model_id, folder)
    return folder


def initial_model(
    args: PretrainingArguments,
    depth: int,
    vocabulary: int,
    pad_token_id: int | None,
    bos_token_id: int | None = None,
    eos_token_id: int | None = None,
) -> PreTrainedModel:
    """Return the model that training starts with: with random weights from the seed, or with those of `args.model`.

    Args:
        args: options of the run, which describe the model.
        depth: number of layers.
        vocabulary: number of entries in the vocabulary.
        pad_token_id: id of the padding token in the tokenizer.
        bos_token_id: id of the token that begins a text, if there is one.
        eos_token_id: id of the token that ends a text, if there is one.

    Raises:
        PotstillError: the model does not exist, or a model of such a shape is not possible.
    """
    if args.model:
        model = load_masked_lm(args.model, role="model")
        if model.config.num_hidden_layers > depth:
            raise PotstillError(
                f"--model {args.model} has {counted(model.config.num_hidden_layers, 'layer')}, more than the {depth} "
                "asked for: set --num_hidden_layers."
            )
        if args.dropout is not None:
            for name in family_of(model).dropouts:  # `grow` makes new layers from the config
                setattr(model.config, name, args.dropout)
        return model
    heads = args.num_attention_heads or max(1, args.hidden_size // 64)
    if args.hidden_size % heads:
        raise PotstillError(
            f"--hidden_size {args.hidden_size} is not a multiple of --num_attention_heads {heads}: change one of them."
        )
    family = new_model_family(args.model_type)
    shape = Shape(
        vocab_size=vocabulary,
        hidden_size=args.hidden_size,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=args.intermediate_size or 4 * args.hidden_size,
        usable_length=args.max_position_embeddings,
        dropout=0.1 if args.dropout is None else args.dropout,
        pad_token_id=pad_token_id,
        bos_token_id=bos_token_id,
        eos_token_id=eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        return family.auto_class.from_config(family.new_config(shape))


def ends(tokenizer: PreTrainedTokenizerFast) -> tuple[int | None, int | None]:
    """Return the ids of the tokens that begin and end a text: BOS and EOS, or else CLS and SEP."""
    begin = tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    return begin, end
