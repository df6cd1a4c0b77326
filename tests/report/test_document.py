"""Pages: what is put into them is escaped, and what they would fetch is found."""

import math

import pytest

from accelnet.report.charts import ACROSS, histogram, linear_axis, log_axis, matrix
from accelnet.report.document import document
from accelnet.report.markup import figure, section, table, tag
from tests.pages import Page, needs_browser, needs_nothing, shows

HOSTILE = """<script>alert("x")</script>'&<blink>"""


def sample():
    chart = histogram("Some", HOSTILE, [1, 5, 2], [0.0, 1.0, 2.0, 3.0])
    cells = matrix("Which", "words", [[4, 1], [0, 5]], ["a", HOSTILE])
    rows = [(HOSTILE, "1", "x" * 400)]
    return document(HOSTILE, [section(HOSTILE, table(HOSTILE, ("a", "b", "c"), rows, (2,)), chart, cells)])


def test_what_comes_from_outside_is_escaped():
    text = sample()
    page = needs_nothing(text)
    assert not page.all("script") + page.all("blink")
    assert HOSTILE not in text and page.text.count(HOSTILE) > 5


def test_elements_are_closed_as_html_wants_it():
    assert tag("img", src="data:,") == '<img src="data:,">'
    assert tag("rect", x=1) == '<rect x="1"/>' and tag("rect", tag("title", "a")) == "<rect><title>a</title></rect>"
    assert section("empty", "") == ""


@pytest.mark.parametrize("values", [[0.0], [3.0, 3.0], [-1e-9, 1e-9], [1e9, 1.0001e9], [math.nan, 1.0], []])
def test_an_axis_has_room_for_any_values(values):
    for axis in (linear_axis("", values, str), log_axis("", values, str, ACROSS)):
        assert axis.low < axis.high and 1 <= len(axis.ticks()) <= 9
        assert all(axis.low <= tick <= axis.high * 1.001 for tick in axis.ticks())


@needs_browser
@pytest.mark.slow
def test_a_browser_shows_a_page(browser, tmp_path):
    shows(browser, sample(), tmp_path, colors=((0x00, 0x72, 0xB2),))


@needs_browser
@pytest.mark.slow
def test_what_a_page_would_fetch_and_what_stands_outside_of_it_is_found(browser):
    wide = document("x", [tag("div", "far", style="width:500px"), figure("", tag("div", "out", style="width:340px"))])
    assert browser(wide, (360,), False, "--dump-dom").title == (
        '512 wide, DIV "far" outside, DIV "out" outside, asks for nothing'
    )
    text = document("x", [tag("img", src="http://127.0.0.1:9/x.png")])
    assert browser(text, (360,), False, "--dump-dom").title.endswith("asks for http://127.0.0.1:9/x.png")
    with pytest.raises(AssertionError):
        needs_nothing(text)
    assert Page(text).all("img")
