"""A self-contained HTML page of headings, paragraphs, tables and plots."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from potstill.report.markdown import visible

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c1c1c; }}
h1 {{ font-size: 1.6rem; }} h2 {{ font-size: 1.2rem; margin-top: 2rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }}
th:first-child, td:first-child {{ text-align: left; }}
svg {{ max-width: 100%; height: auto; }}
footer {{ margin-top: 3rem; color: #666; font-size: .85rem; }}
</style>
<body>
<h1>{title}</h1>
{body}
<footer>Written by potstill. Every figure was measured by the run that wrote this page.</footer>
</body>
</html>
"""


def page(title: str, sections: Sequence[str]) -> str:
    """Return a page of sections; the functions below make sections."""
    return _PAGE.format(title=_shown(title), body="\n".join(sections))


def heading(text: str) -> str:
    """Return a section's heading."""
    return f"<h2>{_shown(text)}</h2>"


def paragraph(text: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{_shown(text)}</p>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; the first column is left-aligned, the others hold figures."""
    head = "".join(f"<th>{_shown(cell)}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{_shown(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _shown(text: str) -> str:
    return escape(visible(text))
