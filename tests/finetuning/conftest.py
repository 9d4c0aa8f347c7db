"""Tiny models to fine-tune, data to fine-tune them on, and a cache of their own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuning_samples import (
    FIRST,
    LENGTH,
    VOCABULARY,
    finetuned,
    own_rows,
    squad_articles,
    write,
    write_lines,
    write_mnli,
    write_squad,
    write_sst2,
    write_stsb,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    DistilBertConfig,
    DistilBertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from potstill.finetuning.finetune_arguments import FinetuneArguments
from potstill.finetuning.job import Job

NewModel = Callable[..., Path]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def _no_surprises(no_hub: None, signals_restored: None) -> None:
    """No network; and the handler of SIGTERM is put back that the command line replaces."""


@pytest.fixture(scope="session")
def word_tokenizer() -> BertTokenizer:
    return BertTokenizer(vocab={token: number for number, token in enumerate(VOCABULARY)}, model_max_length=LENGTH)


@pytest.fixture(scope="session")
def new_model(word_tokenizer: BertTokenizer, tmp_path_factory: pytest.TempPathFactory) -> NewModel:
    """Save a model of 2 layers, 32 wide, by the name of its architecture, with a tokenizer."""
    small = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    letters = {"<s>": 0, "<pad>": 1, "</s>": 2}
    letters |= {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), 3)}

    def bytes_as_tokens(framed: bool, **special: str) -> PreTrainedTokenizerFast:
        backend = Tokenizer(models.BPE(letters, []))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        if framed:
            backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=False)
        names = ["input_ids", "attention_mask"]
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, model_max_length=LENGTH, model_input_names=names, eos_token="</s>", **special
        )

    def make(kind: str = "bert", seed: int = 0, **options: Any) -> Path:
        tokenizer: PreTrainedTokenizerFast = word_tokenizer
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if kind == "bert":
                sizes = small | {"vocab_size": len(word_tokenizer), "max_position_embeddings": LENGTH}
                model: Any = BertForMaskedLM(BertConfig(**(sizes | options)))
            elif kind == "distilbert":
                config = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": LENGTH}
                model = DistilBertForMaskedLM(DistilBertConfig(vocab_size=len(word_tokenizer), **(config | options)))
            elif kind == "roberta":
                tokenizer = bytes_as_tokens(True, cls_token="<s>", sep_token="</s>", pad_token="<pad>", bos_token="<s>")
                ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1}
                sizes = small | ids | {"vocab_size": len(letters), "max_position_embeddings": LENGTH + 2}
                model = RobertaForMaskedLM(RobertaConfig(**(sizes | options)))
            elif kind == "modernbert":
                tokenizer = bytes_as_tokens(True, cls_token="<s>", sep_token="</s>", pad_token="<pad>")
                ids = {"pad_token_id": 1, "cls_token_id": 0, "bos_token_id": 0, "sep_token_id": 2, "eos_token_id": 2}
                sizes = small | ids | {"vocab_size": len(letters), "max_position_embeddings": LENGTH}
                model = ModernBertForMaskedLM(ModernBertConfig(local_attention=8, **(sizes | options)))
            else:
                tokenizer = bytes_as_tokens(False, bos_token="</s>", unk_token="</s>")
                config = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": LENGTH}
                model = GPT2LMHeadModel(GPT2Config(vocab_size=len(letters), bos_token_id=2, eos_token_id=2, **config))
        folder = tmp_path_factory.mktemp(kind) / kind
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def bert(new_model: NewModel) -> Path:
    return new_model("bert")


@pytest.fixture(scope="session")
def distilbert(new_model: NewModel) -> Path:
    return new_model("distilbert", seed=1)


@pytest.fixture(scope="session")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SST-2, STS-B and MNLI; in the first 30 rows of training and 12 of dev."""
    folder = tmp_path_factory.mktemp("glue")
    for write_task in (write_sst2, write_stsb, write_mnli):
        write_task(folder)
    return folder


@pytest.fixture(scope="session")
def squad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("squad")
    write_squad(folder)
    return folder


@pytest.fixture(scope="session")
def teacher(bert: Path, glue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT fine-tuned on the SST-2 of the fixtures."""
    folder = tmp_path_factory.mktemp("teachers") / "sst2"
    finetuned(model=bert, task="sst2", task_data=glue, output_dir=folder, num_train_epochs=15, learning_rate=2e-3)
    return folder


@pytest.fixture(scope="session")
def span_teacher(bert: Path, squad: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT fine-tuned on the SQuAD of the fixtures."""
    folder = tmp_path_factory.mktemp("teachers") / "squad"
    finetuned(model=bert, task="squad", task_data=squad, output_dir=folder)
    return folder


@pytest.fixture
def new_job(tmp_path: Path) -> Callable[..., Job]:
    def make(**options: Any) -> Job:
        args = FinetuneArguments(output_dir=str(tmp_path / "job"), use_cpu=True, **options)
        return Job.prepare(args)

    return make


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of every kind of task, and files that declare the tasks."""
    folder = tmp_path_factory.mktemp("own")
    for split, count, seed in (("train", 60, 0), ("dev", 21, 1)):
        rows = own_rows(count, seed)
        lines = [",".join([row["text"], row["label"], ";".join(row["labels"])]) for row in rows]
        write(folder / f"{split}.csv", "\n".join(["text,category,all", *lines]) + "\n")
        write_lines(folder / f"{split}.jsonl", rows)
        tags = [["B-X" if word in FIRST else "O" for word in row["text"].split()] for row in rows]
        words = [
            f"{word}\t{tag}"
            for row, of in zip(rows, tags, strict=True)
            for word, tag in zip([*row["text"].split(), ""], [*of, ""], strict=True)
        ]
        write(folder / f"{split}.conll", "\n".join(line.strip() for line in words))
        write(folder / f"{split}-squad.json", json.dumps({"data": squad_articles(split, 2)}))
    both = "train: train.csv\neval: dev.csv\n"
    write(folder / "classes.yaml", f"kind: classification\n{both}label_column: category\nmetric: macro_f1\n")
    write(folder / "sets.yaml", f"kind: multilabel\n{both}label_column: all\nlabel_separator: ;\n")
    write(
        folder / "scores.yaml",
        "kind: regression\ntrain: train.jsonl\neval: dev.jsonl\npair_column: other\nlabel_column: score\n",
    )
    write(folder / "words.yaml", "kind: tagging\nname: first words\ntrain: train.conll\neval: dev.conll\n")
    write(folder / "questions.yaml", "kind: questions\ntrain: train-squad.json\neval: dev-squad.json\n")
    return folder


@pytest.fixture(scope="session")
def trained(own: Path, bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model for each kind of task."""
    folder = tmp_path_factory.mktemp("trained")
    for task in ("classes", "sets", "scores", "words"):
        options = {"num_train_epochs": 8, "learning_rate": 6e-3}
        finetuned(model=bert, task=own / f"{task}.yaml", output_dir=folder / task, **options)
    return {path.name: path for path in folder.iterdir()}
