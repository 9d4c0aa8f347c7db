"""Search for input that breaks the readers, guided by the code that it reaches (atheris).

It is run by hand, as for the figures of docs/reliability.md:

    pip install atheris
    nice -n 10 python benchmarks/fuzz.py FOLDER --seconds 600

Each input becomes a file, whose kind its first byte chooses. A reader may refuse it with a `PotstillError`. Anything
else that it raises, a crash or a hang is a fault; the input is then left in FOLDER.
"""

from __future__ import annotations

import argparse
import gzip
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["potstill", "yaml"]):
    import yaml

    from potstill.corpus.arrow_files import check_stored_plainly
    from potstill.corpus.reading import DocumentReader, ReadingOptions
    from potstill.corpus.sources import find_sources
    from potstill.errors import PotstillError
    from potstill.json_files import read_json
    from potstill.recipe_file import read_recipe
    from potstill.tasks.own import read_task
    from potstill.tasks.own_tables import open_table
    from potstill.tasks.rows import BadRows
    from potstill.tasks.squad import read_squad
    from potstill.tasks.tagged import conll_sentences

Reader = Callable[[Path], object]


def documents(path: Path) -> None:
    """Read all documents as `prepare` does."""
    for _ in DocumentReader(find_sources([str(path)], Path("/nowhere")), ReadingOptions()):
        pass


def table(path: Path) -> None:
    """Read a table as `finetune` does."""
    open_table(str(path), "train", None, BadRows("skip"))


def tagged(path: Path) -> None:
    """Read sentences with tags."""
    list(conll_sentences(str(path), BadRows("skip")))


KINDS: list[tuple[str, Reader, bytes]] = [
    ("a.txt", documents, b"one\ntwo \xc3\xa9\n"),
    ("a.jsonl", documents, b'{"text": "a \\u00e9"}\n{"text": null}\n'),
    ("a.json", documents, b'[{"text": "a"}, {"text": "b"}]'),
    ("a.csv", documents, b'text,label\n"a ""b"",\nc",d\n'),
    ("a.tsv", documents, b'text\tlabel\n"a\tb"\tc\n'),
    ("a.txt.gz", documents, gzip.compress(b"one\ntwo\n", mtime=0)),
    ("a.txt.xz", documents, b"\xfd7zXZ\x00"),
    ("a.txt.zst", documents, b"\x28\xb5\x2f\xfd\x00\x38\x09\x00\x00a"),
    ("a.parquet", documents, b"PAR1\x15\x04PAR1"),
    ("a.jsonl", table, b'{"text": "a", "label": "b"}\n'),
    ("a.csv", table, b"text,label\na,b\n"),
    ("a.parquet", table, b"PAR1\x15\x04PAR1"),
    ("a.conllu", tagged, b"# text\n1-2\tab\t_\t_\t_\t_\t_\t_\t_\t_\n1\ta\t_\tNOUN\t_\t_\t0\t_\t_\t_\n\n"),
    ("a.conll", tagged, b"-DOCSTART- O\n\nEU B-ORG\n"),
    ("a.json", read_squad, b'{"data": [{"paragraphs": [{"context": "a", "qas": []}]}]}'),
    ("a.yaml", lambda path: read_task(str(path)), b"kind: classification\ntrain: a.csv\nlabel_column: &a label\n"),
    ("a.yaml", read_recipe, b"losses: {a: &a {weight: 1}, b: *a}\n<<: {seed: 1}\n"),
    ("config.json", lambda path: read_json(path, "The config", finite=False), b'{"a": [1, NaN, "\\ud800"]}'),
    ("a.arrow", check_stored_plainly, b"\xff\xff\xff\xff\x10\x00\x00\x00"),
]


def main() -> None:
    """Fuzz until the time is over, and print how many inputs each kind of file had and how many were refused."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=int, default=600)
    options = parser.parse_args()
    inputs = options.folder / "inputs"
    inputs.mkdir(parents=True, exist_ok=True)
    for number, (_, _, sample) in enumerate(KINDS):
        (inputs / f"sample-{number}").write_bytes(bytes([number]) + sample)
    counts: Counter[str] = Counter()
    started = time.monotonic()
    slowest = 0.0
    os.chdir(options.folder)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (what readers print of skipped rows)

    def report() -> None:
        total = sum(counts[str(number)] for number in range(len(KINDS)))
        print(f"{total:,} inputs in {time.monotonic() - started:.0f} s; the slowest took {slowest:.2f} s")
        for number, (name, reader, _) in enumerate(KINDS):
            what = getattr(reader, "__name__", "read")
            print(f"  {name} ({what}): {counts[str(number)]:,}, refused {counts[f'refused {number}']:,}", flush=True)

    def one(data: bytes) -> None:
        nonlocal slowest
        if not data:
            return
        number = data[0] % len(KINDS)
        name, reader, _ = KINDS[number]
        path = Path(name)
        path.write_bytes(data[1:])
        before = time.monotonic()
        counts[str(number)] += 1
        try:
            reader(path)
        except PotstillError as error:
            counts[f"refused {number}"] += 1
            if "\n" in str(error):
                raise RuntimeError("a message of several lines") from error
        slowest = max(slowest, time.monotonic() - before)
        if time.monotonic() - started > options.seconds:
            report()
            os._exit(0)

    assert yaml
    flags = ["-max_len=4096", "-timeout=60", "-rss_limit_mb=4096", "-artifact_prefix=fault-"]
    atheris.Setup([sys.argv[0], "inputs", *flags], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
