"""The student that a run trains, made from its teacher by the options of the run."""

from __future__ import annotations

import torch
from torch import Tensor

from potstill.corpus import Corpus
from potstill.errors import PotstillError
from potstill.recipe import DistillationArguments
from potstill.sentences.embedding_size import add_dense
from potstill.sentences.encoder import SentenceEncoder
from potstill.sentences.student import build_sentence_student
from potstill.sentences.trainer import attended_length, row_format
from potstill.student.build import initialised_from
from potstill.student.layers import AUTO
from potstill.student.sizing import Beside, Estimate, safetensors_bytes
from potstill.student.vocabulary_pruning import prune_embeddings
from potstill.training.new_student import choose_sizes

MEASURED_BLOCKS = 64
"""Blocks of the corpus on whose texts the importance of heads, neurons and dimensions is measured."""


FITTED_BLOCKS = 512
"""Blocks of the corpus on whose texts a Dense module is fitted before training."""


def load_sentence_teacher(name: str, corpus: Corpus) -> SentenceEncoder:
    """Load a teacher, and cut its vocabulary if that of the corpus is cut.

    Args:
        name: folder or hub name.
        corpus: the texts that it is to read.

    Raises:
        PotstillError: there is no such encoder, or the corpus was prepared with another tokenizer.
    """
    teacher = SentenceEncoder.load(name)
    kept = corpus.cut_needed(teacher.tokenizer, name)
    if kept is not None:
        teacher.model, teacher.tokenizer = prune_embeddings(teacher.model, kept), corpus.tokenizer()
    return teacher


def choose_sentence_sizes(
    args: DistillationArguments, teacher: SentenceEncoder, corpus: Corpus
) -> tuple[dict[str, int | None], Estimate | None]:
    """Do what `choose_sizes` does, for a sentence encoder: its Dense modules count, and texts are short.

    Args:
        args: options of the run.
        teacher: with the vocabulary of the corpus.
        corpus: what the student will be trained on.

    Raises:
        PotstillError: no student keeps to `max_size`, or it does not count the Dense module of `embedding_size`.
    """
    if args.max_size is not None and args.embedding_size is not None:
        raise PotstillError("--max_size does not count the Dense module of --embedding_size: leave one of them out.")
    shapes = [{name: tuple(tensor.shape) for name, tensor in part.state_dict().items()} for part in teacher.dense]
    parameters = sum(parameter.numel() for parameter in teacher.dense.parameters())
    beside = Beside(parameters, sum(map(safetensors_bytes, shapes)))
    length = attended_length(corpus, row_format(corpus, teacher)) if args.max_size is not None else None
    return choose_sizes(args, teacher.model, corpus, length, beside, reads_width=bool(len(teacher.dense)))


def new_sentence_student(
    args: DistillationArguments, teacher: SentenceEncoder, corpus: Corpus, sizes: dict[str, int | None]
) -> SentenceEncoder:
    """Make the student that the options describe.

    Args:
        args: options of the run. Without `layers`, or with `auto`, layers are copied by the rule `alternate`.
        teacher: with the vocabulary of the corpus.
        corpus: what the student will be trained on.
        sizes: from `choose_sentence_sizes`.

    Raises:
        PotstillError: there is no such student.
    """
    student = build_sentence_student(
        teacher,
        layers="alternate" if args.layers in (None, AUTO) else args.layers,
        initialise=args.initialise,
        seed=args.seed,
        narrow_by=args.narrow_by,
        texts=beginnings(corpus, teacher),
        **sizes,
    )
    if args.embedding_size is not None:
        texts = beginnings(corpus, teacher, FITTED_BLOCKS) if args.initialise == "teacher" else None
        with initialised_from(args.seed):
            add_dense(student, teacher, args.embedding_size, texts)
    return student


def beginnings(corpus: Corpus, encoder: SentenceEncoder, blocks: int | None = None) -> Tensor:
    """Return (N, L) token ids, each row the beginning of a text. L is the median length of some texts.

    The texts are those of some blocks that are spread evenly over the training split.
    """
    number = min(blocks or MEASURED_BLOCKS, len(corpus.train))
    chosen = torch.linspace(0, len(corpus.train) - 1, number).round().long().tolist()
    ids = corpus.train.__getitems__(chosen)["input_ids"]
    ids = ids[ids != encoder.tokenizer.pad_token_id]
    begins = (ids == encoder.tokenizer.cls_token_id).nonzero().flatten()
    lengths = torch.diff(begins, append=torch.tensor([len(ids)]))
    length = int(lengths.median())
    return ids[begins[lengths >= length][:, None] + torch.arange(length)]
