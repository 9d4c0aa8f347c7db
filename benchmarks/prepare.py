"""Speed of `potstill prepare` compared with the `tokenizers` library alone, and its memory use.

    python benchmarks/prepare.py --text corpus/*.jsonl.zst --tokenizer bert-base-uncased --num_proc 2

Both are measured on the same text, in turn, in the same run. "Alone" is the time inside `Tokenizer.encode_batch_fast`
with as many threads as prepare has processes. It excludes reading the text and taking the ids out of the result. The
time of prepare includes everything except Python's imports: reading, starting the workers, tokenising, packing and
writing. CPU seconds are summed over all processes and threads; on a busy machine they are more reliable than the clock.
Memory is the resident size of all processes, sampled at intervals.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BATCH_BYTES = 2**22
SAMPLE_SECONDS = 0.1


def tokenizers_alone(text: list[str], tokenizer: str) -> dict[str, float]:
    """Return the seconds inside `encode_batch_fast`, and the bytes and tokens that it processed."""
    from potstill.corpus.reading import DocumentReader, ReadingOptions
    from potstill.corpus.sources import find_sources
    from potstill.corpus.tokenise import batched
    from potstill.corpus.tokenizer import load_tokenizer

    encoder = load_tokenizer(tokenizer).backend_tokenizer
    encoder.no_truncation()
    encoder.no_padding()
    encoder.encode_special_tokens = True
    seconds, cpu_seconds, size, tokens = 0.0, 0.0, 0, 0
    for batch in batched(DocumentReader(find_sources(text, Path()), ReadingOptions()), BATCH_BYTES):
        documents = [document.decode() for document in batch.documents]
        start, cpu_start = time.perf_counter(), time.process_time()
        encodings = encoder.encode_batch_fast(documents, add_special_tokens=False)
        seconds += time.perf_counter() - start
        cpu_seconds += time.process_time() - cpu_start
        size += sum(map(len, batch.documents))
        tokens += sum(map(len, encodings))
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "bytes": size, "tokens": tokens}


def prepare_all(text: list[str], tokenizer: str, num_proc: int, block_size: int) -> dict[str, float]:
    """Return the seconds of one `prepare`, and the tokens that it wrote."""
    from potstill.corpus.prepare import prepare

    folder = tempfile.mkdtemp(prefix="potstill-prepare-")
    try:
        start, cpu_start = time.perf_counter(), sum(os.times()[:4])
        corpus = prepare(text, f"{folder}/blocks", tokenizer=tokenizer, num_proc=num_proc, block_size=block_size)
        seconds, cpu_seconds = time.perf_counter() - start, sum(os.times()[:4]) - cpu_start
        tokens = sum(split.tokens - split.documents for split in corpus.manifest.splits.values())
    finally:
        shutil.rmtree(folder)
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "tokens": tokens}


def measured(what: str, arguments: list[str], threads: int) -> tuple[dict[str, float], float]:
    """Run this file again for one measurement. Return its result and the peak resident size of its processes."""
    environment = os.environ | {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"}
    command = [sys.executable, __file__, *arguments, "--measure", what]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, resident_bytes(process.pid))
            time.sleep(SAMPLE_SECONDS)
        assert process.stdout is not None
        if process.returncode:
            sys.exit(f"measuring {what} failed with status {process.returncode}")
        return json.loads(process.stdout.read().splitlines()[-1]), peak


def resident_bytes(pid: int) -> int:
    """Return the resident size of a process and all its descendants in bytes (Linux); 0 for an ended process."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except (OSError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(map(resident_bytes, children))


def main() -> None:
    """Measure both in turn, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", nargs="+", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--num_proc", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--block_size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--measure", choices=["tokenizers", "prepare"], help=argparse.SUPPRESS)
    options = parser.parse_args()

    if options.measure:
        measurement: Any = (
            tokenizers_alone(options.text, options.tokenizer)
            if options.measure == "tokenizers"
            else prepare_all(options.text, options.tokenizer, options.num_proc, options.block_size)
        )
        print(json.dumps(measurement))
        return

    ratios, cpu_ratios, peaks = [], [], []
    for number in range(1, options.rounds + 1):
        alone, _ = measured("tokenizers", sys.argv[1:], options.num_proc)
        ours, peak = measured("prepare", sys.argv[1:], options.num_proc)
        ratios.append(alone["seconds"] / ours["seconds"])
        cpu_ratios.append(alone["cpu_seconds"] / ours["cpu_seconds"])
        peaks.append(peak)
        for name, found in (("tokenizers alone", alone), ("potstill prepare", ours)):
            seconds = found["seconds"]
            print(
                f"round {number}  {name}  {seconds:7.1f} s  {alone['bytes'] / 1e6 / seconds:6.2f} MB/s  "
                f"{alone['tokens'] / seconds:12,.0f} tokens/s  {found['cpu_seconds']:7.1f} CPU s",
                flush=True,
            )
        assert alone["tokens"] == ours["tokens"], "the two tokenised differently"
    print(
        f"{alone['bytes'] / 1e6:.0f} MB, {alone['tokens']:,} tokens, {options.num_proc} processes: prepare reaches "
        f"{statistics.median(ratios):.0%} of tokenizers alone by the clock and "
        f"{statistics.median(cpu_ratios):.0%} by CPU seconds (medians of {options.rounds}); "
        f"peak memory of all its processes {max(peaks) / 1e9:.2f} GB"
    )


if __name__ == "__main__":
    main()
