"""Write the section of docs/results/paper.md with the results in the scripts' JSON files.

    python -m reproduce.render
    python -m reproduce.render --check      # only check whether the page is up to date

Every number comes from a file in `--results_dir`. Parts that have not been run are marked as not measured yet.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from potstill.errors import PotstillError, first_line
from potstill.files import write_text
from potstill.report.markdown import code
from reproduce import render_tables as tables
from reproduce.common import HERE, new_parser, read_result, run
from reproduce.render_board import leader_board
from reproduce.render_conditions import measured_with

BEGIN = "<!-- reproduce: begin (written by python -m reproduce.render) -->"
END = "<!-- reproduce: end -->"
NOT_YET = "Not measured yet."
NAMES = ("teacher", "students", "table1", "table2", "table3", "table4", "cost", "time_to_quality", "leader_board")


def main(argv: list[str]) -> None:
    """Write the section, or compare it with the page."""
    parser = new_parser(__doc__)
    parser.add_argument("--page", type=Path, default=HERE.parent / "docs" / "results" / "paper.md")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(argv)
    try:
        page = options.page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PotstillError(f"{options.page} cannot be read: {first_line(error)}.") from error
    written = with_section(page, section(options.results_dir), str(options.page))
    if options.check and written != page:
        raise PotstillError(f"{options.page} is not up to date with the results: run `python -m reproduce.render`.")
    if written != page:
        write_text(options.page, written)
        print(f"wrote {options.page}")


def with_section(page: str, section: str, name: str = "the page") -> str:
    """Return a page with the text between the two markers replaced.

    Raises:
        PotstillError: the page does not have both markers exactly once and in order.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in rest or END in before or END in after:
        raise PotstillError(f"{name} must have the line `{BEGIN}` and after it the line `{END}`, each once.")
    return f"{before}{BEGIN}\n{section}\n{END}{after}"


def section(results: Path) -> str:
    """Return the section as Markdown.

    Args:
        results: folder of the JSON files.
    """
    found = {name: read_result(results, name) for name in NAMES}
    try:
        return "\n\n".join(_parts(found))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, StopIteration) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise PotstillError(
            f"A file in {results} does not have the form that its script writes ({reason}): run it again."
        ) from error


def _parts(found: dict[str, Any]) -> list[str]:
    return [
        "## The paper's experiment, from text to tables",
        _introduction(found),
        _part("The teacher", found["teacher"], tables.teacher),
        _part("The student, on held-out text", found["students"], tables.students),
        _part("Table 1: GLUE", found["table1"], tables.glue),
        _part("Table 2: IMDb and questions", found["table2"], tables.tasks),
        _part("Table 3: size and speed", found["table3"], tables.speed),
        _part("Table 4: ablation", found["table4"], tables.ablation),
        _part("Cost", found["cost"], tables.cost),
        _part("Quality against time", found["time_to_quality"], tables.curves),
        _part("Leader board of trainings", found["leader_board"], leader_board),
    ]


def _introduction(found: dict[str, Any]) -> str:
    """Return the introduction, which names the teacher before any results."""
    sentences = [
        "`python -m reproduce` runs DistilBERT's experiment with potstill's own verbs and writes this section from its "
        "measurements."
    ]
    students, teacher = found["students"], found["teacher"]
    if students is not None and (teacher is None or teacher["teacher"] != students["teacher"]):
        sentences.append(f"**The teacher is {code(students['teacher']['name'])}**, given with `--teacher`.")
    else:
        sentences.append(
            "**The teacher is not the published BERT.** `potstill pretrain` pre-trained it on a small part of the text "
            "and for a small part of the time that BERT had, so absolute scores are not BERT's. The experiment answers "
            "the question of the paper: how much of its teacher's quality does a student keep?"
        )
    return " ".join(sentences)


def _part(title: str, found: dict[str, Any] | None, write: Any) -> str:
    """Return a table under its heading, with the command, hardware and date below it."""
    if found is None:
        return f"### {title}\n\n{NOT_YET}"
    if write is leader_board:  # each board has its own
        return f"### {title}\n\n{write(found)}"
    return f"### {title}\n\n{write(found)}\n\n{measured_with(found['conditions'])}"


if __name__ == "__main__":
    sys.exit(run(main))
