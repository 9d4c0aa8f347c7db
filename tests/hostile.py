"""Names that mean something to Markdown, HTML or YAML, and what a reader sees of a page that was made with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml
from markdown_it import MarkdownIt  # which rich brings

NAMES = (
    "a|b",
    "a\\|b",
    "`code` ``twice``",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "&lt;b&gt; &amp;",
    "[click](javascript:alert(1)) ![x](y)",
    "*bold* _emphasis_ __both__ ~~gone~~ snake_case",
    "# heading #",
    "key: value #comment",
    "---",
    "- item",
    "1. item",
    "2) item",
    "=== $x^2$",
    "> quoted",
    "{curly} %s {{braces}}",
    "'single' \"double\"",
    "学生 – é",
)
BROKEN = ("a\nb", "a\r\n\n---\nb: c", "a\tb\x1b[31m", "a\u2028b", "right\u202eleft")
"""Names with characters that move the cursor: shown by their escapes."""


@dataclass
class Page:
    """What a reader sees of Markdown.

    Attributes:
        text: of all of it, the cells of tables apart.
        tables: their rows, each a list of cells.
        headings: in order.
        html: tags that would reach the page.
        links: where they lead.
    """

    text: str = ""
    tables: list[list[list[str]]] = field(default_factory=list)
    headings: list[str] = field(default_factory=list)
    html: list[str] = field(default_factory=list)
    links: list[Any] = field(default_factory=list)


def rendered(markdown: str) -> Page:
    """Render Markdown as GitHub and the hub do: CommonMark, tables and strike-through, with HTML let through."""
    page, inside = Page(), ""
    for token in MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(markdown):
        inside = token.type if token.type in ("heading_open", "th_open", "td_open") else inside
        inside = "" if token.type.endswith("_close") else inside
        if token.type == "table_open":
            page.tables.append([])
        elif token.type == "tr_open":
            page.tables[-1].append([])
        elif token.type == "html_block":
            page.html.append(token.content)
        elif token.type == "inline":
            page.html += [child.content for child in token.children or [] if child.type == "html_inline"]
            page.links += [child.attrs for child in token.children or [] if child.type in ("link_open", "image")]
            marks = [child.type for child in token.children or [] if child.type in ("em_open", "s_open")]
            assert not marks, (marks, token.content)
            words = "".join(child.content if child.content else "" for child in token.children or [])
            if inside in ("th_open", "td_open"):
                page.tables[-1][-1].append(words)
            elif inside == "heading_open":
                page.headings.append(words)
            page.text += f"{words}\n"
    for table in page.tables:
        assert len({len(row) for row in table}) == 1, table
    return page


def front_matter(card: str) -> tuple[dict[str, Any], str]:
    """Return the header of a card and what follows it, as the hub splits them: at lines of three dashes."""
    lines = card.splitlines()
    assert lines[0] == "---"
    end = lines.index("---", 1)
    return yaml.safe_load("\n".join(lines[1:end])), "\n".join(lines[end + 1 :])
