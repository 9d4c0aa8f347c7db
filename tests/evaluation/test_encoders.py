"""Sentence encoders and rerankers, really scored: against plain computations, resumed, and compared."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_samples import Flags, comparable, listing, refused
from samples import WORDS
from scipy.stats import rankdata
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertTokenizer,
    PreTrainedModel,
)

from potstill.cli import main
from potstill.evaluation.results import Plan
from potstill.sentences.encoder import SentenceEncoder

pytestmark = pytest.mark.usefixtures("signals_restored", "no_hub")


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(2, 9)))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two years of STS, a folder of retrieval, and a file to rerank."""
    folder, rng = tmp_path_factory.mktemp("encoders"), random.Random(0)
    (folder / "sts").mkdir()
    for name in ("2013-a", "2013-b", "2014-a"):
        rows = [f"{5 * rng.random():.2f}\t{sentence(rng)}\t{sentence(rng)}\n" for _ in range(20)]
        (folder / "sts" / f"{name}.tsv").write_text("".join([*rows, f"\t{sentence(rng)}\t{sentence(rng)}\n"]))
    wiki = folder / "retrieval" / "wiki"
    wiki.mkdir(parents=True)
    texts = [sentence(rng) for _ in range(140)]
    (wiki / "corpus.jsonl").write_text(
        "".join(json.dumps({"id": f"d{number}", "text": text}) + "\n" for number, text in enumerate(texts))
    )
    (wiki / "queries.jsonl").write_text(
        "".join(json.dumps({"id": f"q{number}", "text": sentence(rng)}) + "\n" for number in range(8))
    )
    judged = [f"q{number}\td{rng.randrange(70) + 70 * half}\t{half + 1}\n" for number in range(8) for half in (0, 1)]
    (wiki / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judged))
    (folder / "rerank").mkdir()
    rows = [f'q{number},"{sentence(rng)}",{int(place < 2)}\n' for number in range(6) for place in range(7)]
    (folder / "rerank" / "answers.csv").write_text("query,passage,label\n" + "".join(rows))
    return folder


@pytest.fixture(scope="module")
def encoders(make_teacher: Callable[..., Path]) -> dict[str, Path]:
    return {"teacher": make_teacher(), "student": make_teacher(1, num_hidden_layers=2)}


@pytest.fixture(scope="module")
def save(tiny_tokenizer: BertTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Save a small model of a class with its tokenizer."""

    def save_model(kind: type[PreTrainedModel], **options: Any) -> Path:
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        config = BertConfig(vocab_size=len(tiny_tokenizer), max_position_embeddings=32, **sizes, **options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = kind(config)
        folder = tmp_path_factory.mktemp("model") / "model"
        model.save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        return folder

    return save_model


def command(models: dict[str, Path], output: Path, *suites: str, **options: Any) -> list[str]:
    words = ["evaluate", "--use_cpu", "true", "--output_dir", str(output), "--suite", *suites]
    words += ["--models", *(f"{name}={path}" for name, path in models.items())]
    for name, value in options.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's correlation of the ranks."""
    a, b = (rankdata(values) - rankdata(values).mean() for values in (one, other))
    return float(100 * (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def embedded(encoder: SentenceEncoder, texts: list[str]) -> np.ndarray:
    """Embeddings (N, D) in float64, each text alone, of length 1."""
    found = np.concatenate([encoder.encode([text]) for text in texts]).astype(np.float64)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_scores_are_those_of_a_plain_computation(
    files: Path, encoders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = command(encoders, tmp_path / "results", "sts", "retrieval", "rerank", task_data=files)
    assert main(argv) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith("8 runs without training\n[1/8] teacher · STS13 · score ")
    encoder = SentenceEncoder.load(encoders["teacher"], "model")
    results = {
        path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("results/teacher/*/seed-0.json")
    }
    assert results.keys() == {"STS13", "STS14", "wiki", "answers"}

    parts, every = {}, []
    for part in "ab":
        rows = [line.split("\t") for line in (files / "sts" / f"2013-{part}.tsv").read_text().splitlines()]
        every += (rows := [row for row in rows if row[0]])
        parts[part] = rows
    for rows, metrics in (
        (every, results["STS13"]["metrics"]),
        *((parts[p], results["STS13"]["metrics"][p]) for p in "ab"),
    ):
        one, other = (embedded(encoder, [row[column] for row in rows]) for column in (1, 2))
        expected = spearman((one * other).sum(1), np.array([float(row[0]) for row in rows]))
        assert metrics["spearman"] == metrics["score"] == pytest.approx(expected, abs=1e-6)
    assert results["STS13"]["bad_rows"] == {"without a score": 2}
    assert results["STS13"]["rows"] == {"pairs": 40}
    assert results["STS13"]["hyperparameters"]["pooling"] == "mean"

    rows = [json.loads(line) for line in (files / "retrieval/wiki/corpus.jsonl").read_text().splitlines()]
    queries = [json.loads(line) for line in (files / "retrieval/wiki/queries.jsonl").read_text().splitlines()]
    passages = embedded(encoder, [row["text"] for row in rows])
    ranks, recalls = [], []
    for query in queries:
        order = np.argsort(-(passages @ embedded(encoder, [query["text"]])[0]))
        lines = [line.split("\t") for line in (files / "retrieval/wiki/qrels.tsv").read_text().splitlines()[1:]]
        wanted = {int(passage[1:]) for name, passage, _ in lines if name == query["id"]}
        places = [rank for rank, place in enumerate(order, 1) if place in wanted]
        ranks.append(1 / places[0] if places[0] <= 10 else 0)
        recalls.append(sum(rank <= 100 for rank in places) / len(wanted))
    metrics = results["wiki"]["metrics"]
    assert metrics["mrr@10"] == pytest.approx(100 * np.mean(ranks), abs=1e-6)
    assert metrics["recall@100"] == pytest.approx(100 * np.mean(recalls), abs=1e-6)
    assert metrics["score"] == metrics["ndcg@10"]
    assert results["wiki"]["rows"] == {"queries": 8, "passages": 140}

    lines = printed.out.splitlines()
    header = next(line for line in lines if "STS mean" in line)
    assert header.split() == ["STS", "mean", "STS13", "STS14", "wiki", "answers"]
    assert "Score in percent\n" in printed.out
    assert "Retention: percent of the score of teacher" in printed.out
    assert "Rows and queries that are left out: STS13 2 without a score, STS14 1 without a score." in " ".join(
        printed.out.replace("\n  ", " ").split("· ")
    )
    assert "nDCG@10/MRR@10/R@10/R@100" in printed.out
    assert "Spearman/a/b" in printed.out
    assert "Retention of these metrics: percent of those of teacher" in printed.out
    mrr = [json.loads((tmp_path / f"results/{name}/wiki/seed-0.json").read_text())["metrics"] for name in encoders]
    kept = [100 * mrr[1][name] / mrr[0][name] for name in ("ndcg@10", "mrr@10", "recall@10", "recall@100")]
    assert "/".join(f"{figure:.1f}" for figure in kept) in printed.out
    assert "GLUE" not in printed.out

    # Given again nothing is left to do, and one missing result is made again.
    before = listing(tmp_path / "results")
    assert main(argv) == 0
    assert capsys.readouterr().out == printed.out
    assert listing(tmp_path / "results") == before
    (tmp_path / "results/student/STS14/seed-0.json").unlink()
    assert main(argv) == 0
    again = capsys.readouterr()
    assert "8 runs without training, 7 of them done before\n[8/8] student · STS14 · " in again.err
    assert comparable(again.out) == comparable(printed.out)

    assert main(["compare", str(tmp_path / "results"), "--format", "json"]) == 0
    record = json.loads(capsys.readouterr().out)
    of_student, of_teacher = (record["models"][name]["macros"]["STS mean"] for name in ("student", "teacher"))
    scores = [record["models"]["student"]["tasks"][name]["value"] for name in ("STS13", "STS14")]
    assert of_student["value"] == pytest.approx(np.mean(scores))
    assert of_student["n"] == 1
    if of_teacher["value"] > 0:
        assert of_student["retention"] == pytest.approx(100 * of_student["value"] / of_teacher["value"])
    assert record["plan"]["seeds"] == []
    assert record["missing"] == []


def test_results_of_other_data_weights_or_options_are_not_reused(
    files: Path, encoders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, model = tmp_path / "data", tmp_path / "model"
    shutil.copytree(files / "rerank", data / "rerank")
    shutil.copytree(encoders["student"], model)
    argv = command({"a": model}, tmp_path / "results", "rerank", task_data=data)
    assert main(argv) == 0
    before = listing(tmp_path / "results")
    told = refused(capsys, [*argv, "--max_length", "16"])
    assert "answers/seed-0.json is of another run: max_length was 32 and is 16. Name another --output_dir" in told
    with (data / "rerank" / "answers.csv").open("a") as file:
        file.write("q0,bol,0\n")
    assert "the data of answers were different" in refused(capsys, argv)
    shutil.copy(files / "rerank" / "answers.csv", data / "rerank" / "answers.csv")
    shutil.copy(encoders["teacher"] / "config.json", model / "config.json")
    shutil.copy(encoders["teacher"] / "model.safetensors", model / "model.safetensors")
    assert "the weights of a were different" in refused(capsys, argv)
    assert listing(tmp_path / "results") == before


def test_a_reranker_reads_query_and_passage_together(
    files: Path,
    encoders: dict[str, Path],
    save: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = save(BertForSequenceClassification, num_labels=1)
    models = {"reranker": folder, "encoder": encoders["student"]}
    monkeypatch.setattr("potstill.live_line.SECONDS_PER_LINE", 0.0)
    argv = command(models, tmp_path / "results", "rerank", rerank_data=[files / "rerank" / "answers.csv"])
    assert main([*argv, "--per_device_eval_batch_size", "4"]) == 0
    printed = capsys.readouterr()
    assert "\nthe longest first: 4 of 42 pairs (10%)" in printed.err
    assert "\nthe longest first: 4 of 6 texts (67%)" in printed.err  # of queries
    result = json.loads((tmp_path / "results/reranker/answers/seed-0.json").read_text())
    model, tokenizer = (
        BertForSequenceClassification.from_pretrained(folder).eval(),
        BertTokenizer.from_pretrained(folder),
    )
    by_query: dict[str, list[tuple[float, int]]] = {}
    for line in (files / "rerank" / "answers.csv").read_text().splitlines()[1:]:
        query, passage, label = (part.strip('"') for part in line.split(","))
        with torch.no_grad():
            score = float(model(**tokenizer(query, passage, return_tensors="pt")).logits)
        by_query.setdefault(query, []).append((-score, int(label)))
    precisions, ranks = [], []
    for passages in by_query.values():
        labels = [label for _, label in sorted(passages)]
        places = [rank for rank, label in enumerate(labels, 1) if label]
        ranks.append(1 / places[0])
        precisions.append(np.mean([number / rank for number, rank in enumerate(places, 1)]))
    assert result["metrics"]["map"] == result["score"] == pytest.approx(100 * np.mean(precisions))
    assert result["metrics"]["mrr"] == pytest.approx(100 * np.mean(ranks))
    assert result["hyperparameters"]["kind"] == "reranker"
    assert "kind reranker for reranker; sentence encoder for encoder" in printed.out.replace("\n  ", " ")


def test_bad_models_and_options(
    files: Path,
    encoders: dict[str, Path],
    save: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reranker, output = save(BertForSequenceClassification, num_labels=1), tmp_path / "results"
    two = save(BertForSequenceClassification, num_labels=2)
    answers = save(BertForQuestionAnswering)
    good = encoders["student"]
    for model, suite, told in (
        (reranker, "sts", "is a reranker, and the suite sts needs embeddings: leave out one."),
        (two, "rerank", "is neither a sentence encoder nor a reranker: it has 2 labels"),
        (answers, "sts", "is neither a sentence encoder nor a reranker: it has the head of a BertForQuestionAnswering"),
        (tmp_path, "sts", "has no config.json"),
    ):
        assert told in refused(capsys, command({"a": model}, output, suite, task_data=files))
    for suite, options, told in (
        ("sts", {}, "--sts_data is missing"),
        ("sts", {"sts_data": tmp_path / "none"}, "does not exist"),
        ("sts", {"task_data": tmp_path}, "None of the tasks has data: "),
        (
            "sts",
            {"sts_data": files / "sts", "sts_columns": ["a", "b"]},
            "--sts_columns names 2 columns: it must name 3",
        ),
        ("sts", {"sts_data": files / "sts", "max_length": 64}, "reads at most 32 tokens: lower it"),
        ("sts", {"sts_data": files / "sts", "search": "true"}, "the suite sts trains nothing"),
        ("sts:a", {"sts_data": files / "sts"}, "The suite sts has no task 'a'"),
        (
            "sts",
            {"sts_data": files / "sts", "retrieval_data": files / "retrieval"},
            "--retrieval_data is for the suite retrieval: add retrieval to --suite, or leave it out.",
        ),
        (
            "sts",
            {"sts_data": files / "sts", "rerank_columns": ["a", "b", "c"]},
            "--rerank_columns is for the suite rerank: add",
        ),
    ):
        assert told in refused(capsys, command({"a": good}, output, suite, **options))
    assert not output.exists()


@pytest.mark.usefixtures("own_cache")
def test_beside_fine_tuning(
    flags: Flags, pretended: list[str], files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags(suite=["sts", "glue:sst2"], sts_data=files / "sts")) == 0
    printed = capsys.readouterr().out
    plan = Plan.load(tmp_path / "results")
    assert (plan.tasks, plan.untrained, plan.seeds) == (["sst2", "STS13", "STS14"], ["STS13", "STS14"], [42, 43])
    assert "Score in percent (median of 2 seeds, lowest–highest)" in printed
    assert "missing" not in printed
    assert len(pretended) == 4
    assert main(["compare", str(tmp_path / "results"), "--format", "json"]) == 0
    tasks = json.loads(capsys.readouterr().out)["models"]["student"]["tasks"]
    assert (tasks["sst2"]["n"], tasks["STS13"]["n"]) == (2, 1)
    told = refused(capsys, flags(suite=["sts", "glue:sst2"], sts_data=files / "sts", second_distillation=["student"]))
    assert told.startswith("--second_distillation fine-tunes models and the suite sts does not")


def test_folders_of_one_name_are_seeds_of_a_model(
    files: Path, make_teacher: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [make_teacher(seed) for seed in (0, 1, 2)]
    words = [f"teacher={folders[0]}", *(f"student={folder}" for folder in folders)]
    argv = ["evaluate", "--use_cpu", "true", "--suite", "rerank", "--task_data", str(files), "--models", *words]
    assert main([*argv, "--output_dir", str(tmp_path / "results")]) == 0
    printed = capsys.readouterr()
    scores = [
        json.loads((tmp_path / "results" / "student" / "answers" / f"seed-{seed}.json").read_text())["score"]
        for seed in range(3)
    ]
    assert len(set(scores)) == 3
    low, middle, high = sorted(scores)
    assert f"{low:.1f}–{high:.1f}" in printed.out
    assert f"{middle:.1f}" in printed.out
    assert "median of up to 3 seeds, lowest–highest" in printed.out
    assert "NOT COMPARABLE" not in printed.out
    assert "[4/4] student · folder 3 · answers" in printed.err
    plan = Plan.load(tmp_path / "results")
    assert plan.folders == {"student": [str(folder) for folder in folders]}
    assert main([*argv, "--output_dir", str(tmp_path / "results")]) == 0  # nothing is left to do
    assert "runs without training" not in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "results"), "--format", "json"]) == 0
    student = json.loads(capsys.readouterr().out)["models"]["student"]["tasks"]["answers"]
    assert (student["n"], student["value"], student["min"]) == (3, pytest.approx(middle), pytest.approx(low))

    swapped = [*argv[:-2], words[3], words[2]]
    assert refused(capsys, [*swapped, "--output_dir", str(tmp_path / "results")]).count("weights of student") == 1
    twice = refused(capsys, [*argv, words[1], "--output_dir", str(tmp_path / "other")])
    assert f"The model 'student' occurs twice with the folder {folders[0]}: leave one out." in twice
    trained = [word if word != "rerank" else "glue:sst2" for word in argv]
    told = refused(capsys, [*trained, "--output_dir", str(tmp_path / "other")])
    assert "several folders of a model are only for suites that train nothing" in told
