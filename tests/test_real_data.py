"""The main job and fine-tuning on real data, where the environment variable POTSTILL_TEST_DATA names a folder of some.

Expected there: `corpus/*.jsonl.zst`, documents as {"text": …} a line; `glue`, tasks of the official download; and
`xquad/xquad.en.json`.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from potstill.corpus import Corpus, prepare
from potstill.demo.demo import demo
from potstill.distillation import distill
from potstill.finetuning.finetune import finetune
from potstill.finetuning.finetune_arguments import FinetuneArguments
from potstill.recipe import DistillationArguments

DATA = os.environ.get("POTSTILL_TEST_DATA")
pytestmark = pytest.mark.skipif(DATA is None, reason="POTSTILL_TEST_DATA names no folder of real corpora")
TEACHER = Path(demo.__code__.co_filename).parent / "assets" / "teacher"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    smallest = min(Path(DATA or "", "corpus").glob("*.jsonl.zst"), key=lambda path: path.stat().st_size)
    folder = tmp_path_factory.mktemp("real") / "blocks"
    return prepare([str(smallest)], str(folder), str(TEACHER), block_size=128, num_proc=2)


def test_nothing_of_the_text_is_lost(corpus: Corpus) -> None:
    for name, blocks in (("train", corpus.train), ("validation", corpus.validation)):
        split = corpus.manifest.splits[name]
        assert len(blocks) * (128 - 2) + split.dropped_tokens == split.tokens
        assert split.dropped_tokens < 128 - 2
    ids = corpus.train.__getitems__(list(range(0, len(corpus.train), 97)))["input_ids"].numpy()
    tokenizer = corpus.tokenizer()
    assert (ids[:, 0] == tokenizer.cls_token_id).all()
    assert (ids[:, -1] == tokenizer.sep_token_id).all()
    assert not np.isin(ids, [tokenizer.pad_token_id, tokenizer.mask_token_id]).any()
    assert (ids == tokenizer.unk_token_id).mean() < 0.01


def test_a_few_steps_on_real_text_bring_the_student_nearer_to_its_teacher(corpus: Corpus, tmp_path: Path) -> None:
    import json

    args = DistillationArguments(
        output_dir=str(tmp_path / "student"),
        teacher=str(TEACHER),
        corpus=str(corpus.folder),
        max_steps=30,
        per_device_train_batch_size=16,
        learning_rate=3e-4,
        layers="alternate",  # those that `auto` finds are so near that few steps with a new optimiser lead away first
        masking="uniform",
        max_eval_samples=64,
        use_cpu=True,
    )
    held_out = json.loads((distill(args) / "results.json").read_text())["held_out"]
    assert held_out["final"]["kl"] < held_out["initial"]["kl"]
    assert held_out["final"]["accuracy"] > held_out["initial"]["accuracy"]


@pytest.mark.parametrize(("task", "data"), [("sst2", "glue"), ("stsb", "glue"), ("squad", "xquad/xquad.en.json")])
def test_a_few_steps_of_fine_tuning(tmp_path: Path, task: str, data: str) -> None:
    args = FinetuneArguments(
        output_dir=str(tmp_path / "out"),
        model=str(TEACHER),
        task=task,
        task_data=str(Path(DATA or "", data)),
        max_steps=2,
        per_device_train_batch_size=4,
        max_eval_samples=40,
        use_cpu=True,
    )
    found = finetune(args).results
    assert found["rows"]["train"] > 500
    assert found["rows"]["dev"] == 40
    assert found["steps"] == 2
    assert np.isfinite(found["score"])
