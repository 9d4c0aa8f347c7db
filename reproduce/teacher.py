"""From text to a teacher: a vocabulary, blocks, and a BERT of 12 layers pre-trained by masked LM.

    python -m reproduce.teacher --text 'text/*.jsonl.zst' --minutes 80
    python -m reproduce.teacher --text 'text/*.jsonl.zst' --minutes 60 --continue_from DIR --work_dir second/

It starts with 3 layers and grows to 6 and 12 by copying them, for a BERT of 12 layers begun as such stays on a plateau
for hours; most of the time goes to blocks of 128 tokens, the last part to 512, as BERT's did. `--continue_from` goes on
from the weights of an earlier session, with a new optimiser and a short warm-up.
"""

from __future__ import annotations

import json
import shutil
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from potstill.corpus import Corpus, load_tokenizer
from potstill.corpus.reading import Reader, ReadingOptions
from potstill.corpus.sources import find_sources
from potstill.errors import PotstillError
from potstill.files import complete_folder, write_text
from reproduce.common import Place, named_values, parser, place_of, read_json, run, write_result
from reproduce.held_out import held_out
from reproduce.runs import Done, Job, run_job
from reproduce.training import corpus_figures, figures, model_figures, running_options

HISTORY = "sessions.json"
SAMPLED_DOCUMENTS = 5000


def main(argv: list[str]) -> None:
    """Prepare the text, pre-train, and measure the teacher on held-out text at both lengths."""
    made = parser(__doc__, minutes=80)
    made.add_argument("--text", nargs="+", required=True, help="as `potstill prepare` takes it")
    made.add_argument("--other_text", nargs="+", help="text of another source, only to measure on")
    made.add_argument("--prepare_options", nargs="*", default=[], metavar="NAME=VALUE", help="more for `prepare`")
    made.add_argument("--vocab_size", type=int, default=30522)
    made.add_argument("--layers", type=int, default=12)
    made.add_argument("--hidden_size", type=int, default=768)
    made.add_argument("--grow", default="3,6,12", help="depths to grow through")
    made.add_argument("--grow_at", default="0.1,0.25", help="shares of the short stage at which to grow")
    made.add_argument("--short", type=int, default=128, help="tokens of a block in the first stage")
    made.add_argument("--long", type=int, default=512, help="tokens of a block in the second stage")
    made.add_argument("--long_share", type=float, default=0.15, help="share of the minutes for long blocks; 0: none")
    made.add_argument("--batch_tokens", type=int, default=32768, help="tokens of a step on each GPU")
    made.add_argument("--learning_rate", type=float, default=5e-4)
    made.add_argument("--long_learning_rate", type=float, default=2e-4)
    made.add_argument("--dropout", type=float, default=0.0, help="of a new model")
    made.add_argument("--continue_from", type=Path, help="folder of a teacher that an earlier session made")
    options, more = made.parse_known_args(argv)
    place = place_of(options, more)
    if not 0 <= options.long_share < 1:
        raise PotstillError(f"--long_share is {options.long_share:g}: it must be 0 or more and below 1.")

    _prepare(place, options)
    trained = [_pretrain(place, options, "short")]
    if options.long_share:
        trained.append(_pretrain(place, options, "long", trained[0].folder))
    earlier = _sessions(options.continue_from) if options.continue_from else []
    stages = [{"block_size": options.short, **figures(trained[0])}]
    stages += [{"block_size": options.long, **figures(done)} for done in trained[1:]]
    sessions = [*earlier, {"stages": stages, "continued": bool(options.continue_from)}]
    teacher = place.teacher
    _publish(trained[-1].folder, teacher, sessions)

    corpora = _corpora(place, options)
    write_result(
        place,
        "teacher",
        {
            "teacher": model_figures(teacher),
            "parameters": stages[-1]["parameters"],
            "corpus": corpus_figures(place.blocks(options.short)),
            "other": corpus_figures(corpora["other"]) if options.other_text else None,
            "tokens_per_word": _tokens_per_word(options.text, place),
            "sessions": sessions,
            "held_out": {
                where: {name: measured[name] for name in ("loss", "accuracy")}
                for where, measured in held_out({"teacher": teacher}, teacher, corpora, place)["teacher"].items()
            },
        },
    )


def _prepare(place: Place, options: Any) -> None:
    """Write the blocks of both lengths, and those of other text, with one vocabulary.

    Blocks that an earlier session left in the work folder are used as they are, if its teacher reads them.
    """
    if options.continue_from and all(map(Path.is_dir, _corpora(place, options).values())):
        tokenizer = load_tokenizer(str(options.continue_from))
        for folder in _corpora(place, options).values():
            Corpus.open(folder).check_tokenizer(tokenizer, str(options.continue_from))
        return
    extra = named_values(options.prepare_options, "--prepare_options")
    # The longer blocks make the vocabulary, for the tokenizer states that length as the longest that its model reads.
    first = {"train_tokenizer": True, "vocab_size": options.vocab_size}
    if options.continue_from:
        first = {"tokenizer": options.continue_from}
    run_job(_preparing(place, options.long, options.text, first | extra), place)
    own = {"tokenizer": place.blocks(options.long) / "tokenizer"}
    run_job(_preparing(place, options.short, options.text, own | extra), place)
    if options.other_text:
        # Nothing trains on it, but a corpus has blocks to train on: a tenth of it goes there.
        other = {"block_size": options.short, "validation_fraction": 0.9}
        job = Job("blocks-other", "prepare", {"text": options.other_text, **own, **other}, distributed=False)
        run_job(job, place)


def _corpora(place: Place, options: Any) -> dict[str, Path]:
    corpora = {str(size): place.blocks(size) for size in (options.short, options.long)}
    return corpora | ({"other": place.work / "blocks-other"} if options.other_text else {})


def _preparing(place: Place, size: int, text: list[str], options: dict[str, Any]) -> Job:
    return Job(place.blocks(size).name, "prepare", {"text": text, "block_size": size, **options}, distributed=False)


def _pretrain(place: Place, options: Any, stage: str, model: Path | None = None) -> Done:
    """Pre-train at one of the two lengths: a new model, that of `--continue_from`, or the one given."""
    short = stage == "short"
    size = options.short if short else options.long
    share = 1 - options.long_share if short else options.long_share
    every = running_options(place) | {
        "corpus": place.blocks(size),
        "num_hidden_layers": options.layers,
        "per_device_train_batch_size": max(1, options.batch_tokens // size),
        "learning_rate": options.learning_rate if short else options.long_learning_rate,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "logging_steps": 100,
        "eval_steps": 2000,
        "max_eval_samples": 1024 if short else 256,
        "save_steps": 4000,
    }
    model = model or options.continue_from
    if model is not None:
        every |= {"model": model, "warmup_steps": 0.02}
    else:
        shape = {"hidden_size": options.hidden_size, "max_position_embeddings": options.long}
        every |= shape | {"dropout": options.dropout, "grow": options.grow, "grow_at": options.grow_at}
    return run_job(Job(f"teacher-{stage}", "pretrain", every, share * options.minutes, more=place.more), place)


def _sessions(folder: Path) -> list[dict[str, Any]]:
    """Return what earlier sessions spent on a teacher, nothing where it is not said."""
    return read_json(folder / HISTORY)["sessions"] if (folder / HISTORY).is_file() else []


def _publish(trained: Path, folder: Path, sessions: list[dict[str, Any]]) -> None:
    """Copy the model, without checkpoints, to where the other scripts look for it, with what it cost."""
    with complete_folder(folder) as partial:
        for file in trained.iterdir():
            if file.is_file():
                shutil.copy2(file, partial / file.name)
        write_text(partial / HISTORY, json.dumps({"sessions": sessions}, indent=1) + "\n")


def _tokens_per_word(text: list[str], place: Place) -> float | None:
    """Return tokens of the vocabulary for a word set off by white space, over the first documents of each source.

    A corpus's size is told in words, a training's in tokens. A dataset of the hub is not read once more for this.
    """
    tokenizer = load_tokenizer(str(place.teacher)).backend_tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()
    sources = [source for source in find_sources(text, place.work) if source.kind in ("text", "json", "parquet")]
    words = tokens = 0
    for source in sources:
        sampled = islice(Reader([source], ReadingOptions()), SAMPLED_DOCUMENTS // len(sources))
        documents = [document.decode("utf-8", "replace") for document in sampled]
        words += sum(len(document.split()) for document in documents)
        encoded = tokenizer.encode_batch_fast(documents, add_special_tokens=False)
        tokens += sum(len(encoding.ids) for encoding in encoded)
    return tokens / words if words else None


if __name__ == "__main__":
    sys.exit(run(main))
