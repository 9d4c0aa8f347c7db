"""BERT-base and its student of six layers in headless Chromium, on the page that `potstill serve` shows.

    python benchmarks/browser.py --threads 2 --output browser.json

Both models have random weights, because the time does not depend on the weights. They score a pair of sentences, as on
STS-B, where a pair has about 30 tokens. The page runs them in turn. The script needs `chromium`, and potstill's extras
`onnx` and `dev`. To use exported folders, pass `--models student-onnx teacher-onnx`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from playwright.sync_api import Page, expect, sync_playwright
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from potstill.demo import demo
from potstill.serve.models import ServedModel, check_pair
from potstill.serve.server import PageServer
from potstill.training.hardware import hardware

MINUTES = 5 * 60_000  # milliseconds


def build(folder: Path, format: Any) -> list[Path]:
    """Export a random student and teacher, and return their folders."""
    from potstill.export.export import export

    tokenizer = AutoTokenizer.from_pretrained(Path(demo.__file__).parent / "assets" / "teacher")
    made = []
    for name, model in (
        ("student", DistilBertForSequenceClassification(DistilBertConfig(num_labels=1))),
        ("teacher", BertForSequenceClassification(BertConfig(num_labels=1))),
    ):
        source = folder / "source" / name
        model.save_pretrained(source)
        tokenizer.save_pretrained(source)
        # With random weights the classes nearly tie, and int8 may decide differently. This does not matter here.
        export(str(source), format, str(folder / name), tolerance=10, min_agreement=0)
        shutil.rmtree(source)
        made.append(folder / name)
    return made


def measure(page: Page, tokens: int) -> dict[str, Any]:
    """Let the page run a pair of about `tokens` tokens, and return the times of both models."""
    words = ["the", "man", "is", "in", "a", "house", "by", "the", "river"] * tokens
    half = (tokens - 3) // 2  # [CLS] and two [SEP]
    page.get_by_label("Text", exact=True).fill(" ".join(words[:half]))
    page.get_by_label("Second text").fill(" ".join(words[: tokens - 3 - half]))
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_role("region", name="Comparison")).to_be_visible(timeout=MINUTES)
    runs = [json.loads(line.get_attribute("data-times") or "") for line in page.locator(".time").all()]
    ratios = np.divide(runs[1], runs[0])
    return {
        "tokens": tokens,
        "student_ms": float(np.median(runs[0])),
        "teacher_ms": float(np.median(runs[1])),
        "ratio": float(np.median(ratios)),  # of consecutive runs: a slow machine slows both
        "ratio_quartiles": np.percentile(ratios, [25, 75]).tolist(),
        "runs": len(runs[0]),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--models", nargs=2, metavar=("STUDENT", "TEACHER"), help="exported folders; default: export new ones"
    )
    parser.add_argument("--format", choices=["onnx", "onnx-int8"], default="onnx", help="format of new exports")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--repeat", type=int, default=1, help="measurements of each length")
    parser.add_argument("--chromium", default=os.environ.get("CHROMIUM") or shutil.which("chromium"))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with TemporaryDirectory() as folder, sync_playwright() as driver:
        folders = options.models or build(Path(folder), options.format)
        models = [ServedModel.open(str(path), "--models") for path in folders]
        check_pair(*models)
        with PageServer(models) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            browser = driver.chromium.launch(
                executable_path=options.chromium,
                args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
            )
            page = browser.new_page()
            page.goto(server.url)
            device = f"processor, {options.threads} thread{'' if options.threads == 1 else 's'}"
            page.get_by_label("Runs on").select_option(label=device)
            expect(page.get_by_role("status")).to_have_text("Ready.", timeout=MINUTES)
            page.get_by_text("Second text, for models that read pairs").click()
            found = [measure(page, tokens) for tokens in options.tokens for _ in range(options.repeat)]
            title = f"Chromium {browser.version}, {device}, on {hardware(torch.device('cpu')).rpartition(',')[0]}"
            browser.close()
            server.shutdown()
    print(title)
    print(f"{'tokens':>6} {'student':>11} {'teacher':>11} {'ratio':>7}   half of the ratios")
    for row in found:
        low, high = row["ratio_quartiles"]
        times = f"{row['student_ms']:>8.1f} ms {row['teacher_ms']:>8.1f} ms {row['ratio']:>7.2f}"
        print(f"{row['tokens']:>6} {times}   {low:.2f} to {high:.2f}, {row['runs']} runs")
    if options.output:
        options.output.write_text(json.dumps({"device": title, "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
