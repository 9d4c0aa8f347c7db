"""Pages and plots: valid, self-contained, escaped."""

from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hostile import BROKEN, NAMES

from potstill.report import html
from potstill.report.markdown import visible
from potstill.report.plots import line_plot, logged

VOID = {"meta", "link", "br", "img", "input"}


class Balanced(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.references, self.words = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href") and value[:1] != "#"]

    def handle_data(self, words):
        self.words.append(words)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


def parse(text):
    parser = Balanced()
    parser.feed(text)
    return parser


def test_a_page_is_balanced_escaped_and_asks_for_nothing_from_outside():
    plot = line_plot({"a & b": [(1, 2.0), (2, 1.5)]}, "step", "loss")
    text = html.page(
        "x < y", [html.heading("<h>"), html.paragraph("a & b"), html.table(["", "n"], [["<i>", "1"]]), plot]
    )
    parser = parse(text)
    assert parser.open == []
    assert parser.references == []
    assert "x &lt; y" in text
    assert "<td>&lt;i&gt;</td>" in text
    assert "<svg" in text


def test_logged_takes_the_entries_that_have_the_key():
    history = [{"step": 1, "loss": 3.0}, {"step": 1, "eval_loss": 2.0}, {"step": 5, "loss": 1.0}]
    assert logged(history, "loss") == [(1, 3.0), (5, 1.0)]


@pytest.mark.filterwarnings("ignore:Glyph")  # matplotlib's own font lacks some
@pytest.mark.parametrize("name", [*NAMES, *BROKEN, "_private", "a\0b", b"a\xe9".decode(errors="surrogateescape")])
def test_names_are_shown_as_they_are(name):
    plot = line_plot({name: [(1, 2.0), (2, 1.5)], f"b {name}": [(1, 1.0)]}, name, name)
    sections = [html.heading(name), html.paragraph(name), html.table([name, name], [[name, name]])]
    text = html.page(name, [*sections, plot])
    text.encode()
    parser = parse(text)
    assert parser.open == []
    assert parser.references == []
    assert parser.words.count(visible(name)) == 2 + 2 + 4  # title and headline, heading and paragraph, cells
    image = ElementTree.fromstring(plot)
    assert {element.tag.rpartition("}")[2] for element in image.iter()}.isdisjoint({"script", "img", "b"})
    legend = image.find(".//*[@id='legend_1']")
    assert len([group for group in legend if group.get("id").startswith("text_")]) == 2
