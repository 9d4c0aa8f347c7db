"""Pages and plots: valid, self-contained, escaped."""

from html.parser import HTMLParser

from potstill.report import html
from potstill.report.plots import line_plot, logged

VOID = {"meta", "link", "br", "img", "input"}


class Balanced(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.references = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href") and value[:1] != "#"]

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
