"""From text to a teacher: a vocabulary, blocks, and a BERT of 12 layers pre-trained by masked LM.

    python -m reproduce.teacher --text 'text/*.jsonl.zst' --minutes 80
    python -m reproduce.teacher --text 'text/*.jsonl.zst' --minutes 60 --continue_from DIR --work_dir second/

It starts with 3 layers and grows to 6 and 12 by copying them, because a BERT that starts with 12 layers stays on a
plateau for hours. Nine steps of ten read blocks of 128 tokens and one reads blocks of 512, the same shares as in BERT's
two phases. `--continue_from` starts from the weights of an earlier session, with a new optimiser and a short warm-up.
"""

from __future__ import annotations

import json
import shutil
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from potstill.corpus import Corpus, load_tokenizer
from potstill.corpus.reading import DocumentReader, ReadingOptions
from potstill.corpus.sources import find_sources
from potstill.errors import PotstillError
from potstill.files import complete_folder, write_text
from reproduce.common import Place, named_values, new_parser, place_of, run, write_result
from reproduce.held_out import held_out
from reproduce.runs import Done, Job, run_job
from reproduce.training import (
    HISTORY,
    add_lengths,
    corpus_figures,
    cut_short,
    figures,
    model_figures,
    running_options,
    sessions_of,
)

SAMPLED_DOCUMENTS = 5000


def main(argv: list[str]) -> None:
    """Prepare the text, pre-train, and measure the teacher on held-out text at both block lengths."""
    parser = new_parser(__doc__, minutes=80)
    parser.add_argument("--text", nargs="+", help="text, as for `potstill prepare`")
    parser.add_argument("--corpus", type=Path, help="prepared blocks, instead of --text")
    parser.add_argument("--other_text", nargs="+", help="text of another source, only for evaluation")
    parser.add_argument(
        "--prepare_options", nargs="*", default=[], metavar="NAME=VALUE", help="more options for `prepare`"
    )
    parser.add_argument("--vocab_size", type=int, default=30522)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden_size", type=int, default=768)
    parser.add_argument("--grow", default="3,6,12", help="depths to grow through")
    parser.add_argument("--grow_at", default="0.1,0.25", help="shares of the time at which to grow")
    parser.add_argument("--block_size", type=int, default=512, help="tokens of a block, and positions of the teacher")
    add_lengths(parser)
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--dropout", type=float, default=0.0, help="dropout of a new model")
    parser.add_argument("--continue_from", type=Path, help="folder of the teacher of an earlier session")
    options, more = parser.parse_known_args(argv)
    place = place_of(options, more)
    if (options.text is None) == (options.corpus is None):
        raise PotstillError("Give either --text to prepare, or --corpus with blocks that are prepared already.")
    if options.corpus and options.prepare_options:
        raise PotstillError("--prepare_options are for --text: the blocks of --corpus are prepared already.")
    corpora = _prepare(place, options)
    size = Corpus.open(corpora["own"]).train.block_size
    trained = _pretrain(place, options, corpora["own"], size)
    earlier = sessions_of(options.continue_from) if options.continue_from else []
    stage = {"block_size": size, **cut_short(corpora["own"], options), **figures(trained)}
    sessions = [*earlier, {"stages": [stage], "continued": bool(options.continue_from)}]
    teacher = place.teacher
    _publish(trained.folder, teacher, sessions)

    measured = held_out({"teacher": teacher}, teacher, corpora, place, options.short_block_size)["teacher"]
    write_result(
        place,
        "teacher",
        {
            "teacher": model_figures(teacher),
            "parameters": stage["parameters"],
            "corpus": corpus_figures(corpora["own"]),
            "other": corpus_figures(corpora["other"]) if options.other_text else None,
            "tokens_per_word": _tokens_per_word(options.text, place) if options.text else None,
            "sessions": sessions,
            "held_out": {
                where: {name: found[name] for name in ("loss", "accuracy")} for where, found in measured.items()
            },
        },
    )


def _prepare(place: Place, options: Any) -> dict[str, Path]:
    """Write the blocks, and those of the other text, with one vocabulary. Return their folders.

    If an earlier session left blocks in the work folder for the tokenizer of its teacher, they are used unchanged.
    """
    corpora = {"own": options.corpus or place.blocks(options.block_size)}
    if options.corpus:
        Corpus.open(options.corpus)  # report errors before the other text is prepared
    if options.other_text:
        corpora["other"] = place.work / "blocks-other"
    if options.continue_from:
        existing = [folder for folder in corpora.values() if folder.is_dir()]
        tokenizer = load_tokenizer(str(options.continue_from))
        for folder in existing:
            Corpus.open(folder).check_tokenizer(tokenizer, str(options.continue_from))
        if len(existing) == len(corpora):
            return corpora
    if not options.corpus:
        vocabulary = {"train_tokenizer": True, "vocab_size": options.vocab_size}
        if options.continue_from:
            vocabulary = {"tokenizer": options.continue_from}
        extra = named_values(options.prepare_options, "--prepare_options")
        run_job(_preparing(corpora["own"], options.block_size, options.text, vocabulary | extra), place)
    if options.other_text:
        # Every corpus must have training blocks. Nothing trains on these, so they are only a tenth of the text.
        other = {"tokenizer": corpora["own"] / "tokenizer", "validation_fraction": 0.9}
        size = Corpus.open(corpora["own"]).train.block_size
        run_job(_preparing(corpora["other"], size, options.other_text, other), place)
    return corpora


def _preparing(folder: Path, size: int, text: list[str], options: dict[str, Any]) -> Job:
    return Job(folder.name, "prepare", {"text": text, "block_size": size, **options}, distributed=False)


def _pretrain(place: Place, options: Any, corpus: Path, size: int) -> Done:
    """Pre-train a new model, or that of `--continue_from`, on a corpus with blocks of `size` tokens."""
    settings = running_options(place) | {
        "corpus": corpus,
        **cut_short(corpus, options),
        "num_hidden_layers": options.layers,
        "per_device_train_batch_size": max(1, options.batch_tokens // size),
        "learning_rate": options.learning_rate,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "logging_steps": 100,
        "eval_steps": 2000,
        "max_eval_samples": 256,
        "save_steps": 4000,
    }
    if options.continue_from:
        settings |= {"model": options.continue_from, "warmup_steps": 0.02}
    else:
        shape = {"hidden_size": options.hidden_size, "max_position_embeddings": size}
        settings |= shape | {"dropout": options.dropout, "grow": options.grow, "grow_at": options.grow_at}
    return run_job(Job("teacher-run", "pretrain", settings, options.minutes, more=place.more), place)


def _publish(trained: Path, folder: Path, sessions: list[dict[str, Any]]) -> None:
    """Copy the model without checkpoints, and its cost, to the folder where the other scripts look for it."""
    with complete_folder(folder) as partial:
        for file in trained.iterdir():
            if file.is_file():
                shutil.copy2(file, partial / file.name)
        write_text(partial / HISTORY, json.dumps({"sessions": sessions}, indent=1) + "\n")


def _tokens_per_word(text: list[str], place: Place) -> float | None:
    """Return the mean number of tokens per word (separated by white space) over the first documents of each source.

    It converts sizes of corpora, given in words, into tokens. Datasets on the hub are left out, to avoid reading them
    again.
    """
    tokenizer = load_tokenizer(str(place.teacher)).backend_tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()
    sources = [source for source in find_sources(text, place.work) if source.kind in ("text", "json", "parquet")]
    words = tokens = 0
    for source in sources:
        sampled = islice(DocumentReader([source], ReadingOptions()), SAMPLED_DOCUMENTS // len(sources))
        documents = [document.decode("utf-8", "replace") for document in sampled]
        words += sum(len(document.split()) for document in documents)
        encoded = tokenizer.encode_batch_fast(documents, add_special_tokens=False)
        tokens += sum(len(encoding.ids) for encoding in encoded)
    return tokens / words if words else None


if __name__ == "__main__":
    sys.exit(run(main))
