"""Pages and plots: valid, self-contained, escaped."""

from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hostile import BROKEN, NAMES

from potstill.report import html
from potstill.report.markdown import visible
from potstill.report.page_plot import COLOURS, thinned
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
    plot = html.curves("c > d", {"a & b": [(1, 2.0), (2, 1.5)]}, "step", "loss")
    text = html.page(
        "x < y", [html.heading("<h>", "h"), html.paragraph("a & b"), html.table(["", "n"], [["<i>", "1"]]), plot]
    )
    parser = parse(text)
    assert parser.open == []
    assert parser.references == []
    assert "x &lt; y" in text
    assert "<td>&lt;i&gt;</td>" in text
    assert "<svg" in text


def test_a_plot_takes_its_colours_from_the_page():
    curves = {str(number): [(1, number), (2, number + 1)] for number in range(11)}
    text = html.page("p", [html.curves("t", curves, "step", "loss")])
    styles = {line.split("stroke:")[1].split(";")[0] + line.split("dasharray:")[1][:4] for line in _legend(text)}
    assert len(styles) == 11  # no two curves are drawn alike
    assert "currentColor" in text
    for placeholder in ("#0102f0", "#0203"):
        assert placeholder not in text
    for scheme in (0, 1):
        assert all(f"--series-{number}: {pair[scheme]};" in text for number, pair in enumerate(COLOURS))


def _legend(text):
    return [line for line in text.split("<li>")[1:] if "dasharray" in line]


@pytest.mark.parametrize(("scheme", "paper"), [(0, "#ffffff"), (1, "#0e1217")])
def test_colours_of_curves_can_be_told_from_the_page(scheme, paper):
    def luminance(colour):
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for pair in COLOURS:
        low, high = sorted((luminance(pair[scheme]), luminance(paper)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, pair


def test_a_long_curve_keeps_its_ends_and_few_of_its_points():
    points = [(step, float(step)) for step in range(10_007)]
    shown = thinned(points, 100)
    assert len(shown) == 100
    assert (shown[0], shown[-1]) == (points[0], points[-1])
    assert [step for step, _ in shown] == sorted({step for step, _ in shown})
    assert thinned(points[:100], 100) == points[:100]


def test_bars_and_second_lines_and_what_is_behind_a_click():
    text = html.page(
        "p",
        [
            html.contents({"A & B": html.anchor("A & B")}),
            html.heading("A & B", html.anchor("A & B")),
            html.bars({"<a>": (2.0, "2 ms"), "b": (1.0, "1 ms"), "c": (0.0, "<0>")}),
            html.details("<more>", [html.table(["", html.Two("F1", "<m>")], [["x", html.Two("1", "0–2")]], "<c>")]),
            html.notes(["NOT COMPARABLE: <x>", "fine"]),
        ],
    )
    assert parse(text).open == []
    assert [part.split("%")[0] for part in text.split('style="width:')[1:]] == ["100.0", "50.0", "0.0"]
    assert 'href="#a-b"' in text
    assert 'id="a-b"' in text
    assert "<td>1<small>0–2</small></td>" in text
    assert "&lt;more&gt;" in text
    assert "<li class=warning>NOT COMPARABLE: &lt;x&gt;</li><li>fine</li>" in text


def test_logged_takes_the_entries_that_have_the_key():
    history = [{"step": 1, "loss": 3.0}, {"step": 1, "eval_loss": 2.0}, {"step": 5, "loss": 1.0}]
    assert logged(history, "loss") == [(1, 3.0), (5, 1.0)]


@pytest.mark.filterwarnings("ignore:Glyph")  # matplotlib's own font lacks some
@pytest.mark.parametrize("name", [*NAMES, *BROKEN, "_private", "a\0b", b"a\xe9".decode(errors="surrogateescape")])
def test_names_are_shown_as_they_are(name):
    curves = {name: [(1, 2.0), (2, 1.5)], f"b {name}": [(1, 1.0)]}
    plot = line_plot(curves, name, name)
    page_plot = html.curves(name, curves, name, name)
    sections = [html.heading(name), html.paragraph(name), html.table([name, name], [[name, name]])]
    text = html.page(name, [*sections, plot, page_plot])
    text.encode()
    parser = parse(text)
    assert parser.open == []
    assert parser.references == []
    assert parser.words.count(visible(name)) == 2 + 2 + 4 + 2  # title and headline, heading and paragraph, cells, plot
    assert parser.words.count(visible(f"b {name}")) == 1  # the legend
    for svg in (plot, page_plot[page_plot.index("<svg") : page_plot.index("</svg>") + 6]):
        image = ElementTree.fromstring(svg)
        assert {element.tag.rpartition("}")[2] for element in image.iter()}.isdisjoint({"script", "img", "b"})
    legend = ElementTree.fromstring(plot).find(".//*[@id='legend_1']")
    assert len([group for group in legend if group.get("id").startswith("text_")]) == 2
