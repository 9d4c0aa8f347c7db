"""A retrieval set from articles: the query is the title of an article, the passage its first 600 characters after it.

    python benchmarks/title_retrieval.py --text 'text/simple-wikipedia-*.jsonl.zst' --output_dir titles/
    potstill evaluate --models teacher=MODEL student=small --suite retrieval --retrieval_data titles/ --output_dir out/

The articles of the set are those with the smallest hash, so every machine chooses the same ones. All other articles are
written to `train.jsonl.zst`: a model that is trained on that file alone has not seen the set. An article that
shares its title or opening with one of the set is not written there.
"""

from __future__ import annotations

import argparse
import glob
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from potstill.errors import PotstillError
from potstill.files import check_output_dir, complete_folder
from potstill.tasks.rows import BadRows, json_rows

CHARACTERS = 600


def articles(files: list[str]) -> Iterator[tuple[str, str, str]]:
    """Yield the whole text, the title and the opening of each document, whose first line is its title."""
    for file in files:
        for _, row in json_rows(file, BadRows()):
            title, _, rest = row["text"].partition("\n")
            yield row["text"], title.strip(), rest.strip()[:CHARACTERS].strip()


def chosen(files: list[str], count: int) -> dict[str, str]:
    """Return title → opening of the articles with the smallest hashes; of equal titles or openings one is taken."""
    hashed = sorted(
        (hashlib.sha256(text.encode()).hexdigest(), title, opening)
        for text, title, opening in articles(files)
        if title and opening
    )
    found: dict[str, str] = {}
    titles, openings = set(), set()
    for _, title, opening in hashed:
        if title.casefold() not in titles and opening not in openings:
            found[title] = opening
            titles.add(title.casefold())
            openings.add(opening)
        if len(found) == count:
            return found
    raise PotstillError(f"There are only {len(found):,} articles with a title of their own: lower --articles.")


def write(files: list[str], count: int, folder: Path) -> int:
    """Write the set and the other articles, and return the number of the latter."""
    kept_out = chosen(files, count)
    titles, openings = {title.casefold() for title in kept_out}, set(kept_out.values())
    others = 0
    with complete_folder(folder) as partial:
        corpus = [{"id": f"d{number}", "text": opening} for number, opening in enumerate(kept_out.values())]
        queries = [{"id": f"q{number}", "text": title} for number, title in enumerate(kept_out)]
        for name, rows in (("corpus", corpus), ("queries", queries)):
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (partial / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        judged = "".join(f"q{number}\td{number}\t1\n" for number in range(count))
        (partial / "qrels.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
        with pa.CompressedOutputStream(str(partial / "train.jsonl.zst"), "zstd") as file:
            for text, title, opening in articles(files):
                if title.casefold() not in titles and opening not in openings:
                    file.write((json.dumps({"text": text}, ensure_ascii=False) + "\n").encode())
                    others += 1
    return others


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", nargs="+", required=True, help="files of JSON lines, or patterns of names")
    parser.add_argument("--articles", type=int, default=5000)
    parser.add_argument("--output_dir", type=Path, required=True)
    options = parser.parse_args()
    files = sorted({file for pattern in options.text for file in glob.glob(pattern)})
    if not files:
        raise SystemExit(f"There is no file {' or '.join(options.text)}.")
    others = write(files, options.articles, check_output_dir(options.output_dir, overwrite=False))
    print(f"wrote {options.output_dir}: {options.articles:,} articles to find, {others:,} others to train on")


if __name__ == "__main__":
    main()
