"""Which embeddings of a teacher a run keeps, and how its processes compute them before training."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from potstill.cache import cache_folder
from potstill.corpus import Corpus
from potstill.errors import PotstillError
from potstill.live_line import LiveLine, duration, say
from potstill.locks import locked
from potstill.objective import Objective
from potstill.processes import once
from potstill.recipe import DistillationArguments
from potstill.sentences.encoder import SentenceEncoder
from potstill.sentences.kept_embeddings import DTYPE, KeptEmbeddings, texts_per_block
from potstill.sentences.step import SentenceStep
from potstill.student import Reads
from potstill.training.memory import fitting_memory
from potstill.training.signals import SignalCatcher

FORMAT = 1
"""Number of the form of the files. Another form gets other folders."""


class EmbeddingInterrupted(PotstillError):  # noqa: N818 (it reports an event; nothing is wrong)
    """A signal ended the computation of the teacher's embeddings. The next run continues it."""

    def __init__(self, done: int, texts: int, signal: int) -> None:
        super().__init__(
            f"Interrupted; the teacher's embeddings of {done:,} of {texts:,} texts are kept: give the same command "
            "again to compute the others."
        )
        self.exit_status = 128 + signal


def check_reads(objective: Objective) -> None:
    """Make sure that the losses need nothing of the teacher but its embeddings.

    Raises:
        PotstillError: one needs more.
    """
    needing = [
        name
        for term in objective.terms
        if term.teacher_reads and term.teacher_reads != Reads(pooled=True)
        for name in term.comparing
    ]
    if needing:
        raise PotstillError(
            f"--teacher_embeddings kept runs no teacher during training, but {' and '.join(needing)} "
            f"{'reads' if len(needing) == 1 else 'read'} its hidden states: give losses of the embeddings alone, such "
            "as --losses '{embedding_cosine: 10}', or leave --teacher_embeddings out."
        )


def keep_embeddings(
    step: SentenceStep,
    corpus: Corpus,
    args: DistillationArguments,
    teacher_hash: str,
    dtype: torch.dtype | None,
    wait_for_everyone: Callable[[], None],
) -> tuple[KeptEmbeddings, dict[str, Any]]:
    """Return the teacher's embeddings of all texts of the training split. Those that are not there are computed.

    They lie below the folder of the cache, by a hash of all that decides them. Each process computes its share.

    Args:
        step: runs the teacher, on the device of the run.
        corpus: holds the texts.
        args: options of the run.
        teacher_hash: of the teacher's weights.
        dtype: type in which the teacher computes; None for its own.
        wait_for_everyone: returns when all processes have called it.

    Returns:
        The embeddings, and a record of their cost for the results: the texts, those that this run computed, and the
        seconds.

    Raises:
        EmbeddingInterrupted: a signal came.
        PotstillError: the embeddings cannot be computed, written or read; or another run computes the same ones.
    """
    started = time.monotonic()
    folder = cache_folder() / "teacher-embeddings" / _key(step.teacher, teacher_hash, corpus, dtype)
    counts, slots = texts_per_block(corpus.train, step.rows.first), step.rows.slots
    record = {
        "teacher": str(step.teacher.model.name_or_path),
        "corpus": str(corpus.folder.resolve()),
        "texts": int(counts.sum()),
        "width": step.teacher.width,
        "computed_in": str(dtype or torch.float32).removeprefix("torch."),
        "kept_in": DTYPE.name,
    }

    def look() -> None:
        KeptEmbeddings.create(folder, counts, slots, record).missing(verify=True)

    with contextlib.ExitStack() as stack:
        if not _is_complete(folder, slots):
            stack.enter_context(locked(folder, "folder in POTSTILL_CACHE"))
        once("find the teacher's embeddings", look)  # the checksums are compared by one process
        kept = KeptEmbeddings(folder, slots)
        missing = kept.missing()
        wait_for_everyone()  # so that all know the same chunks
        with fitting_memory(args):
            computed = _compute(kept, missing, step, corpus, args, dtype)
        wait_for_everyone()
    if kept.missing():
        raise PotstillError(
            f"The processes of this run do not see one folder {folder}: name a folder that all machines share in "
            "POTSTILL_CACHE."
        )
    step.forget_teacher_copies()
    cost = {"texts": kept.texts, "computed": computed, "seconds": round(time.monotonic() - started, 1)}
    return kept, cost | {"kept_in": DTYPE.name}


def _compute(
    kept: KeptEmbeddings,
    missing: list[int],
    step: SentenceStep,
    corpus: Corpus,
    args: DistillationArguments,
    dtype: torch.dtype | None,
) -> int:
    """Compute this process's share of the missing chunks; return the number of texts of all processes."""
    whole = sum(kept.texts_in(chunk) for chunk in missing)

    def embed(blocks: list[int]) -> Tensor:
        input_ids = corpus.train.__getitems__(blocks)["input_ids"].to(args.device)
        return step.teacher_embeddings(input_ids, dtype).unflatten(0, (len(blocks), -1))

    signals = SignalCatcher()
    with signals.catching(), _Progress(args, kept, whole) as say:
        mine = missing[args.process_index :: args.world_size]
        for texts in kept.compute(mine, embed, args.per_device_train_batch_size):
            say.advance(texts)
            if signals.received is not None:
                lost = sum(map(kept.texts_in, kept.missing()))  # a chunk that is not complete is computed again
                raise EmbeddingInterrupted(kept.texts - lost, kept.texts, signals.received)
        say.end()
    return whole


class _Progress(LiveLine):
    """Shown by the first process, as if all were as fast."""

    def __init__(self, args: DistillationArguments, kept: KeptEmbeddings, whole: int) -> None:
        super().__init__()
        self._processes, self._speaks = args.world_size, args.process_index == 0
        self._whole = whole
        self._own = 0
        if not whole:
            self._say(f"the teacher's embeddings of {kept.texts:,} texts are in {kept.folder}")
            return
        size = kept.texts * kept.width * DTYPE.itemsize / 1e6
        before = f" ({kept.texts - whole:,} are there)" if whole < kept.texts else ""
        self._say(
            f"computing the teacher's embeddings of {kept.texts:,} texts{before}: {size:,.1f} MB in {kept.folder}"
        )

    def __enter__(self) -> Self:
        return super().__enter__() if self._speaks else self

    def advance(self, texts: int) -> None:
        """Count texts that this process has done."""
        self._own += texts
        if self._speaks:
            self.update_count(
                min(self._whole, self._own * self._processes), self._whole, "texts", "teacher's embeddings: "
            )

    def end(self) -> None:
        """Say how long it took."""
        if self._whole:
            self._say(
                f"the teacher's embeddings took {duration(self.seconds)} ({self._whole / self.seconds:,.0f} texts/s)"
            )

    def _say(self, line: str) -> None:
        if self._speaks:
            say(line)


def _is_complete(folder: Path, slots: int) -> bool:
    """Return whether all chunks are marked, so that nothing has to be written."""
    try:
        return not KeptEmbeddings(folder, slots).missing()
    except PotstillError:
        return False


def _key(teacher: SentenceEncoder, teacher_hash: str, corpus: Corpus, dtype: torch.dtype | None) -> str:
    """Return a hash of all that decides the embeddings."""
    config = teacher.model.config.to_dict()
    for name in ("_name_or_path", "name_or_path", "transformers_version", "architectures", "dtype"):
        config.pop(name, None)
    decides = [
        *(FORMAT, corpus.fingerprint, teacher_hash, config, list(teacher.pooling.modes)),
        *([type(dense.activation).__name__ for dense in teacher.dense], teacher.normalize, str(dtype)),
    ]
    return hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()[:32]
