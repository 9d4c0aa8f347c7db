"""The page in a real browser: what it answers is what PyTorch answers, and it says so where it cannot.

Needs Debian's `chromium`, or another Chromium or Chrome, and the Python package `playwright` (in the extra `dev`),
whose own download of a browser is not needed. Skipped where either is missing; CHROMIUM names another program.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
)

from potstill.bilstm.config import BiLSTMConfig
from potstill.bilstm.model import BiLSTMForSequenceClassification
from potstill.sentences import SentenceEncoder
from potstill.serve.models import ServedModel
from potstill.serve.server import PageServer

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)
sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect

TEACHER = Path(__file__).parents[2] / "src" / "potstill" / "demo" / "assets" / "teacher"
CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
SECONDS = 60_000  # milliseconds, that is: a busy machine takes its time
expect.set_options(timeout=SECONDS)

QUESTION = "Who built the abbey?"
CONTEXT = "The abbey (1128) was built by David I, king of the Scots; monks from Artois came to live in it - 13 in all."


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as driver:
        running = driver.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--disable-background-networking",
                "--enable-unsafe-webgpu",  # where there is no GPU the processor plays one
                "--use-webgpu-adapter=swiftshader",
            ],
        )
        yield running
        running.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Serve folders and open their page; what it fetches from elsewhere, or fails to run, fails the test."""
    servers, contexts, wrong = [], [], []

    def open_(*folders: Path, script: str = "", ready: bool = True, **options: Any) -> Any:
        server = PageServer([ServedModel.open(str(folder), "--model") for folder in folders])
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        context = browser.new_context(**options)
        context.set_default_timeout(SECONDS)
        contexts.append(context)
        context.on(
            "request", lambda request: request.url.startswith((server.url, "data:")) or wrong.append(request.url)
        )
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        if script:
            page.add_init_script(script)
        page.goto(server.url)
        if ready:
            expect(page.get_by_role("status")).to_have_text("Ready.")
        return page

    yield open_
    for context in contexts:
        context.close()
    for server in servers:
        server.shutdown()
        server.server_close()
    assert wrong == []


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Any], Path]:
    """Export a model once, under a name, with the teacher's tokenizer."""
    from potstill.export.export import export

    folder = tmp_path_factory.mktemp("exported")

    def make(name: str, model: Any) -> Path:
        if not (folder / name).exists():
            model.save_pretrained(folder / "source" / name)
            AutoTokenizer.from_pretrained(TEACHER).save_pretrained(folder / "source" / name)
            export(str(folder / "source" / name), "onnx", str(folder / name))
        return folder / name

    return make


def small(kind: type, **options: Any) -> Any:
    """Return a random model of one layer, its weights so large that it has strong opinions."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = BertConfig(vocab_size=8192, max_position_embeddings=96, initializer_range=0.4, **sizes, **options)
        return kind(config).eval()


def small_classifier() -> Any:
    return small(BertForSequenceClassification, id2label={0: "dull", 1: "fair", 2: "<b>fine</b>"})


def small_bilstm() -> Any:
    """Return a random BiLSTM that reads pairs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        sizes = {"vocab_size": 8192, "embedding_size": 16, "hidden_size": 12, "intermediate_size": 8}
        labels = {0: "other", 1: "the same"}
        model = BiLSTMForSequenceClassification(BiLSTMConfig(pairs=True, type_vocab_size=2, id2label=labels, **sizes))
        for parameter in model.parameters():
            parameter.data.mul_(4)
        return model.eval()


def shares(article: Any) -> dict[str, float]:
    """Return what a card lists: text → percentage."""
    lines = article.locator(".shares li").all_inner_texts()
    return {text: float(value.rstrip(" %")) for text, value in (line.split("\n") for line in lines)}


def check_times(page: Any, models: int) -> None:
    """Make sure that each model has its time, and that the ratio is the median of those of two runs in turn."""
    expect(page.get_by_role("status")).to_have_text("Done.")
    times = [json.loads(line.get_attribute("data-times")) for line in page.locator(".time").all()]
    assert len(times) == models
    assert all(5 <= len(runs) <= 20 and min(runs) > 0 for runs in times)
    medians = [float(np.median(runs)) for runs in times]
    for median, shown in zip(medians, page.locator(".time strong").all_inner_texts(), strict=True):
        # Two decimals, or three digits
        assert float(shown.removesuffix("ms")) == pytest.approx(median, rel=0.006, abs=0.006)
    comparison = page.get_by_role("region", name="Comparison")
    expect(comparison).to_contain_text(f"{len(times[0])} warm runs")
    if models == 2:
        shown = [float(value) for value in re.findall(r"\d+\.\d+", comparison.inner_text())]
        ratios = np.divide(times[1], times[0])
        ratios = ratios if np.median(ratios) >= 1 else 1 / ratios
        assert shown == pytest.approx(np.percentile(ratios, [50, 25, 75]).tolist(), abs=0.006)


def test_fill_mask_beside_another_model(
    open_page: Callable[..., Any], exported: Callable[..., Path], tmp_path: Path
) -> None:
    from onnxruntime.quantization import quantize_dynamic

    # Its first layers: all twelve take half a minute to export.
    source = AutoModelForMaskedLM.from_pretrained(TEACHER, dtype=torch.float32, num_hidden_layers=2)
    teacher = exported("teacher", source)
    student = shutil.copytree(teacher, tmp_path / "student", ignore=shutil.ignore_patterns("*.onnx"))
    quantize_dynamic(teacher / "onnx" / "model.onnx", student / "onnx" / "model_quantized.onnx", per_channel=True)
    page = open_page(student, teacher, viewport={"width": 1000, "height": 900})
    assert page.evaluate("crossOriginIsolated")

    # By keyboard alone: the text, the button that puts the mask in, and back.
    page.get_by_label("Text with a word missing").focus()
    page.keyboard.press("Control+a")
    page.keyboard.type("The river  of London. Paris is the capital of [MASK].")
    page.keyboard.press("Home")
    for _ in range(len("The river ")):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    text = "The river [MASK] of London. Paris is the capital of [MASK]."
    expect(page.get_by_label("Text with a word missing")).to_have_value(text)
    expect(page.get_by_label("Text with a word missing")).to_be_focused()
    page.keyboard.press("Control+Enter")
    check_times(page, 2)

    expect(page.get_by_role("article", name="student")).to_contain_text("2 layers · int8 weights")
    card = page.get_by_role("article", name="teacher", exact=True)
    expect(card.get_by_role("heading", level=3)).to_have_text(["Missing word 1", "Missing word 2"])
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    inputs = tokenizer(text, return_tensors="pt")
    with torch.inference_mode():
        logits = source(**inputs).logits[inputs["input_ids"] == tokenizer.mask_token_id]
    expected: dict[str, float] = {}
    for row in logits.softmax(-1):
        best = row.topk(5)
        expected |= {tokenizer.decode([i]): 100 * p for i, p in zip(best.indices, best.values.tolist(), strict=True)}
    assert shares(card) == pytest.approx(expected, abs=0.06)

    page.get_by_label("Runs on").select_option(index=1)  # other threads: everything starts anew
    expect(page.get_by_role("status")).to_have_text("Ready.")
    expect(card.get_by_role("listitem")).to_have_count(0)
    page.get_by_role("button", name="Run").click()
    check_times(page, 2)
    assert shares(card) == pytest.approx(expected, abs=0.06)


def test_a_bilstm(open_page: Callable[..., Any], exported: Callable[..., Path]) -> None:
    source, tokenizer = small_bilstm(), AutoTokenizer.from_pretrained(TEACHER)
    page = open_page(exported("bilstm", source))
    page.get_by_label("Text", exact=True).fill("The abbey was built by a king.")
    page.get_by_text("Second text, for models that read pairs").click()
    for pair in ("A king built it.", ""):
        page.get_by_label("Second text").fill(pair)
        page.get_by_label("Second text").press("Control+Enter")
        check_times(page, 1)
        with torch.inference_mode():
            inputs = tokenizer("The abbey was built by a king.", pair or None, return_tensors="pt")
            expected = source(**inputs).logits[0].softmax(-1).tolist()
        found = shares(page.get_by_role("article"))
        assert found == pytest.approx({"other": 100 * expected[0], "the same": 100 * expected[1]}, abs=0.06)


def test_classification_and_what_it_says_of_bad_input(
    open_page: Callable[..., Any], exported: Callable[..., Path], tmp_path: Path
) -> None:
    source = small_classifier()
    folder = shutil.copytree(exported("classifier", source), tmp_path / "classifier")
    page = open_page(folder, viewport={"width": 360, "height": 740}, color_scheme="dark", is_mobile=True)
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)

    def check(text: str, pair: str | None) -> None:
        check_times(page, 1)
        with torch.inference_mode():
            logits = source(**tokenizer(text, pair, return_tensors="pt")).logits[0]
        expected = {source.config.id2label[i]: 100 * p for i, p in enumerate(logits.softmax(-1).tolist())}
        found = shares(page.get_by_role("article"))
        assert found == pytest.approx(expected, abs=0.06)
        assert list(found.values()) == sorted(found.values(), reverse=True)

    text = "Gruesome, übertrieben & 3.14 times too long; I've seen worse."
    page.get_by_label("Text", exact=True).fill(text)
    page.get_by_role("button", name="Run").click()
    check(text, None)
    page.get_by_text("Second text, for models that read pairs").click()
    page.get_by_label("Second text").fill("A second one.")
    page.get_by_label("Second text").press("Control+Enter")
    check(text, "A second one.")
    # Nothing is wider than a phone.
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 19, 17)"

    alert = page.get_by_role("alert")
    expect(alert).to_be_hidden()
    page.get_by_label("Text", exact=True).fill(" \n")
    page.get_by_role("button", name="Run").click()
    expect(alert).to_have_text("Write a text first.")
    page.get_by_label("Text", exact=True).fill("too " * 120)
    page.get_by_role("button", name="Run").click()
    expect(alert).to_contain_text(
        "The text is too long: 127 tokens, and classifier reads 96 at most. Leave out about 25 %"
    )
    page.get_by_label("Text", exact=True).fill(text)
    page.get_by_role("button", name="Run").click()
    check(text, "A second one.")
    expect(alert).to_be_hidden()

    (folder / "onnx" / "model.onnx").write_bytes(b"no model")
    page.reload()
    expect(alert).to_contain_text("ONNX Runtime cannot run classifier/onnx/model.onnx on the processor")
    (folder / "onnx" / "model.onnx").unlink()
    page.reload()
    expect(alert).to_have_text("The model is missing: the server has no classifier/onnx/model.onnx (404).")

    for script, message in {
        "delete globalThis.WebAssembly": "This browser has no WebAssembly, by which models run",
        "WebAssembly.validate = () => false": "This browser's WebAssembly has no SIMD",
    }.items():
        expect(
            open_page(exported("classifier", source), script=script, ready=False).get_by_role("alert")
        ).to_contain_text(message)


def test_scores_and_several_labels_at_once(
    open_page: Callable[..., Any], exported: Callable[..., Path], tmp_path: Path
) -> None:
    source, text = small_classifier(), "Neither good nor bad."
    with torch.inference_mode():
        logits = source(**AutoTokenizer.from_pretrained(TEACHER)(text, return_tensors="pt")).logits[0]

    def answered(name: str, **changes: Any) -> Any:
        folder = shutil.copytree(exported("classifier", source), tmp_path / name)
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(config))
        page = open_page(folder)
        page.get_by_label("Text", exact=True).fill(text)
        page.get_by_role("button", name="Run").click()
        check_times(page, 1)
        return page.get_by_role("article")

    labels = {name: 100 * p for name, p in zip(("dull", "fair", "<b>fine</b>"), logits.sigmoid().tolist(), strict=True)}
    threshold = sorted(labels.values())[1] / 100 - 1e-4  # two labels reach it
    several = answered("several", problem_type="multi_label_classification", threshold=threshold)
    assert shares(several) == pytest.approx(labels, abs=0.06)
    words = f"2 of 3 labels reach the threshold of {100 * threshold:.1f}"
    expect(several.locator(".answer .hint")).to_contain_text(words)
    assert several.locator(".meant").count() == 2
    score = answered("score", id2label={"0": "LABEL_0"}).locator(".score").inner_text()
    assert float(score) == pytest.approx(float(logits[0]), abs=6e-4)


@pytest.mark.slow
@pytest.mark.parametrize("markup", ["<script>document.title = 1<", "<img src=x onerror='document.title = 1'>"])
def test_markup_stays_text(
    open_page: Callable[..., Any], exported: Callable[..., Path], tmp_path: Path, markup: str
) -> None:
    """Names of folders and labels, texts and messages are shown as they are, and become no elements."""
    label, other = f"{markup}/script>", f"&lt;b&gt; {markup}"
    source = small(BertForSequenceClassification, id2label={0: label, 1: other})
    folder = shutil.copytree(exported(f"markup {len(markup)}", source), tmp_path / markup)
    page = open_page(folder, folder)
    title = page.title()
    assert title.count(markup) == 2
    page.get_by_label("Text", exact=True).fill(label)
    page.get_by_role("button", name="Run").click()
    check_times(page, 2)
    for card in page.get_by_role("article").all():
        assert set(shares(card)) == {label, other}
        assert card.get_by_role("heading", level=2).text_content().endswith(markup)
    expect(page.get_by_role("region", name="Comparison")).to_contain_text(markup)
    (folder / "onnx" / "model.onnx").unlink()
    page.get_by_label("Runs on").select_option(index=1)  # the model is loaded anew
    expect(page.get_by_role("alert")).to_contain_text(f"{markup}/onnx/model.onnx")
    # The content security policy would stop a script. That there is no element shows that it had nothing to stop.
    elements = page.locator("script, img, b")
    assert [one.get_attribute("src") for one in elements.all()] == ["page.js"]
    assert page.title() == title


@pytest.mark.slow
def test_webgpu_says_the_same(open_page: Callable[..., Any], exported: Callable[..., Path]) -> None:
    page = open_page(exported("classifier", small_classifier()))
    device = page.get_by_label("Runs on")
    if "GPU (WebGPU)" not in device.inner_text():
        pytest.skip("this browser has no WebGPU")
    # One that the processor plays is offered, but not what the page begins with.
    assert device.evaluate("element => element.selectedOptions[0].text").startswith("processor")
    page.get_by_role("button", name="Run").click()
    check_times(page, 1)
    expected = shares(page.get_by_role("article"))
    device.select_option(label="GPU (WebGPU)")
    expect(page.get_by_role("status")).to_have_text("Ready.")
    page.get_by_role("button", name="Run").click()
    check_times(page, 1)
    assert shares(page.get_by_role("article")) == pytest.approx(expected, abs=0.06)
    expect(page.get_by_role("region", name="Comparison")).to_contain_text("GPU (WebGPU)")


def test_the_answer_is_marked_in_the_text(open_page: Callable[..., Any], exported: Callable[..., Path]) -> None:
    source = small(BertForQuestionAnswering)
    page = open_page(exported("reader", source))
    page.get_by_label("Question").fill(QUESTION)
    page.get_by_label("Text to find the answer in").fill(CONTEXT)
    page.get_by_label("Question").press("Enter")
    check_times(page, 1)

    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    encoded = tokenizer(QUESTION, CONTEXT, return_tensors="pt")
    with torch.inference_mode():
        output = source(**encoded)
    starts, ends = output.start_logits[0].double(), output.end_logits[0].double()
    inside = [i for i, part in enumerate(encoded.sequence_ids(0)) if part == 1]
    spans = {(i, j): starts[i] + ends[j] for i in inside for j in inside if i <= j < i + 30}
    probabilities = torch.stack([starts[0] + ends[0], *spans.values()]).softmax(0)
    first, last = max(spans, key=lambda span: spans[span])
    # The page marks whole words: their pieces have no characters of their own in it.
    words = [encoded.word_to_chars(0, encoded.token_to_word(0, token), sequence_index=1) for token in (first, last)]
    answer = CONTEXT[words[0].start : words[1].end]

    card = page.get_by_role("article")
    expect(card.locator(".found")).to_have_text(answer)
    expect(card.get_by_role("mark")).to_have_text(answer)
    expect(card.locator(".context")).to_have_text(CONTEXT)
    before = page.evaluate("document.querySelector('mark').previousSibling.textContent.length")
    assert before == words[0].start
    none, best = 100 * probabilities[0], 100 * probabilities[1:].max()
    found = [float(value) for value in re.findall(r"([\d.]+)\s%", card.locator(".answer .hint").inner_text())]
    assert found == pytest.approx([float(best), float(none)], abs=0.06)

    page.get_by_label("Text to find the answer in").fill("")
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_role("alert")).to_have_text("Write the text to find the answer in first.")


def test_similarities_of_encoders_and_their_order(
    open_page: Callable[..., Any], pooled_encoder: Path, exported_encoder: Path
) -> None:
    encoder = SentenceEncoder.load(pooled_encoder)
    page = open_page(exported_encoder, exported_encoder)
    texts = ["bola dom", "kir lun mes", "sote bola kir lun", "bola kir dom"]
    page.get_by_label("One text").fill("bola kir")
    page.get_by_label("Texts to compare it with").fill("\n".join(["", *texts, "  "]))
    page.get_by_role("button", name="Run").click()
    check_times(page, 2)
    vectors = encoder.encode(["bola kir", *texts]).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = dict(zip(texts, vectors[1:] @ vectors[0], strict=True))
    for article in page.locator("article").all():
        shown = shares(article)
        assert list(shown) == sorted(texts, key=lambda text: -cosines[text])
        assert shown == pytest.approx(cosines, abs=0.0006)
    expect(page.locator("#method")).to_contain_text("Both put the 4 texts in the same order.")
    page.get_by_label("Texts to compare it with").fill("")
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_role("alert")).to_have_text("Write the texts to compare it with, one a line.")
    page.get_by_label("Texts to compare it with").fill(" ".join(["bola"] * 40))
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_role("alert")).to_contain_text("The text is too long")
