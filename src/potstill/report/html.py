"""A self-contained HTML page of headings, paragraphs, tables and plots, for any width, for print, dark and light."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from potstill.report.markdown import visible
from potstill.report.page_plot import COLOURS, page_plot
from potstill.report.plots import Curve

FOOTER = "Written by potstill. Every figure was measured by the run that wrote this page."

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --paper: #fff; --panel: #f6f8fa;
  --accent: #0b66c2; SERIES_LIGHT }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9aa4af; --line: #343b44; --paper: #0e1217;
  --panel: #171c23; --accent: #6cb2ff; SERIES_DARK } }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 66rem; margin: 0 auto; padding: 1.5rem 1rem 3rem;
  color: var(--ink); background: var(--paper); overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
a { color: var(--accent); }
nav { display: flex; flex-wrap: wrap; gap: .4rem; }
nav a { border: 1px solid var(--line); border-radius: 1rem; padding: .15rem .75rem; font-size: .9rem;
  text-decoration: none; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: .5rem; width: fit-content; max-width: 100%; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
.caption { margin: 1.2rem 0 .3rem; font-size: .92rem; font-weight: 600; break-after: avoid; }
th, td { padding: .35rem .7rem; text-align: right; vertical-align: top; overflow-wrap: normal; }
td { border-top: 1px solid var(--line); }
th { background: var(--panel); font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--panel);
  min-width: min(8rem, 28vw); max-width: 18rem; overflow-wrap: anywhere; }
@media (max-width: 40rem) { th:first-child, td:first-child { max-width: 40vw; } }
.texts th, .texts td { text-align: left; }
.texts td:not(:first-child) { min-width: 9rem; max-width: 34rem; overflow-wrap: anywhere; }
small { display: block; color: var(--soft); font-size: .8em; white-space: nowrap; }
th small { white-space: normal; overflow-wrap: anywhere; min-width: 4.5rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; border: 1px solid var(--line); border-radius: .5rem; padding: .7rem; max-width: 34rem; }
figure h3 { margin: 0 0 .4rem; }
figure svg, figure img { display: block; width: 100%; height: auto; }
figure img { background: #fff; border-radius: .3rem; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem .9rem; margin: .4rem 0 0; padding: 0;
  font-size: .85rem; }
.legend svg { display: inline; width: 1.7rem; height: .6rem; margin-right: .35rem; vertical-align: middle; }
.bars { display: grid; grid-template-columns: minmax(5rem, auto) 1fr auto; gap: .3rem .7rem; align-items: center;
  font-size: .92rem; max-width: 40rem; margin: .8rem 0; }
.bars i { display: block; height: .8rem; min-width: 2px; border-radius: .2rem; background: var(--series-0);
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.bars b { font-weight: 400; font-variant-numeric: tabular-nums; }
.warning { border-left: .25rem solid #d97706; padding-left: .7rem; }
ul.notes { color: var(--soft); font-size: .9rem; padding-left: 1.2rem; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--accent); margin-bottom: .5rem; }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; }
@media print {
  :root { color-scheme: light; --ink: #000; --soft: #444; --line: #bbb; --paper: #fff; --panel: #f2f2f2;
    --accent: #000; SERIES_LIGHT }
  body { max-width: none; padding: 0; font-size: 10pt; } nav { display: none; }
  .scroll { overflow: visible; border: 0; width: auto; } table { font-size: 8.5pt; } th, td { padding: .2rem .4rem; }
  th:first-child, td:first-child { position: static; min-width: 0; } .texts td:not(:first-child) { min-width: 0; }
  details::details-content { content-visibility: visible; block-size: auto; } summary { color: var(--ink); }
  figure, tr { break-inside: avoid; } h2, h3 { break-after: avoid; }
}
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}
<footer>{footer}</footer>
</body>
</html>
"""


class Two(NamedTuple):
    """A cell of a table with a second, smaller line: a median and its range, say."""

    first: str
    second: str


Cell = str | Two


def page(title: str, sections: Sequence[str], footer: str = FOOTER) -> str:
    """Return a page of sections; the functions below make sections. The page loads nothing from anywhere."""
    style = _STYLE.replace("SERIES_LIGHT", _series(0)).replace("SERIES_DARK", _series(1))
    return _PAGE.format(title=_shown(title), style=style, body="\n".join(sections), footer=_shown(footer))


def heading(text: str, anchor: str | None = None) -> str:
    """Return a section's heading; `anchor` is the name that `contents` links to."""
    return f"<h2{_id(anchor)}>{_shown(text)}</h2>"


def subheading(text: str) -> str:
    """Return the heading of a part of a section."""
    return f"<h3>{_shown(text)}</h3>"


def contents(links: Mapping[str, str]) -> str:
    """Return links to sections: title → anchor."""
    items = "".join(f'<a href="#{escape(anchor)}">{_shown(title)}</a>' for title, anchor in links.items())
    return f"<nav>{items}</nav>"


def paragraph(text: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{_shown(text)}</p>"


def notes(texts: Sequence[str], warning: str = "NOT COMPARABLE") -> str:
    """Return a list of remarks; those that begin with `warning` are marked."""
    items = "".join(f"<li{' class=warning' if text.startswith(warning) else ''}>{_shown(text)}</li>" for text in texts)
    return f'<ul class="notes">{items}</ul>' if texts else ""


def table(header: Sequence[Cell], rows: Sequence[Sequence[Cell]], caption: str = "", texts: bool = False) -> str:
    """Return a table; the first column is left-aligned, the others hold figures, or with `texts` also texts."""
    head = "".join(f"<th>{_cell(cell)}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    title = f'<p class="caption">{_shown(caption)}</p>' if caption else ""
    return (
        f'{title}<div class="scroll{" texts" if texts else ""}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def details(summary: str, sections: Sequence[str], opened: bool = False) -> str:
    """Return sections that a reader opens by a click; in print they are shown."""
    return f"<details{' open' if opened else ''}><summary>{_shown(summary)}</summary>{''.join(sections)}</details>"


def bars(values: Mapping[str, tuple[float, str]]) -> str:
    """Return horizontal bars: name → the value, which is not negative, and the value as it is printed."""
    largest = max((value for value, _ in values.values()), default=0.0) or 1.0
    rows = [
        f'<span>{_shown(name)}</span><i style="width:{100 * max(value, 0) / largest:.1f}%"></i><b>{_shown(text)}</b>'
        for name, (value, text) in values.items()
    ]
    return f'<div class="bars">{"".join(rows)}</div>'


def curves(title: str, named: Mapping[str, Curve], x_label: str, y_label: str) -> str:
    """Return a plot of named curves with a legend that wraps on a narrow screen; see `page_plot`."""
    svg, lines = page_plot(named, x_label, y_label)
    items = "".join(
        f'<li><svg viewBox="0 0 34 12" aria-hidden="true"><path d="M0 6H34" style="stroke:{line.colour};'
        f'stroke-width:3;stroke-dasharray:{line.dashes}"/></svg>{_shown(name)}</li>'
        for name, line in zip(named, lines, strict=True)
    )
    return f'<figure><h3>{_shown(title)}</h3>{svg}<ul class="legend">{items}</ul></figure>'


def picture(title: str, png: bytes) -> str:
    """Return a PNG picture, which becomes part of the page."""
    data = base64.b64encode(png).decode()
    return f'<figure><h3>{_shown(title)}</h3><img alt="{_shown(title)}" src="data:image/png;base64,{data}"></figure>'


def figures(some: Sequence[str]) -> str:
    """Return plots and pictures side by side where there is room."""
    return f'<div class="figures">{"".join(some)}</div>' if some else ""


def anchor(text: str) -> str:
    """Return a title as the name of a link's target: letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "section"


def _id(anchor: str | None) -> str:
    return "" if anchor is None else f' id="{escape(anchor)}"'


def _cell(cell: Cell) -> str:
    if isinstance(cell, Two):
        return f"{_shown(cell.first)}<small>{_shown(cell.second)}</small>"
    return _shown(cell)


def _series(scheme: int) -> str:
    return " ".join(f"--series-{number}: {pair[scheme]};" for number, pair in enumerate(COLOURS))


def _shown(text: str) -> str:
    return escape(visible(text))
